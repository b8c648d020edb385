"""Sites behind relays are known by their heads alone: `status` names them with the last round."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.__main__ import app
from server.registry import head_files
from server.registry.head_files import beyond
from tests.support.federation import coordinator


def head(folder: Path, name: str, number: int, size: int = 1) -> None:
    line = {"site": name, "run": "r", "round": number, "n": number, "leaves": ["0" * 64] * size}
    folder.mkdir(exist_ok=True, mode=0o700)
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def test_status_shows_the_sites_behind_relays_as_far_as_their_heads_name_them(
    tmp_path: Path,
) -> None:
    home, _ = coordinator(tmp_path, "direct")
    folder = home / "heads"
    for number in range(1, 5):
        head(folder, "direct", number)
        head(folder, "far", number)
        head(folder, "farther@second", number, size=50)
    with (folder / "far.jsonl").open("a") as file:
        file.write('{"site": "far", "round": 9')  # a crash
    shown = CliRunner().invoke(app, ["status", "--dir", str(home)])
    assert shown.exit_code == 0, shown.output
    assert "far                  behind a relay; last seen in round 4 of run r, 4 entries" in (
        shown.stdout
    )
    assert "direct               behind" not in shown.stdout
    as_json = CliRunner().invoke(app, ["status", "--dir", str(home), "--json"])
    relayed = json.loads(as_json.stdout)["relayed"]
    assert [(one["site"], one["round"]) for one in relayed] == [("far", 4), ("farther", 4)]


@pytest.mark.parametrize("reach", [1, 10, 100, 10_000])
def test_the_last_line_is_found_however_long_it_is(
    reach: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_files, "_TAIL", reach)
    for number in (1, 2, 3):
        head(tmp_path / "heads", "far", number, size=number)
    assert beyond(tmp_path / "heads", []) == [{"site": "far", "run": "r", "round": 3, "entries": 3}]
    assert beyond(tmp_path / "heads", ["far"]) == []
    assert beyond(tmp_path / "absent", []) == []
