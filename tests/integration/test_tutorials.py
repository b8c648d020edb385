"""The tutorials' commands are run as they stand, block after block, in one folder."""

import re
from pathlib import Path

import pytest

from tests.integration.test_readme import bash, free_port
from tests.support.patience import patience

DOCS = Path(__file__).resolve().parents[2] / "docs"


def script(page: str) -> str:
    """All shell blocks of a page, at a free port; each must succeed."""
    text = (DOCS / "tutorials" / page).read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert blocks
    return "set -e\n" + "\n".join(blocks).replace("8443", str(free_port()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "ends"),
    [
        ("hospital.md", "prediction"),
        ("researcher.md", "no violation found"),
        ("officer.md", "1.8283"),
    ],
)
def test_a_tutorial_runs_as_it_stands(page: str, ends: str, tmp_path: Path) -> None:
    done = bash(script(page), tmp_path, patience(500))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert ends in done.stdout
    assert "nobody noticed" not in done.stdout
