"""`tacit-client serve` under schemathesis: what its OpenAPI description says is what it does.

It needs schemathesis' command line in an environment of its own (`pip install schemathesis`), named
by SCHEMATHESIS or found on PATH: its pins are not those of the product.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.models import own_key, release
from tests.support.patience import patience

ROOT = Path(__file__).parents[2]
SCHEMATHESIS = os.environ.get("SCHEMATHESIS") or shutil.which("schemathesis") or ""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,"
CHECKS += "response_schema_conformance,unsupported_method"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SCHEMATHESIS, reason="schemathesis is not installed"),
]


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The service's port."""
    folder, log = tmp_path / "run", tmp_path / "log"
    folder.mkdir()
    release(folder, 5, key=own_key(folder))
    words = ["serve", "--model", str(folder), "--listen", "127.0.0.1:0"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "client", *words], cwd=ROOT, stderr=file, stdout=file
        )
    try:
        deadline = time.monotonic() + patience(60)
        while "listening on" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield int(log.read_text().split("listening on http://127.0.0.1:")[1].split()[0])
        assert "failed:" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_every_answer_is_one_that_the_description_names(port: int, tmp_path: Path) -> None:
    words = [SCHEMATHESIS, "run", f"http://127.0.0.1:{port}/openapi.json", "--checks", CHECKS]
    more = ["--max-examples", "50", "--seed", "1", "--no-color"]
    result = subprocess.run(
        [*words, *more],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
    assert "POST /predict" in result.stdout or "test cases generated" in result.stdout
