"""A package's task.py as a module in memory, and whether it is still what was loaded."""

import hashlib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from privacy.task_package.archive import SOURCE, Package, PackageError
from privacy.task_package.manifest import Manifest
from privacy.task_package.reading_part import READING, reading_part
from privacy.task_package.source_check import REQUIRED

_DEEPEST: Final = 12
_GIVEN: Final = ("__builtins__", "FILES", "BACKBONES")
_PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
_LISTS: Final = (list, tuple, set, frozenset)
_NAMED: Final = (types.ModuleType, types.BuiltinFunctionType)


def load_source(
    package: Package,
    file: str = SOURCE,
    *,
    reading: bool = False,
    backbones: Mapping[str, Path] = MappingProxyType({}),
) -> Any:
    """Run task.py and return its module; `file` is the name that tracebacks show.

    The package's other files are bytes by name in the module's FILES, and the folders of its
    `backbones` by name in BACKBONES. With `reading` only what reading and encoding need is run.
    PackageError where a function is missing that it must have.
    """
    module = types.ModuleType(f"task_{package.digest[:16]}")
    others = {n: c for n, c in package.files.items() if n != SOURCE}
    vars(module)["FILES"] = MappingProxyType(others)
    vars(module)["BACKBONES"] = MappingProxyType(dict(backbones))
    source = reading_part(package) if reading else package.source
    exec(compile(source, file, "exec", dont_inherit=True), vars(module))  # noqa: S102
    for name in READING if reading else REQUIRED:
        if not callable(getattr(module, name, None)):
            raise PackageError(f"{SOURCE}: must define the function {name}")
    return module


def backbones_of(manifest: Manifest) -> dict[str, Path]:
    """The folders of a package's frozen models, each with the very files it names; TaskError."""
    if not manifest.backbones:
        return {}
    from client.tasks.features.backbones import Backbone  # with PyTorch, which reading may not need

    return {name: Backbone(name, code).folder() for name, code in manifest.backbones.items()}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A digest of all that a module could remember: globals, defaults, closures, attributes.

    What is called between two equal fingerprints has left nothing behind in the module. The objects
    are kept alive, so that none of another fingerprint can have the number of one of this.
    """

    digest: bytes
    alive: tuple[object, ...] = field(compare=False, repr=False)


def fingerprint(module: Any) -> Fingerprint:
    """The fingerprint of a module now."""
    parts, alive = list[bytes](), dict[int, object]()
    names = {k: v for k, v in vars(module).items() if k not in _GIVEN}
    _add(parts, names, _DEEPEST, alive)
    return Fingerprint(hashlib.sha256(b"".join(parts)).digest(), tuple(alive.values()))


def _add(parts: list[bytes], value: Any, depth: int, seen: dict[int, object]) -> None:
    kind = type(value)
    if kind in _PLAIN:
        parts.append(f"{kind.__name__}:{value!r};".encode())
        return
    if id(value) in seen or not depth:
        parts.append(b"again;")
        return
    seen[id(value)] = value
    parts.append(kind.__name__.encode() + b"(")
    if isinstance(value, _NAMED):
        parts.append(str(getattr(value, "__name__", "")).encode())
    elif isinstance(value, Mapping):
        for key, one in list(value.items()):
            _add(parts, key if type(key) in _PLAIN else repr(key), depth - 1, seen)
            _add(parts, one, depth - 1, seen)
    elif isinstance(value, _LISTS):
        for one in list(value):
            _add(parts, one, depth - 1, seen)
    elif isinstance(value, np.ndarray):
        parts.append(np.ascontiguousarray(value).tobytes() if value.dtype.kind != "O" else b"?")
    elif isinstance(value, types.FunctionType):
        seen[id(value.__code__)] = value.__code__
        parts.append(str(id(value.__code__)).encode())
        for one in (value.__defaults__, value.__kwdefaults__):
            _add(parts, one, depth - 1, seen)
        for cell in value.__closure__ or ():
            _add(parts, cell.cell_contents, depth - 1, seen)
        _add(parts, vars(value), depth - 1, seen)
    elif isinstance(value, type):
        if value.__module__.startswith("task_"):
            members = {k: v for k, v in vars(value).items() if k not in ("__dict__", "__weakref__")}
            _add(parts, members, depth - 1, seen)
        parts.append(value.__qualname__.encode())
    elif hasattr(value, "detach") and hasattr(value, "numpy"):
        _add(parts, value.detach().cpu().numpy(), depth - 1, seen)
    elif isinstance(value, classmethod | staticmethod):
        _add(parts, value.__func__, depth - 1, seen)
    else:
        attributes = getattr(value, "__dict__", None)
        if attributes:
            _add(parts, attributes, depth - 1, seen)
        else:  # iterators and counters say where they are
            text = repr(value)
            parts.append(text.encode() if " at 0x" not in text else b"object")
    parts.append(b")")
