"""Every shipped area the whole way with few rows: simulated, reported, exported, predicted."""

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from privacy.__main__ import app as privacy_app
from privacy.contract.plan_file import load_plan
from simulations.run import simulate
from simulations.templates import drives
from tests.support.models import command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def clips(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for speaker in ("ann", "bob"):
        for digit in range(3):
            for index in range(9):
                time = np.arange(2400) / 8000
                pitch = 300 * (digit + 1) * draw.uniform(0.95, 1.05)
                sound = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * draw.normal(size=2400)
                with wave.open(str(folder / f"{digit}_{speaker}_{index}.wav"), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(8000)
                    file.writeframes((sound * 32767).astype("<i2").tobytes())


def play(folder: Path) -> None:
    draw = np.random.default_rng(0)
    words = [
        "the",
        "king",
        "is",
        "dead",
        "long",
        "live",
        "the",
        "queen",
        "and",
        "all",
        "her",
        "men",
    ]
    blocks = [f"ROLE {n % 30}:\n{' '.join(draw.choice(words, 12))}" for n in range(90)]
    (folder / "input.txt").write_text("\n\n".join(blocks) + "\n")


def films(folder: Path) -> None:
    draw = np.random.default_rng(0)
    lines = ["userId,movieId,rating,timestamp"]
    for user in range(60):
        for film in draw.choice(50, 20, replace=False):
            stars = np.clip(round(2 * draw.normal(2.5 + film / 25, 0.5)) / 2, 0.5, 5)
            lines.append(f"{user},{film},{stars},0")
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")


def messages(folder: Path) -> None:
    draw = np.random.default_rng(0)
    kinds = {"spam": ["free", "prize", "win", "call"], "ham": ["home", "dinner", "ok", "soon"]}
    lines = []
    for number in range(120):
        kind = "spam" if number % 3 == 0 else "ham"
        lines.append(f"{kind}\t{' '.join(draw.choice(kinds[kind], 4))} {number}")
    (folder / "sms.tsv").write_text("\n".join(lines) + "\n")


def vehicles(folder: Path) -> None:
    drives.write(folder, vehicles=2, pictures=80)


FILES = {
    "sms-spam-small": "sms.tsv",
    "spoken-digits": ".",
    "shakespeare": "input.txt",
    "movielens": "ratings.csv",
    "driving": "drives.csv",
    "driving-stop": "drives.csv",
}
AREAS: dict[str, Callable[[Path], None]] = {
    "sms-spam-small": messages,
    "spoken-digits": clips,
    "shakespeare": play,
    "movielens": films,
    "driving": vehicles,
    "driving-stop": vehicles,
}


@pytest.mark.parametrize("area", AREAS)
def test_an_area_goes_the_whole_way(area: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    AREAS[area](data)
    sets = ["rounds=3", "delta=0.001"]
    if area in ("shakespeare", "movielens"):
        sets.append("sites=2")
    folder = tmp_path / "run"
    result = simulate(load_plan(area, sets), folder, data=data)
    assert result.outcome.reason == "done" and result.summary["metrics"]
    filed = CliRunner().invoke(privacy_app, ["report", str(folder), "--json"])
    assert filed.exit_code == 0, filed.output
    source = data / FILES[area]
    out = tmp_path / "predicted.csv"
    predicted = command("predict", "--model", folder, "--data", source, "--out", out)
    assert predicted.code == 0, predicted.err
    assert len(out.read_text().splitlines()) > 1
    measured = command("evaluate", "--model", folder, "--data", source, "--json")
    assert measured.code == 0, measured.err
    graph = tmp_path / "model.onnx"
    written = command("export", "--model", folder, "--format", "onnx", "--out", graph)
    assert written.code == 0, written.err
    again = command("predict", "--model", graph, "--data", source, "--out", tmp_path / "2.csv")
    assert again.code == 0, again.err
