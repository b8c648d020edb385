"""Every test runs quiet, on one thread and in a folder of its own; marks and profiles.

A test is one of three kinds, by the folder of its file unless it is marked itself: `unit`,
`integration` (servers, processes, training, whole runs) or `statistical` (a conclusion from random
draws). Beside them `slow`: over some five seconds; `make test` leaves it out; and `long`: about a
second or more; `make quick` leaves it out. Of the examples that a property asks for, the hypothesis
profile `full` (`make test-all`) tries all, `ci` (`make test`) a third, `dev`
(`make quick`) a tenth.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from privacy.mechanism.native import compiled
from privacy.runtime import defer, prepare
from tests.support.patience import patience, slowness

gc.disable()  # while a million objects are made that stay; again after the collection
OWN = Path(tempfile.mkdtemp(prefix="tacit-test-"))
"""Of this process, and removed at its end: Flower's folder, and features that simulations keep."""
(OWN / "flwr").mkdir()
os.environ.update(
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
    FLWR_HOME=str(OWN / "flwr"),
    TACIT_CACHE=str(OWN / "features"),
)
prepare()
defer("opacus")

EXAMPLES = {"full": 1, "ci": 3, "dev": 10}
"""The hypothesis profiles: which share of the examples that a property asks for they try."""
for profile in EXAMPLES:
    settings.register_profile(profile, deadline=None, print_blob=True)
settings.load_profile("ci")

KINDS = ("unit", "integration", "statistical")
INTEGRATION = (
    "integration",
    "attacks",
    "client/agent",
    "client/commands",
    "client/doctor",
    "client/inference",
    "client/serving",
    "client/tasks/described",
    "client/tasks/packages",
    "client/test_app.py",
    "client/test_hostile_rows.py",
    "privacy/commands",
    "privacy/report/bundle",
    "server/dashboard",
    "server/fleet",
    "server/rounds",
    "server/service",
    "simulations",
)
STATISTICAL = ("privacy/audit", "privacy/mechanism", "client/audit")
HERE = Path(__file__).resolve().parent


MEMORY = "/dev/shm"
"""Folders of fast tests lie in memory: thousands of fsyncs cost a disk some milliseconds each."""


@cache
def kind(path: Path) -> str:
    """The kind of a test file's tests that are not marked themselves."""
    where = f"{path.relative_to(HERE).as_posix()}/"
    kinds = {"integration": INTEGRATION, "statistical": STATISTICAL}
    found = [
        name
        for name, folders in kinds.items()
        if where.startswith(tuple(f"{folder}/" for folder in folders))
    ]
    return found[0] if found else "unit"


def pytest_configure(config: pytest.Config) -> None:
    """Calibrate before there is a test to time; compile once what every worker loads."""
    fast = str(config.getoption("markexpr", "")).endswith(("not slow", "not long"))
    if fast and _has_room(MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
    slowness()
    if not hasattr(config, "workerinput") and getattr(config.option, "numprocesses", None):
        for source in HERE.parent.glob("[pc]*/**/*.c"):  # privacy/ and client/
            compiled(source)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """A worker's end as well; forked children never come here."""
    shutil.rmtree(OWN, ignore_errors=True)


def _has_room(folder: str) -> bool:
    """Whether folders of tests fit here, and may hold programs."""
    if not Path(folder).is_dir():
        return False
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize > 2 << 30 and not status.f_flag & os.ST_NOEXEC


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For unit tests alone, files of other kinds are not even imported."""
    wanted = str(config.getoption("markexpr", ""))
    file = collection_path.suffix == ".py"
    return True if file and wanted.startswith("unit") and kind(collection_path) != "unit" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every test its kind, and begin with the dear kinds: both cores then end together."""
    share = EXAMPLES.get(str(config.getoption("hypothesis_profile", None) or "ci"), 1)
    tests = {id(test): test for item in items if (test := getattr(item, "obj", None)) is not None}
    for test in tests.values() if share > 1 else ():
        _fewer(test, share)
    for item in items:
        if not any(item.get_closest_marker(name) for name in KINDS):
            item.add_marker(kind(item.path))
    items.sort(key=lambda item: kind(item.path) == "unit" and item.path.parent != HERE)


def pytest_collection_finish() -> None:
    """Every collection of garbage would look at all modules and tests again."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test's time limit ends what hangs, not what a busy machine does slowly."""
    mark = item.get_closest_marker("timeout")
    seconds = item.config.getoption("timeout") or float(item.config.getini("timeout"))
    limit = patience(mark.args[0] if mark else seconds)
    item.add_marker(pytest.mark.timeout(limit), append=False)
    return (yield)


def _fewer(test: Any, share: int) -> None:
    """So small a share of the examples that a property asks for, but two at least."""
    asked = getattr(test, "_hypothesis_internal_use_settings", None)
    if asked is not None:
        fewer = settings(asked, max_examples=max(2, asked.max_examples // share))
        test._hypothesis_internal_use_settings = fewer


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, or a skip that says why."""
    folder = os.environ.get("TACIT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TACIT_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
