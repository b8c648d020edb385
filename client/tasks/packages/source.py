"""A package's task.py as a module in memory, and whether it is still what was loaded."""

import hashlib
import types
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from privacy.task_package.archive import SOURCE, Package, PackageError
from privacy.task_package.source_check import REQUIRED

_DEEPEST: Final = 12


def load_source(package: Package, file: str = SOURCE) -> Any:
    """Run task.py and return its module; `file` is the name that tracebacks show.

    The package's other files are bytes by name in the module's FILES. PackageError where a function
    is missing that every package has.
    """
    module = types.ModuleType(f"task_{package.digest[:16]}")
    others = {n: c for n, c in package.files.items() if n != SOURCE}
    vars(module)["FILES"] = types.MappingProxyType(others)
    exec(compile(package.source, file, "exec", dont_inherit=True), vars(module))  # noqa: S102
    for name in REQUIRED:
        if not callable(getattr(module, name, None)):
            raise PackageError(f"{SOURCE}: must define the function {name}")
    return module


def fingerprint(module: Any) -> str:
    """A digest of all that a module could remember: globals, defaults, closures, attributes.

    What is called between two equal fingerprints has left nothing behind in the module.
    """
    total = hashlib.sha256()
    names = {k: v for k, v in vars(module).items() if k not in ("__builtins__", "FILES")}
    _add(total, names, _DEEPEST, {})
    return total.hexdigest()


def _add(total: Any, value: Any, depth: int, seen: dict[int, object]) -> None:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        total.update(f"{type(value).__name__}:{value!r};".encode())
        return
    if id(value) in seen or not depth:
        total.update(b"again;")
        return
    seen[id(value)] = value  # kept alive, so that no other gets its number
    total.update(f"{type(value).__name__}(".encode())
    if isinstance(value, types.ModuleType | types.BuiltinFunctionType):
        total.update(str(getattr(value, "__name__", "")).encode())
    elif isinstance(value, Mapping):
        for key, one in list(value.items()):
            _add(total, key if isinstance(key, str | int | float) else repr(key), depth - 1, seen)
            _add(total, one, depth - 1, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for one in list(value):
            _add(total, one, depth - 1, seen)
    elif isinstance(value, np.ndarray):
        total.update(np.ascontiguousarray(value).tobytes() if value.dtype.kind != "O" else b"?")
    elif isinstance(value, types.FunctionType):
        _add(total, value.__code__.co_code, depth - 1, seen)
        _add(total, value.__defaults__, depth - 1, seen)
        _add(total, value.__kwdefaults__, depth - 1, seen)
        for cell in value.__closure__ or ():
            _add(total, cell.cell_contents, depth - 1, seen)
        _add(total, vars(value), depth - 1, seen)
    elif isinstance(value, type):
        if value.__module__.startswith("task_"):
            members = {k: v for k, v in vars(value).items() if k not in ("__dict__", "__weakref__")}
            _add(total, members, depth - 1, seen)
        total.update(value.__qualname__.encode())
    elif hasattr(value, "detach") and hasattr(value, "numpy"):
        _add(total, value.detach().cpu().numpy(), depth - 1, seen)
    elif isinstance(value, classmethod | staticmethod):
        _add(total, value.__func__, depth - 1, seen)
    else:
        attributes = getattr(value, "__dict__", None)
        if attributes:
            _add(total, attributes, depth - 1, seen)
        else:  # iterators and counters say where they are
            text = repr(value)
            total.update(text.encode() if " at 0x" not in text else b"object")
    total.update(b")")
