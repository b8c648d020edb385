"""A task without code: a schema says what the rows are, the plan's `[model]` what is trained."""

import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.loading import chosen
from client.data.values import ABSENT, UNREADABLE
from client.data.wanted import Wanted
from client.tasks.described.description import Description, described
from client.tasks.described.encoding import backbone_of, inputs_of
from client.tasks.described.holding_out import number_of, units
from client.tasks.described.networks import Input, network, survival_network
from client.tasks.described.outcomes import LIST, outcome
from client.tasks.described.records import Record, records
from client.tasks.features.backbones import Backbone
from client.tasks.losses import seeded
from client.tasks.rows import Encoded, NoRows, Omission, Reading, Rows, TaskError, check_part
from client.tasks.task import Task
from privacy.contract.keys.tables import ModelPlan

_DEFAULT: Final = {
    "images": "cnn",
    "sounds": "cnn",
    "texts": "bag",
    "arrays": "linear",
    "series": "cnn",
}
_UNREADABLE: Final = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError),
    *(NotImplementedError, OSError, RuntimeError, SyntaxError, TypeError, struct.error, zlib.error),
)
_CHUNK: Final = 1024


def task(text: str, model: ModelPlan | None = None) -> Task:
    """The task that a schema with a reader describes; TaskError names what is wrong."""
    about = described(text)
    inputs = inputs_of(about)
    chosen_model = model or _default(about, inputs)
    hazard = chosen_model.hazard or "logistic"
    learnt = outcome(
        about.kind, classes=about.classes, bounds=about.bounds, times=about.times, hazard=hazard
    )
    types = {n: torch.int64 if one.words else torch.float32 for n, one in inputs.items()}
    shapes = {n: (one.shape, types[n]) for n, one in inputs.items()}
    single = len(inputs) == 1
    name = next(iter(inputs))
    label_shape, label_type = _label_form(about)
    source = _Source(about, inputs)
    build = survival_network if about.kind == "survival" else network
    with torch.random.fork_rng(devices=[]):
        build(chosen_model, inputs, learnt.width)  # refused here, if it does not fit
    return Task(
        name=about.reader,
        kind=about.kind,
        classes=about.classes,
        inputs=(),
        label=about.label,
        shape=inputs[name].shape if single else (),
        model=seeded(lambda: build(chosen_model, inputs, learnt.width)),
        load=source.load,
        wanted=Wanted(()),
        encode=_no_columns,
        loss=learnt.loss,
        metrics=learnt.metrics,
        decode=learnt.decode,
        dtype=types[name],
        subjects=names_people(about),
        x_shapes={} if single else shapes,
        y_shape=label_shape,
        y_dtype=label_type,
        read=source.read,
        times=about.times,
        pretrained=(Backbone(about.backbone, about.digest).words,) if about.backbone else (),
        costly=bool(about.filters != "none" or about.summary or about.backbone),
    )


def _default(about: Description, inputs: Mapping[str, Input]) -> ModelPlan:
    if len(inputs) > 1:
        return ModelPlan(name="mixed")
    if about.summary:
        return ModelPlan(name="linear", norm=2.0, random=512)
    if about.backbone:
        return ModelPlan(name="linear", norm=3.0)
    if about.filters != "none":
        return ModelPlan(name="linear")
    words = next(iter(inputs.values())).words
    usual: Any = "bag" if words else _DEFAULT[about.reader]
    return ModelPlan(name=usual)


def names_people(about: Description) -> bool:
    """Whether every record says whose it is."""
    return bool(about.subject) or ("subject" in about.folders and not about.manifest)


def _label_form(about: Description) -> tuple[tuple[int, ...], torch.dtype]:
    if about.kind in ("classification", "ordinal"):
        return (), torch.int64
    if about.kind == "multi-label":
        return (len(about.classes),), torch.float32
    return ((2,) if about.kind == "survival" else ()), torch.float32


def _no_columns(table: Any) -> Encoded:
    raise TaskError("a reader by name reads its own files, and no table of columns")


