"""Encoded rows that outlive their process, as arrays that are mapped and drawn from by index.

An entry is named by a digest of all that its rows depend on. It holds private rows, encoded: the
files are the owner's alone (0600) and lie in the site's own folder; `tacit-client data remove`
removes them. The oldest go where there are too many, or where they are too long together.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.loading import SPILL, mapped, release
from client.tasks.rows import Omission, Reading, Rows
from privacy.files import PRIVATE, DocumentError, open_atomic, read_json, write_atomic

FORMAT: Final = 3
"""Of the entries; a change of how rows are encoded without a new version of Tacit counts too."""
ENTRIES: Final = 4
BYTES: Final = 256 * 2**30
"""The most that a population's entries hold, in number and together."""
_ARRAYS: Final = ("x", "y", "subject")


@dataclass(frozen=True, slots=True)
class Cache:
    """The encoded rows of one population; arrays below `least` bytes are not worth a copy."""

    folder: Path
    least: int = SPILL
    most: int = BYTES

    def rows(
        self,
        key: tuple[str, ...],
        read: Callable[[], Rows],
        same: Callable[[], bool],
        *,
        costly: bool = False,
    ) -> Rows:
        """The rows of a key, from a copy or by `read`; a copy is kept if they are still the `same`.

        `costly` rows are kept whatever their length. A copy that cannot be written is none: the
        rows are there without it.
        """
        facts = json.dumps([FORMAT, version("tacit"), *key]).encode()
        name = hashlib.sha256(facts).hexdigest()[:32]
        cached_rows = self._get(name)
        if cached_rows is not None:
            return cached_rows
        rows = read()
        if not isinstance(rows.x, torch.Tensor):
            return rows
        if rows.x.nbytes < self.least and not costly:
            return rows
        size = sum(one.nbytes for one in (rows.x, rows.y, rows.subject) if one is not None)
        if size > self.most or not same():
            return rows
        with suppress(OSError):
            self._put(name, rows, size)
        return self._get(name) or rows

    def remove(self) -> int:
        """Remove all copies; how many bytes they had."""
        size = 0
        for file in self._files():
            size += file.stat().st_size
            file.unlink()
        with suppress(OSError):
            self.folder.rmdir()
        return size

    def _files(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def _get(self, name: str) -> Rows | None:
        """The rows of an entry that is whole; None where there is none."""
        card = self.folder / f"{name}.json"
        try:
            facts = read_json(card)
            arrays = {one: self._mapped(name, one, facts["arrays"]) for one in facts["arrays"]}
            reading = _reading(facts["reading"])
        except (OSError, DocumentError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):
            os.utime(card)
        site = facts.get("site")
        if site is not None and len(site) != len(arrays["y"]):
            return None
        return Rows(
            arrays["x"],
            arrays["y"],
            None if site is None else tuple(site),
            arrays.get("subject"),
            reading,
        )

    def _mapped(self, name: str, array: str, facts: dict[str, Any]) -> torch.Tensor:
        path = self.folder / f"{name}.{array}.npy"
        view = np.load(path, mmap_mode="c", allow_pickle=False)
        if [view.dtype.str, *view.shape] != facts[array]:
            raise ValueError(f"{path}: expected another array")
        return torch.from_numpy(mapped(view))

    def _put(self, name: str, rows: Rows, size: int) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_room(size)
        facts: dict[str, Any] = {"arrays": {}, "reading": _facts(rows.reading), "bytes": size}
        if rows.site is not None:
            facts["site"] = rows.site
        with ExitStack() as written:
            for array in _ARRAYS:
                values = getattr(rows, array)
                if values is None:
                    continue
                path = self.folder / f"{name}.{array}.npy"
                written.callback(path.unlink, missing_ok=True)
                plain: NDArray[Any] = values.numpy()
                with open_atomic(path, mode=PRIVATE, durable=False) as file:
                    head = np.lib.format.header_data_from_array_1_0(plain)
                    np.lib.format.write_array_header_1_0(file, head)
                    for start in range(0, len(plain), 65536):
                        file.write(np.ascontiguousarray(plain[start : start + 65536]).data)
                        release(values)
                facts["arrays"][array] = [plain.dtype.str, *plain.shape]
            # An entry is one from here on; what a kill leaves before it goes with the next.
            content = json.dumps(facts).encode()
            write_atomic(self.folder / f"{name}.json", content, mode=PRIVATE, durable=False)
            written.pop_all()

    def _make_room(self, size: int) -> None:
        """Remove the entries used longest ago beyond the bounds, and files of no entry."""
        cards = [file for file in self._files() if file.suffix == ".json"]
        cards.sort(key=lambda file: file.stat().st_mtime, reverse=True)
        digests: set[str] = set()
        total = size
        for card in cards[: ENTRIES - 1]:
            total += sum(file.stat().st_size for file in self.folder.glob(f"{card.stem}.*.npy"))
            if total > self.most:
                break
            digests.add(card.stem)
        for file in self._files():
            if file.name.split(".")[0] not in digests:
                file.unlink(missing_ok=True)


def _facts(reading: Reading | None) -> Any:
    if reading is None:
        return None
    omissions = [[one.column, one.expected, one.rows, one.first] for one in reading.omissions]
    unknown = [list(one) for one in reading.unknown]
    return [reading.rows, reading.lines, reading.left_out, omissions, unknown]


def _reading(facts: Any) -> Reading | None:
    if facts is None:
        return None
    rows, lines, left_out, omissions, unknown = facts
    return Reading(
        rows,
        lines,
        left_out,
        tuple(Omission(*one) for one in omissions),
        tuple((str(column), int(count)) for column, count in unknown),
    )
