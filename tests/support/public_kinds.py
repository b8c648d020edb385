"""Task packages of public data, as somebody writes them who started from `tacit-simulate new`.

Each is what was changed in a template (simulations/templates): the sources are read by the tests of
packages, which make the data's files from the published sets.
"""

from typing import Final

HEART: Final = """
from torch import nn

BOUNDS = {
    "age": (30, 80), "sex": (0, 1), "trestbps": (90, 200), "chol": (100, 400), "fbs": (0, 1),
    "thalach": (80, 200), "exang": (0, 1), "oldpeak": (0, 4),
}
VALUES = {"cp": ("1", "2", "3", "4"), "restecg": ("0", "1", "2")}
NAMES = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")


def read(path, options):
    for file in [path] if path.is_file() else sorted(path.glob("processed.*.data")):
        hospital = file.name.split(".")[1]
        for line in file.read_text().splitlines():
            values = line.split(",")
            yield hospital, dict(zip(NAMES, values)), values[13]


def encode(record, options):
    site, row, label = record
    x = []
    for name in NAMES:
        if name in VALUES:
            text = str(int(float(row[name])))
            x += [1.0 if text == value else -1.0 for value in VALUES[name]]
        else:
            low, high = BOUNDS[name]
            x.append(2 * (min(max(float(row[name]), low), high) - low) / (high - low) - 1)
    return {"x": x, "y": int(int(label) > 0), "site": site}


def model(options):
    layer = nn.Linear(15, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
"""
HEART_MANIFEST: Final = """
name = "heart"
version = "1"
kind = "classification"
licence = "MIT"
classes = ["healthy", "disease"]
test = 0.34
[x.values]
shape = [15]
"""

CLOTHES: Final = """
import numpy as np
from PIL import Image
from torch import nn


def read(path, options):
    yield from [path] if path.is_file() else sorted(path.rglob("*.png"))


def encode(record, options):
    pixels = np.asarray(Image.open(record).convert("L"), np.float32)
    site, label = record.parts[-3:-1]
    return {"x": pixels[None] / 127.5 - 1, "y": label, "site": site}


def model(options):
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2), nn.GroupNorm(4, 16), nn.Tanh(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10),
    )
"""
CLOTHES_MANIFEST: Final = """
name = "clothes"
version = "0.1"
kind = "classification"
licence = "MIT"
classes = ["top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "shoe", "bag", "boot"]
[x.pixels]
shape = [1, 28, 28]
"""

SPOKEN: Final = """
import wave

import numpy as np
from torch import nn


def read(path, options):
    yield from [path] if path.is_file() else sorted(path.rglob("*.wav"))


def encode(record, options):
    with wave.open(str(record)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
    starts = np.linspace(0, max(len(sound) - 256, 0), 16).astype(int)
    padded = np.concatenate([sound, np.zeros(256)])
    frames = np.stack([padded[at : at + 256] for at in starts]) * np.hanning(256)
    power = np.abs(np.fft.rfft(frames, axis=1))[:, 1:] ** 2
    bands = [part.mean(1) for part in np.array_split(power, 32, axis=1)]
    spectrum = np.log10(np.stack(bands) + 1e-6) / 3 + 1
    return {"x": spectrum[None], "y": record.stem.split("_")[0], "site": record.parent.name}


def model(options):
    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 16, 10))
"""
SPOKEN_MANIFEST: Final = """
name = "spoken"
version = "0.1"
kind = "classification"
licence = "MIT"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
[x.spectrum]
shape = [1, 32, 16]
"""

PLAY: Final = """
import string

from torch import nn

CHARACTERS = "\\n !$&',-.3:;?" + string.ascii_letters


def read(path, options):
    for file in [path] if path.is_file() else sorted(path.glob("*.txt")):
        for block in file.read_text().split("\\n\\n"):
            role, _, speech = block.partition(":\\n")
            for end in range(9, len(speech), 4):
                yield role, speech[end - 9 : end]


def encode(record, options):
    role, text = record
    *before, following = [CHARACTERS.index(character) for character in text]
    return {"x": before, "y": following, "site": role}


def model(options):
    return nn.Sequential(nn.Embedding(65, 16), nn.Flatten(), nn.Linear(8 * 16, 65))
"""
PLAY_MANIFEST: Final = """
name = "play"
version = "0.1"
kind = "classification"
licence = "MIT"
classes = {classes}
[x.before]
shape = [8]
dtype = "int64"
""".replace("{classes}", str([f"character {i}" for i in range(65)]).replace("'", '"'))

FILMS: Final = """
import csv

from torch import nn

GENRES = (
    "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
)


def read(path, options):
    with open(path / "movies.csv") as file:
        films = {film["movieId"]: film for film in csv.DictReader(file)}
    with open(path / "ratings.csv") as file:
        for line in csv.DictReader(file):
            yield line, films[line["movieId"]]


def encode(record, options):
    rating, film = record
    year = int(film["title"].strip()[-5:-1])
    x = [1.0 if genre in film["genres"] else 0.0 for genre in GENRES]
    group = "group-%d" % (int(rating["userId"]) % 3)
    return {
        "x": [*x, (min(max(year, 1930), 2020) - 1975) / 45], "y": float(rating["rating"]),
        "site": group, "subject": rating["userId"],
    }


def model(options):
    return nn.Linear(18, 1)
"""
FILMS_MANIFEST: Final = """
name = "films"
version = "0.1"
kind = "regression"
licence = "MIT"
bounds = [0.5, 5.0]
subjects = true
[x.film]
shape = [18]
"""
