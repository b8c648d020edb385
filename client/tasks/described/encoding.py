"""One record as arrays: a picture's pixels, a sound's spectrum, a text's words, a window's values.

Each by itself and by public rules alone: fixed filters, a public hash, or a frozen public backbone.
"""

import hashlib
import re
import wave
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.tasks.described.description import Description
from client.tasks.described.networks import Input
from client.tasks.features import scattering, wavelets
from client.tasks.features.backbones import Backbone
from client.tasks.features.pretrained import Frozen, Kind, frozen
from client.tasks.features.summaries import summary, summary_width
from client.tasks.rows import TaskError

_PIXELS_MAX: Final = 64_000_000
_FRAME: Final = 0.032
_WORD: Final = re.compile(r"\w+")
_FILTERS: Final = {
    "edges": (scattering.WIDTH, scattering.oriented),
    "wavelets": (wavelets.WIDTH, wavelets.features),
}
"""Fixed public filters by name: how many numbers they make of a picture, and how."""
Arrays = dict[str, NDArray[Any]]


def inputs_of(about: Description) -> dict[str, Input]:
    """The arrays of a row, by name."""
    if about.backbone:
        return {"features": Input((about.vector,))}
    if about.reader == "images":
        if about.filters != "none":
            return {"pixels": Input((_FILTERS[about.filters][0],))}
        return {"pixels": Input((about.channels, *about.size))}
    if about.reader == "sounds":
        return {"spectrum": Input((1, about.bands, about.frames))}
    if about.reader == "texts":
        return {"words": Input((about.length,), about.words)}
    if about.reader == "series":
        if about.summary:
            return {"window": Input((summary_width(len(about.columns)),))}
        return {"window": Input((len(about.columns), about.length))}
    return {name: Input(rule.shape, rule.words or 0) for name, rule in about.x.items()}


def backbone_of(about: Description) -> Frozen | None:
    """The frozen model that the records are seen through; TaskError where it is not the wanted one.

    A loaded model is kept, so that a record asks for it again.
    """
    if not about.backbone:
        return None
    kind: Kind = "images" if about.reader == "images" else "sounds"
    size = about.size if kind == "images" else ()
    known = Backbone(about.backbone, about.digest)
    model = frozen(kind, known, vector=about.vector, size=size)
    if kind == "sounds" and model.rate != about.rate:
        raise TaskError(f"schema: rate must be {model.rate}, the backbone's, got {about.rate}")
    return model


def pixels_of(about: Description, file: Path) -> Arrays:
    """A picture at the schema's size: its pixels, or what filters or a backbone make of them."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.width * image.height > _PIXELS_MAX:
                raise ValueError("a picture of fewer pixels")
            height, width = about.size
            mode = "L" if about.channels == 1 else "RGB"
            small = image.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(small, np.float32) / 127.5 - 1
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError):
        raise ValueError("a picture that can be read") from None
    if (model := backbone_of(about)) is not None:
        light = np.asarray((pixels.transpose(2, 0, 1) + 1) / 2, np.float32)
        return {"features": model.picture(light)}
    if about.filters != "none":
        seen = _FILTERS[about.filters][1](torch.from_numpy((pixels[None] + 1) / 2))
        return {"pixels": seen[0].numpy()}
    shaped = pixels[None] if about.channels == 1 else pixels.transpose(2, 0, 1)
    return {"pixels": np.ascontiguousarray(shaped)}


def _samples(about: Description, file: Path) -> NDArray[np.float64]:
    """A sound's samples in -1..1, its channels' mean, of at most the schema's length."""
    try:
        with wave.open(str(file)) as sound:
            if sound.getsampwidth() != 2 or sound.getframerate() != about.rate:
                raise ValueError(f"a wav file of 16 bits at {about.rate} Hz")
            count = min(sound.getnframes(), int(about.seconds * about.rate) + 1)
            raw = np.frombuffer(sound.readframes(count), "<i2").astype(np.float64)
            if sound.getnchannels() > 1:
                raw = raw.reshape(-1, sound.getnchannels()).mean(1)
    except (wave.Error, EOFError, OSError):
        raise ValueError("a wav file that can be read") from None
    return raw[: max(1, int(about.seconds * about.rate))] / 2**15


def sound_of(about: Description, file: Path) -> Arrays:
    """A sound as the logarithm of a short-time spectrum in bands, or what a backbone makes of it.

    A spectrum is taken at evenly spaced times of a fixed length.
    """
    raw = _samples(about, file)
    if (model := backbone_of(about)) is not None:
        return {"features": model.sound(raw)}
    frame = max(16, int(_FRAME * about.rate))
    whole = max(int(about.seconds * about.rate), frame)
    samples = np.zeros(whole)
    samples[: len(raw)] = raw[:whole]
    starts = np.linspace(0, whole - frame, about.frames).astype(int)
    window = np.hanning(frame)
    power = np.abs(np.fft.rfft(samples[starts[:, None] + np.arange(frame)] * window, axis=1)) ** 2
    wide = np.unique(np.geomspace(1, power.shape[1], about.bands + 1).round().astype(int))
    if len(wide) <= about.bands:  # too few frequencies for bands that grow
        wide = np.linspace(1, power.shape[1], about.bands + 1).astype(int)
    bands = [power[:, a : max(b, a + 1)].mean(1) for a, b in pairwise(wide)]
    spectrum = (np.log10(np.stack(bands) + 1e-6) + 2) / 4
    return {"spectrum": spectrum.astype(np.float32)[None]}


def words_of(about: Description, text: str) -> Arrays:
    """A text's words as ids by a public hash, in their order; 0 fills it up."""
    words = _WORD.findall(text.casefold())[: about.length]
    places = np.zeros(about.length, np.int64)
    for i, word in enumerate(words):
        number = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        places[i] = 1 + number % (about.words - 1)
    return {"words": places}


def ranged_of(about: Description, name: str, value: NDArray[Any]) -> NDArray[Any]:
    """One array of a row, its public range mapped to -1..1; or ids. ValueError says what fits."""
    rule = about.x[name]
    if value.shape != rule.shape or value.dtype.kind not in "biuf":
        raise ValueError(f"numbers of shape {list(rule.shape)} in {name}")
    if rule.words is not None:
        if value.dtype.kind == "f" or (value < 0).any() or (value >= rule.words).any():
            raise ValueError(f"ids from 0 to {rule.words - 1} in {name}")
        return value.astype(np.int64)
    low, high = rule.range or (0.0, 1.0)
    held = np.clip(value.astype(np.float64), low, high)
    return np.asarray(2 * (held - low) / (high - low) - 1, np.float32)


def window_of(about: Description, rows: list[Mapping[str, str]]) -> Arrays:
    """Steps of a series as a window [columns, length], or its summary."""
    out = np.empty((len(about.columns), about.length), np.float32)
    for i, (name, (low, high)) in enumerate(about.columns.items()):
        try:
            values = np.array([float(row[name]) for row in rows])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"numbers in the column {name}") from None
        out[i] = 2 * (np.clip(values, low, high) - low) / (high - low) - 1
    return {"window": summary(out) if about.summary else out}
