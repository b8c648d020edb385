"""What trackers are told is the history, no more and no less, and once."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.registry import sites as members
from server.rounds.run_folder import FolderError
from server.tracking import TrackingError, scalars, track
from tests.support.federation import now
from tests.support.run_folders import run_folder

tensorboard = pytest.importorskip("tensorboardX")
mlflow = pytest.importorskip("mlflow")


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def expected(run: Path) -> dict[tuple[str, int], float]:
    return {
        (name, line["round"]): value
        for line in history(run)
        for name, value in scalars(line).items()
    }


def events(folder: Path) -> dict[tuple[str, int], float]:
    """Every scalar of the event files: a length, a checksum, the event, a checksum (TFRecord)."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.iterdir():
        content, place = path.read_bytes(), 0
        while place < len(content):
            (size,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + size])
            place += size + 16
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_folder(tmp_path / "runs" / "one")


def test_a_rounds_numbers_are_its_metrics_epsilon_seconds_and_sites(run: Path) -> None:
    line = history(run)[-1]
    found = scalars(line)
    assert found["epsilon/most"] == line["epsilon"]
    assert found["round/sites_trained"] == len(line["sites"])
    assert {n.removeprefix("metrics/") for n in found if n.startswith("metrics/")} == set(
        line["metrics"]
    )
    site, said = next(iter(line["sites"].items()))
    assert found[f"epsilon/{site}"] == said["epsilon"]


def test_event_files_hold_the_history(run: Path, tmp_path: Path) -> None:
    assert track(run, tensorboard=tmp_path / "tb") == len(history(run))
    found = events(tmp_path / "tb" / "one")
    assert found == pytest.approx(expected(run))


def test_an_mlflow_run_holds_the_history_once_and_the_plan(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    for _ in range(2):
        track(run, mlflow=uri)
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("tacit").experiment_id])
    points = {
        (name, point.step): point.value
        for name in found.data.metrics
        for point in client.get_metric_history(found.info.run_id, name)
    }
    assert points == pytest.approx(expected(run))
    assert len(client.get_metric_history(found.info.run_id, "round/seconds")) == len(history(run))
    assert found.data.params["task"] == "digits"
    assert found.info.run_name == "one"


def test_rounds_that_come_later_are_written_too(run: Path, tmp_path: Path) -> None:
    lines = (run / "history.jsonl").read_text().splitlines(keepends=True)
    (run / "history.jsonl").write_text(lines[0] + lines[1][:10])
    looks = []

    def until() -> bool:
        looks.append(len(looks))
        if len(looks) == 2:
            (run / "history.jsonl").write_text("".join(lines))
        return len(looks) > 2

    assert track(run, tensorboard=tmp_path / "tb", until=until) == len(lines)
    assert events(tmp_path / "tb" / "one") == pytest.approx(expected(run))


def test_a_server_that_cannot_be_used_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(TrackingError, match="--mlflow file:"):
        track(run, mlflow=(tmp_path / "mlruns").as_uri())


def test_nothing_to_write_to_and_no_run_are_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="must be given"):
        track(run)
    with pytest.raises(FolderError):
        track(tmp_path / "absent", tensorboard=tmp_path)


def test_a_tracker_that_is_not_installed_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(TrackingError, match=r"pip install 'tacit\[tensorboard\]'"):
        track(run, tensorboard=tmp_path / "tb")


def test_the_command_says_how_many_rounds_were_written(run: Path, tmp_path: Path) -> None:
    from server.__main__ import app

    home = tmp_path / "home"
    members.create(home, ["127.0.0.1"], now())
    shutil.copytree(run, home / "runs" / "one")
    words = ["track", "one", "--dir", str(home), "--tensorboard", str(tmp_path / "events")]
    told = CliRunner().invoke(app, words)
    assert told.output == "one: 4 rounds written\n", told.exception
    assert events(tmp_path / "events" / "one") == pytest.approx(expected(run))
