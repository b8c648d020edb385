"""`tacit-simulate new`: a task package that runs at once, with rows and a plan beside it."""

import csv
import shutil
import wave
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np

from client.tasks.rows import TaskError
from privacy.contract.keys.types import NAME
from privacy.task_package.archive import MANIFEST, SOURCE

_SITES: Final = ("north", "east", "south")
_EACH: Final = 60
"""Made-up rows a site."""

PLAN: Final = """# tacit-simulate {name}/plan.toml --task {name}/task --data {data}
task = "{name}"
split = "natural"       # the sites are those that encode names
rounds = 20
rate = 0.5              # each step draws a row with this probability
rows = "actual"
lr = 2.0
clip = 1.0              # the most that one row's gradient may weigh
epsilon = 8.0           # of the whole run, for one row
delta = 1e-4
"""


def new(folder: Path, kind: str, data: Path | None = None) -> list[Path]:
    """Write `folder`/task, `folder`/plan.toml and, without `data`, `folder`/data; the paths.

    The folder's name becomes the task's. TaskError where it is there already or is no name.
    """
    name = folder.name
    if not NAME.fullmatch(name):
        raise TaskError(f"NAME must be letters, digits, '_', '-' and '.', got {name!r:.80}")
    if folder.exists():
        raise TaskError(f"{folder}: exists already, expected a new name")
    if kind not in KINDS:
        raise TaskError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r:.40}")
    if data is not None and not data.exists():
        raise TaskError(f"--data must be a file or folder, got {data}")
    template = files("simulations").joinpath("templates")
    task = folder / "task"
    task.mkdir(parents=True)
    try:
        source = template.joinpath(f"{kind}.py").read_text("utf-8")
        manifest = template.joinpath(f"{kind}.toml").read_text("utf-8")
        (task / SOURCE).write_text(source, encoding="utf-8")
        (task / MANIFEST).write_text(manifest.replace('"NAME"', f'"{name}"'), encoding="utf-8")
        where = folder / "data" if data is None else data
        (folder / "plan.toml").write_text(PLAN.format(name=name, data=where), encoding="utf-8")
        if data is None:
            where.mkdir()
            KINDS[kind](where, np.random.default_rng(0))
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return [task, folder / "plan.toml", where]


def _images(folder: Path, draw: np.random.Generator) -> None:
    from PIL import Image

    for site in _SITES:
        for label in ("rising", "falling"):
            place = folder / site / label
            place.mkdir(parents=True)
            for i in range(_EACH // 2):
                pixels = draw.normal(60, 30, (16, 16))
                line = np.arange(16) if label == "falling" else np.arange(16)[::-1]
                pixels[line, (np.arange(16) + draw.integers(-3, 4)) % 16] += 150
                image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                image.save(place / f"{i:03}.png")


def _texts(folder: Path, draw: np.random.Generator) -> None:
    words = {
        "yes": ["good", "kind", "warm", "lovely", "glad", "fine", "bright"],
        "no": ["bad", "cold", "rude", "dull", "sorry", "grim", "poor"],
    }
    plain = ["the", "day", "was", "and", "we", "it", "all", "so", "then", "there", "a"]
    with (folder / "lines.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["site", "text", "label"])
        for site in _SITES:
            for i in range(_EACH):
                label = "yes" if i % 2 else "no"
                sentence = [*draw.choice(plain, 5), *draw.choice(words[label], 3)]
                lines.writerow([site, " ".join(draw.permutation(sentence)), label])


def _sounds(folder: Path, draw: np.random.Generator) -> None:
    for site in _SITES:
        (folder / site).mkdir()
        for i in range(_EACH):
            label, tone = ("low", 300) if i % 2 else ("high", 1500)
            time = np.arange(4000) / 8000
            sound = np.sin(2 * np.pi * tone * draw.uniform(0.8, 1.2) * time)
            sound = 0.4 * sound + 0.1 * draw.normal(size=4000)
            with wave.open(str(folder / site / f"{label}_{i:03}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


def _people(folder: Path, draw: np.random.Generator) -> None:
    with (folder / "people.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["site", "age", "visits", "pressure", "smoker", "ill"])
        for site in _SITES:
            for _ in range(_EACH):
                age, visits = int(draw.integers(18, 95)), int(draw.integers(0, 20))
                pressure, smoker = int(draw.normal(125, 20)), int(draw.integers(2))
                score = (age - 55) / 15 + (pressure - 125) / 20 + smoker
                ill = "yes" if score + draw.normal() > 0.5 else "no"
                lines.writerow([site, age, visits, pressure, smoker, ill])


def _windows(folder: Path, draw: np.random.Generator) -> None:
    for site in _SITES:
        with (folder / f"{site}.csv").open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            for i in range(_EACH):
                label = "moving" if i % 2 else "still"
                size = 1.0 if label == "moving" else 0.2
                values = size * np.sin(np.arange(64) * draw.uniform(0.3, 0.6)) + draw.normal(
                    0, 0.2, 64
                )
                lines.writerow([label, *(f"{value:.3f}" for value in values)])


KINDS: Final[dict[str, Callable[[Path, np.random.Generator], None]]] = {
    "image": _images,
    "text": _texts,
    "audio": _sounds,
    "table": _people,
    "series": _windows,
}
