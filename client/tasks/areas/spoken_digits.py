"""Spoken digits by speaker: the Free Spoken Digit Dataset, 3,000 clips of six people.

A clip is 16 x 10 cepstra (`client.tasks.features.spectra`), and a linear layer of random features
of these is learnt. Speakers are the sites. The published test clips are held out: those of each
digit and speaker with the indices 0 to 4.
"""

import re
import struct
import wave
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.data.wanted import Wanted
from client.tasks.areas.pieces import Piece
from client.tasks.features.public_layers import RandomFeatures
from client.tasks.features.spectra import WIDTH, cepstra
from client.tasks.losses import classification_metrics, cross_entropy, linear, probabilities, seeded
from client.tasks.rows import Encoded, NoRows, Omission, Reading, Rows, TaskError, check_part
from client.tasks.task import Task

LENGTH: Final = 2.0
"""Of a clip's numbers before the linear layer."""
FEATURES: Final = 512
SCALE: Final = 1.15
"""How finely random features tell clips apart; chosen on clips that are trained on."""
TESTED: Final = 5
"""Clips of each digit and speaker that are held out."""
SECONDS: Final = 10
_NAME: Final = re.compile(r"([0-9])_([A-Za-z0-9-]{1,40})_([0-9]{1,6})")
_ARRAYS: Final = ("audio", "length", "digit", "speaker", "index", "speaker_names")
_CHUNK: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """One recording: where it is, its samples and their rate, and what its name says."""

    place: str
    samples: NDArray[np.float32] | None
    rate: int
    digit: str
    speaker: str
    index: int


def clips(path: Path | None) -> Iterator[Clip]:
    """The clips of a folder of DIGIT_SPEAKER_INDEX.wav files, or of an npz of all of them."""
    if path is None:
        raise TaskError("data: expected the folder of the recordings, got none")
    packed = [path] if path.is_file() and path.suffix == ".npz" else sorted(path.glob("*.npz"))
    if len(packed) == 1:
        yield from _packed(packed[0])
        return
    files = [path] if path.is_file() else sorted(path.rglob("*.wav"))
    if not files:
        raise TaskError(f"{path}: expected DIGIT_SPEAKER_INDEX.wav files, found none")
    for file in files:
        known = _NAME.fullmatch(file.stem)
        digit, speaker, index = known.groups() if known else ("", "", "0")
        samples, rate = _wave(file)
        yield Clip(file.name, samples, rate, digit, speaker, int(index))


def _wave(file: Path) -> tuple[NDArray[np.float32] | None, int]:
    try:
        with wave.open(str(file)) as sound:
            rate, channels = sound.getframerate(), sound.getnchannels()
            if sound.getsampwidth() != 2 or not 4000 <= rate <= 192_000:
                return None, rate
            raw = np.frombuffer(sound.readframes(rate * SECONDS), "<i2").astype(np.float32)
            return raw.reshape(-1, channels).mean(1) / 2**15, rate
    except (wave.Error, EOFError, OSError, ValueError, ArithmeticError, struct.error):
        return None, 0  # whatever a damaged file makes of them


def _packed(file: Path) -> Iterator[Clip]:
    """All clips one after the other in `audio` (8 kHz), with their lengths and what they are."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            audio, length, digit, speaker, index, names = (archive[name] for name in _ARRAYS)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise TaskError(f"{file}: expected the arrays {', '.join(_ARRAYS)}") from None
    facts = (length, digit, speaker, index)
    if len({one.shape for one in facts}) != 1 or {one.dtype.kind for one in facts} - {"i", "u"}:
        raise TaskError(f"{file}: expected a length, digit, speaker and index for each clip")
    if audio.ndim != 1 or audio.dtype.kind not in "if" or names.ndim != 1 or length.ndim != 1:
        raise TaskError(f"{file}: expected audio and names of speakers, one after the other")
    ends = np.cumsum(np.maximum(length.astype(np.int64), 0))
    for i, end in enumerate(ends):
        part = audio[max(end - max(int(length[i]), 0), 0) : end]
        whole = end <= len(audio) and 0 <= speaker[i] < len(names) and 0 <= digit[i] < 10
        samples = part[: 8000 * SECONDS].astype(np.float32) / 2**15 if whole else None
        name = str(names[speaker[i]]) if whole else ""
        yield Clip(f"clip {i + 1}", samples, 8000, str(digit[i]), name, int(index[i]))


def read(path: Path, labels: bool) -> Iterator[tuple[Rows, Piece]]:
    """The clips piece by piece; one that cannot be read is a fault."""
    following = enumerate(clips(path))
    while some := list(islice(following, _CHUNK)):
        x, y, piece, sites = [], [], Piece(), []
        numbers, places = [], []
        for number, clip in some:
            expected = "a wav file of 16 bits" if clip.samples is None else ""
            if labels and not clip.digit:
                expected = "a name DIGIT_SPEAKER_INDEX.wav"
            try:
                if clip.samples is None or expected:
                    raise ValueError(expected)
                x.append(cepstra(clip.samples, clip.rate))
            except ValueError as error:
                fault = {"row": number, "place": clip.place, "column": "the clip"}
                piece.faults.append(fault | {"expected": str(error)})
                continue
            y.append(int(clip.digit or 0))
            sites.append(clip.speaker)
            numbers.append(number)
            places.append(clip.place)
        piece.arrays["number"] = np.array(numbers, np.int64)
        piece.texts["id"] = places
        if labels:
            piece.arrays["y"] = np.array(y, np.int64)
        rows = np.stack(x) if x else np.zeros((0, WIDTH), np.float32)
        known = tuple(sites) if any(sites) else None
        yield Rows(torch.from_numpy(rows), torch.tensor(y, dtype=torch.int64), known), piece


def load(path: Path | None, part: str) -> Rows:
    """The clips of "train", "test" or "all"; those that cannot be read are left out, and told."""
    check_part(part)
    x, y, sites, held = [], [], [], []
    lost: list[str] = []
    for clip in clips(path):
        try:
            if clip.samples is None or not clip.digit:
                raise ValueError
            row = cepstra(clip.samples, clip.rate)
        except ValueError:
            lost.append(clip.place)
            continue
        x.append(row)
        y.append(int(clip.digit))
        sites.append(clip.speaker)
        held.append(clip.index < TESTED)
    expected = "a wav file of 16 bits named DIGIT_SPEAKER_INDEX.wav"
    if not x:
        raise NoRows(f"{path}: expected clips, {expected}, found none")
    why = (Omission("the clip", expected, len(lost), lost[0]),) if lost else ()
    count = len(x) + len(lost)
    reading = Reading(count, count, len(lost), why)
    rows = Rows(torch.from_numpy(np.stack(x)), torch.tensor(y), tuple(sites), None, reading)
    if part == "all":
        return rows
    return rows.take(np.flatnonzero(np.array(held) == (part == "test")))


def _encode(table: Any) -> Encoded:
    raise TaskError("spoken-digits reads sounds, and no table of columns")


def _model() -> nn.Module:
    return nn.Sequential(RandomFeatures(WIDTH, FEATURES, SCALE, LENGTH), linear(FEATURES, 10))


def task() -> Task:
    """Softmax regression of random features of cepstra."""
    return Task(
        name="spoken-digits",
        kind="classification",
        classes=tuple("0123456789"),
        inputs=(),
        label="digit",
        shape=(WIDTH,),
        model=seeded(_model),
        load=load,
        wanted=Wanted(()),
        encode=_encode,
        loss=cross_entropy,
        metrics=classification_metrics,
        decode=probabilities,
        read=read,
    )
