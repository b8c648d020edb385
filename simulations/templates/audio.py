"""Recordings in folders: DATA/SITE/CLASS_NUMBER.wav, 16 bits, one channel. Change what differs."""

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

FRAME = 256


def read(path: Path, options: dict[str, Any]) -> Iterator[Path]:
    """One raw record after the other; nothing is computed from more than one of them."""
    yield from [path] if path.is_file() else sorted(path.rglob("*.wav"))


def encode(record: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One record to the logarithm of its short-time spectrum, in 16 steps of time."""
    with wave.open(str(record)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
    starts = np.linspace(0, max(len(sound) - FRAME, 0), 16).astype(int)
    padded = np.concatenate([sound, np.zeros(FRAME)])
    frames = np.stack([padded[at : at + FRAME] for at in starts]) * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames, axis=1))[:, 1:] ** 2
    bands = [part.mean(1) for part in np.array_split(power, options["bands"], axis=1)]
    spectrum = np.log10(np.stack(bands) + 1e-6) / 3
    return {"x": spectrum[None], "y": record.stem.split("_")[0], "site": record.parent.name}


def model(options: dict[str, Any]) -> nn.Module:
    """Whatever keeps examples apart: no BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 2),
    )