@dataclass(slots=True, eq=False)
class _Part:
    """Records that were made into numbers, and what is said of the others."""

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    about: Description
    inputs: Mapping[str, Input]

    def load(self, path: Path | None, part: str) -> Rows:
        """The rows of "train", "test" or "all", each held out by what it is."""
        check_part(part)
        if path is None:
            raise TaskError(f"data: expected the path of the {self.about.reader}, got none")
        parts = list(self._parts(path, labels=True, people=True))
        reading = _reading(parts)
        filled = [one for one in parts if one.arrays]
        if not filled:
            raise NoRows(f"{path}: expected records that fit, got none among {reading}")
        whole = _Part(
            {n: np.concatenate([one.arrays[n] for one in filled]) for n in filled[0].arrays},
            {n: [text for one in filled for text in one.texts[n]] for n in filled[0].texts},
        )
        rows = replace(self._rows(whole), reading=reading)
        if part == "all":
            return rows
        held = chosen(units(rows), self.about.test)
        return rows.take(np.flatnonzero(held if part == "test" else ~held))

    def read(self, path: Path, labels: bool) -> Iterator[tuple[Rows, Any]]:
        """The rows piece by piece, for prediction and evaluation."""
        for part in self._parts(path, labels=labels):
            yield self._rows(part), part

    def _parts(self, path: Path, *, labels: bool, people: bool = False) -> Iterator[_Part]:
        backbone_of(self.about)  # refused once, not record by record
        following = enumerate(records(self.about, path))
        while some := list(islice(following, _CHUNK)):
            yield self._part(some, labels, people)

    def _part(self, some: list[tuple[int, Record]], labels: bool, people: bool) -> _Part:
        """With `people`, a record that must say whose it is and does not is left out."""
        about = self.about
        people = people and names_people(about)
        part, entries = _Part(), list[tuple[int, Record, dict[str, Any], Any]]()
        for number, record in some:
            if people and (record.subject.strip() in ABSENT or UNREADABLE in record.subject):
                subject = about.subject or "the subject's folder"
                part.faults.append(_fault(number, record, subject, "a value"))
                continue
            try:
                arrays = record.arrays()
            except TaskError:
                raise
            except ValueError as error:
                part.faults.append(_fault(number, record, "the record", str(error)))
                continue
            except _UNREADABLE:  # what a picture's or a sound's library makes of a crafted file
                expected = "a record that can be read"
                part.faults.append(_fault(number, record, "the record", expected))
                continue
            try:
                y = self._label(record.label) if labels else None
            except (ValueError, TypeError, LookupError):
                part.faults.append(_fault(number, record, about.label, _wanted(about)))
                continue
            entries.append((number, record, arrays, y))
        if not entries:
            return part
        part.arrays = {
            f"x/{n}": np.stack([arrays[n] for _, _, arrays, _ in entries]) for n in self.inputs
        }
        part.arrays["number"] = np.array([number for number, _, _, _ in entries], np.int64)
        if labels:
            part.arrays["y"] = np.stack([y for _, _, _, y in entries])
        part.texts = {"id": [record.place for _, record, _, _ in entries]}
        if about.site or "site" in about.folders:
            part.texts["site"] = [record.site for _, record, _, _ in entries]
        subjects = [record.subject for _, record, _, _ in entries]
        if people or any(subjects):
            part.texts["subject"] = subjects
        return part

    def _label(self, raw: Any) -> NDArray[Any]:
        about = self.about
        if raw is None:
            raise ValueError
        if about.kind in ("classification", "ordinal"):
            return np.asarray(about.classes.index(_text(raw)), np.int64)
        if about.kind == "multi-label":
            names = {one.strip() for one in str(raw).split(LIST) if one.strip()}
            if names - set(about.classes):
                raise ValueError
            return np.array([name in names for name in about.classes], np.float32)
        if about.kind == "survival":
            values = raw if isinstance(raw, np.ndarray) else str(raw).split(LIST)
            time, event = (float(one) for one in values)
            if not 0 <= time < 1e30 or event not in (0.0, 1.0):
                raise ValueError
            return np.array([time, event], np.float32)
        value = float(raw)
        if not np.isfinite(value) or (about.kind == "counts" and value < 0):
            raise ValueError
        if about.kind == "counts":
            return np.asarray(value, np.float32)
        low, high = about.bounds
        held = min(max(value, low), high)
        return np.asarray(2 * (held - low) / (high - low) - 1, np.float32)

    def _rows(self, part: _Part) -> Rows:
        x = {
            name: torch.from_numpy(part.arrays[f"x/{name}"])
            if part.arrays
            else torch.zeros((0, *one.shape), dtype=torch.int64 if one.words else torch.float32)
            for name, one in self.inputs.items()
        }
        count = len(next(iter(x.values())))
        y = torch.from_numpy(part.arrays["y"]) if "y" in part.arrays else torch.zeros(count)
        subject = part.texts.get("subject")
        return Rows(
            next(iter(x.values())) if len(x) == 1 else x,
            y,
            tuple(part.texts["site"]) if "site" in part.texts else None,
            None
            if subject is None
            else torch.tensor([number_of(one.encode()) for one in subject], dtype=torch.int64),
        )


def _text(raw: Any) -> str:
    """A label as its class is written; 3.0 of an array is 3."""
    if isinstance(raw, np.generic):
        raw = raw.item()
    if isinstance(raw, float) and raw == int(raw):
        raw = int(raw)
    return str(raw).strip()


def _wanted(about: Description) -> str:
    if about.kind in ("classification", "ordinal"):
        return f"one of {', '.join(about.classes[:20])}"
    words = {
        "multi-label": f"names of classes with {LIST!r} between them",
        "survival": f"a time, {LIST!r}, and 1 for an event or 0",
        "counts": "a count",
    }
    return words.get(about.kind, "a number")


def _fault(number: int, record: Record, column: str, expected: str) -> dict[str, Any]:
    return {"row": number, "place": record.place, "column": column, "expected": expected}


def _reading(parts: list[_Part]) -> Reading:
    """How many records were left out, and why: for their owner alone."""
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for part in parts:
        for fault in part.faults:
            key = (fault["column"], fault["expected"])
            counts[key] += 1
            first.setdefault(key, fault["place"])
    lost = sum(counts.values())
    fitting = sum(len(part.arrays["number"]) for part in parts if part.arrays)
    omissions = tuple(Omission(*key, count, first[key]) for key, count in counts.most_common(50))
    return Reading(fitting + lost, fitting + lost, lost, omissions)
