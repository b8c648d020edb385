"""What every process sets before Flower, Ray or torch is imported, and how it imports the heavy."""

import gc
import importlib
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any, Final

ACCOUNTANTS: Final = "privacy.accounting.accountants"
"""The module that takes dp-accounting and scipy, a second to import."""
_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(1 << 20),
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def disable_telemetry() -> None:
    """No library reports usage, looks for updates or installs anything: call it before imports."""
    os.environ.update(_ENVIRONMENT)


def prepare(home: str | None = None) -> None:
    """Disable telemetry and give Flower a folder of its own, unless the user chose one.

    Torch asks the system for large pages, as numpy does: a new array of 40 MB then costs a quarter
    of the time.
    """
    disable_telemetry()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "FLWR_HOME" not in os.environ:
        os.environ["FLWR_HOME"] = home or os.path.join(  # noqa: PTH118 - before anything is imported
            tempfile.gettempdir(), f"tacit-flwr-{os.getuid()}"
        )


@contextmanager
def loading() -> Iterator[None]:
    """Import large libraries in this block: the garbage collector looks at nothing of them.

    It would go through all that was loaded again and again, a fifth of the time, and once more in
    every full collection afterwards; but modules stay. Opacus' engine stays out (see `defer`). Only
    commands and their child processes may use it: it changes the collector of the whole process. On
    a terminal "loading ..." stands meanwhile.
    """
    defer("opacus")
    enabled = gc.isenabled()
    gc.disable()
    terminal = sys.stderr.isatty()
    if terminal:
        print("loading ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        gc.freeze()
        if enabled:
            gc.enable()


def defer(name: str) -> None:
    """Let submodules of the package `name` be imported, and its own `__init__` when it is needed.

    Opacus' imports its engine, and with it three accountants and half of SciPy, of which we use
    nothing: 2 s of CPU in every process. The first attribute that somebody asks the package itself
    for runs its `__init__` (PEP 562), so that it is whole for whoever uses it.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    package, loader, lock = importlib.util.module_from_spec(spec), spec.loader, RLock()

    def load(attribute: str) -> Any:
        with lock:
            if vars(package).pop("__getattr__", None) is not None:
                loader.exec_module(package)
        if attribute not in vars(package):
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        return vars(package)[attribute]

    vars(package)["__getattr__"] = load
    sys.modules[name] = package


def begin_worker() -> None:
    """What a process of a pool does first: its pages stay shared, and it leaves Ctrl-C alone."""
    gc.freeze()  # a collection would copy every page of the parent's that it looks at
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for who owns the pool


def load(*modules: str) -> None:
    """Import these large modules, on a terminal with a word about it."""
    with loading():
        for module in modules:
            importlib.import_module(module)
