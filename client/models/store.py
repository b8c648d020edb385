"""A site's released models, kept under the names of their own digests: `DIR/models/`.

Each model is one file `<sha256>.safetensors` with its signature beside it; `index.jsonl` says in
which order they came. A file is complete or absent, and one that is there already is not written.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.files import DocumentError, naming, parse_json, write_atomic

MODELS_MAX: Final = 100
BYTES_MAX: Final = 4 * 1024**3
"""What a site keeps of the models that it was handed; the oldest go."""
_LINES_MAX: Final = 4 * MODELS_MAX


def folder(directory: Path) -> Path:
    """Where a site's models lie."""
    return directory / "models"


def keep(directory: Path, content: bytes, signature: bytes | None, *, run: str, round: int) -> Path:
    """Keep a released model of this site; the same model again changes nothing."""
    digest = hashlib.sha256(content).hexdigest()
    path = folder(directory) / f"{digest}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    if signature is not None:
        write_atomic(path.with_name(path.name + ".sig"), signature)
    if not path.exists():
        write_atomic(path, content)
    index = folder(directory) / "index.jsonl"
    line = {"model": digest, "run": run, "round": round}
    if not any(entry == line for entry in _entries(index)):
        with naming(index), index.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _forget_oldest(directory)
    return path


def _forget_oldest(directory: Path) -> None:
    """Keep the last `MODELS_MAX` models, and of them as many as `BYTES_MAX` holds."""
    names, size = set[str](), 0
    index = folder(directory) / "index.jsonl"
    entries = _entries(index)
    for entry in reversed(entries):
        path = folder(directory) / f"{entry['model']}.safetensors"
        if path.name in names or not path.is_file():
            continue
        size += path.stat().st_size
        if names and (len(names) >= MODELS_MAX or size > BYTES_MAX):
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.sig").unlink(missing_ok=True)
        else:
            names.add(path.name)
    if len(entries) > _LINES_MAX:  # a file of lines without models would grow for ever
        kept = [one for one in entries if f"{one['model']}.safetensors" in names]
        lines = [json.dumps(one) + "\n" for one in kept[-MODELS_MAX:]]
        write_atomic(index, "".join(lines).encode())


def pack(tensors: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]) -> bytes:
    """Float32 tensors as safetensors whose bytes, and so whose digest, depend on the values alone.

    (The library's own writer orders the metadata at random.)
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    parts, end = [], 0
    for name in sorted(tensors):
        part = np.ascontiguousarray(tensors[name], dtype="<f4").tobytes()
        where = [end, end := end + len(part)]
        shape = list(tensors[name].shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": where}
        parts.append(part)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + b"".join(parts)


def latest(directory: Path) -> Path | None:
    """The model that came last of those that are still there."""
    for entry in reversed(_entries(folder(directory) / "index.jsonl")):
        path = folder(directory) / f"{entry['model']}.safetensors"
        if path.is_file():
            return path
    return None


def of_run(directory: Path, path: Path) -> list[tuple[int, Path]]:
    """The rounds of the run that a kept model is of, and their files that are still there."""
    entries = _entries(folder(directory) / "index.jsonl")
    runs = {one.get("run") for one in entries if f"{one['model']}.safetensors" == path.name}
    files = [
        (number, folder(directory) / f"{one['model']}.safetensors")
        for one in entries
        if one.get("run") in runs and type(number := one.get("round")) is int
    ]
    return sorted({(number, file) for number, file in files if file.is_file()})


def _entries(index: Path) -> list[dict[str, object]]:
    """The index's lines; a line that a crash cut off is passed over."""
    if not index.is_file():
        return []
    entries = []
    for line in index.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = parse_json(line)
        except DocumentError:
            continue
        if isinstance(entry, dict) and str(entry.get("model", "")).isalnum():
            entries.append(entry)
    return entries
