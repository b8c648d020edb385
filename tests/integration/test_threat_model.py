"""docs/threat-model.md: every threat names a defence and tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "threat-model.md").read_text("utf-8")


def threats() -> list[tuple[str, str, str]]:
    """Threat, defence and tests of each row below a head of these three."""
    rows, inside = [], False
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| threat | defence | test |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            assert len(cells) == 3, line
            rows.append((cells[0].strip(), cells[1], cells[2]))
    return rows


@pytest.mark.parametrize("row", threats(), ids=lambda row: row[0][:40])
def test_a_threat_has_a_defence_and_tests_that_exist(row: tuple[str, str, str]) -> None:
    threat, defence, tests = row
    assert threat and len(defence) > 20
    paths = re.findall(r"`([^`]+)`", tests)
    assert paths, "no test is named"
    for path in paths:
        place = ROOT / "tests" / path
        files = sorted(place.glob("test_*.py")) if path.endswith("/") else [place]
        assert files and all("def test_" in file.read_text("utf-8") for file in files), path


def test_every_kind_of_actor_is_answered_and_every_hostile_test_is_named() -> None:
    assert len(threats()) > 30
    named = set(re.findall(r"`attacks/([a-z_]+\.py)`", TEXT))
    hostile = {path.name for path in (ROOT / "tests" / "attacks").glob("test_*.py")}
    assert {name for name in hostile - named if not name.endswith("_plants.py")} == set()


def test_a_boundarys_reader_is_a_file_of_the_product() -> None:
    part = TEXT.split("## Boundaries")[1].split("## Threats")[0]
    paths = re.findall(r"`((?:privacy|client|server)/[^`]*)`", part)
    assert len(paths) > 6
    assert not [path for path in paths if not (ROOT / path).exists()]
