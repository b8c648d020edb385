"""Every test runs quiet, single-threaded and in folders of its own."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from privacy.runtime import prepare

os.environ.update(
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
    FLWR_HOME=tempfile.mkdtemp(prefix="tacit-test-flwr-"),
)
prepare()


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
