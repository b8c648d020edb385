"""A schema that names a reader: what the rows are, in public words; nothing is read here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from annotated_types import Interval, Len, Predicate

from client.tasks.rows import TaskError
from privacy.contract.keys.types import NAME
from privacy.contract.schema import Expected, build, check
from privacy.files import DocumentError, parse_toml
from privacy.task_package.manifest import Kind, Line, Lines, Numbers

READERS: Final = ("images", "arrays", "sounds", "texts", "series")
Reader = Literal["images", "arrays", "sounds", "texts", "series"]
BACKBONES: Final = ("images", "sounds")
"""The readers whose records can be seen through a backbone; for texts take a table's column."""
DIGEST: Final = '"sha256:" and 64 hexadecimal digits'
Side = Annotated[int, Interval(ge=1, le=4096)]
Pair = Annotated[tuple[float, ...], Len(2, 2), Expected("[low, high]")]


def _is_name(text: str) -> bool:
    return not text or NAME.fullmatch(text) is not None


def _is_digest(text: str) -> bool:
    return not text or re.fullmatch(r"sha256:[0-9a-f]{64}", text) is not None


@dataclass(frozen=True, slots=True)
class ArrayRule:
    """One array of an npz: its shape without the rows, and its public range or number of ids."""

    shape: Annotated[tuple[Side, ...], Len(0, 5), Expected("a list of whole numbers")] = ()
    range: Pair | None = None
    words: Annotated[int, Interval(ge=2, le=10_000_000)] | None = None

    def __post_init__(self) -> None:
        check(self, TaskError, "schema: x.")
        if (self.range is None) == (self.words is None):
            raise TaskError("schema: x must have exactly one of range = [low, high] and words")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise TaskError("schema: x.range must be [low, high] with low < high")


@dataclass(frozen=True, slots=True)
class Description:
    """What a schema with a `reader` says; docs/no-code.md has each key's meaning."""

    reader: Reader
    kind: Kind = "classification"
    classes: Lines = ()
    bounds: Numbers = ()
    times: Numbers = ()
    test: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    label: Line = "label"
    subject: Line = ""
    site: Line = ""
    manifest: Line = ""
    file: Line = "file"
    folders: Lines = ("label",)
    backbone: Annotated[str, Predicate(_is_name), Expected("the name of a backbone")] = ""
    digest: Annotated[str, Predicate(_is_digest), Expected(DIGEST)] = ""
    vector: Annotated[int, Interval(ge=0, le=65_536)] = 0
    size: Annotated[tuple[Side, ...], Len(2, 2), Expected("[height, width]")] = (28, 28)
    channels: Literal[1, 3] = 1
    filters: Literal["none", "edges", "wavelets"] = "none"
    rate: Annotated[int, Interval(ge=1000, le=192_000)] = 16_000
    seconds: Annotated[float, Interval(ge=0.01, le=600)] = 1.0
    bands: Annotated[int, Interval(ge=4, le=256)] = 32
    frames: Annotated[int, Interval(ge=1, le=4096)] = 32
    text: Line = "text"
    words: Annotated[int, Interval(ge=16, le=1_000_000)] = 4096
    length: Annotated[int, Interval(ge=1, le=65_536)] = 64
    series: Line = ""
    summary: bool = False
    stride: Annotated[int, Interval(ge=1, le=65_536)] | None = None
    columns: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    delimiter: Line = ","
    x: Mapping[str, ArrayRule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, TaskError, "schema: ")
        if self.kind in ("tokens", "values"):
            raise TaskError(f"schema: kind {self.kind} needs a task package of your own")
        if self.kind in ("classification", "multi-label", "ordinal") and len(self.classes) < 2:
            raise TaskError("schema: classes must be at least 2 names")
        if len(set(self.classes)) < len(self.classes):
            raise TaskError("schema: classes must be different names")
        if self.kind == "regression" and not (
            len(self.bounds) == 2 and self.bounds[0] < self.bounds[1]
        ):
            raise TaskError("schema: bounds must be [low, high] with low < high")
        rising = all(a < b for a, b in zip(self.times, self.times[1:], strict=False))
        if self.kind == "survival" and (len(self.times) < 2 or not rising):
            raise TaskError("schema: times must be rising edges of bins")
        if self.reader == "arrays" and not self.x:
            raise TaskError("schema: x must describe the arrays, as [x.NAME]")
        if self.reader == "series":
            if not self.columns or not self.series:
                raise TaskError("schema: columns and series must be given for windows of a series")
            if any(len(b) != 2 or not b[0] < b[1] for b in self.columns.values()):
                raise TaskError("schema: columns must be NAME = [low, high] with low < high")
        if self.filters != "none" and (self.reader, self.channels, self.size) != (
            *("images", 1),
            (28, 28),
        ):
            raise TaskError("schema: filters are for images of channels = 1 and size = [28, 28]")
        self._check_backbone()
        if self.summary and self.reader != "series":
            raise TaskError("schema: summary must be left out unless reader is series")
        if len(self.delimiter) != 1:
            raise TaskError("schema: delimiter must be one character")

    def _check_backbone(self) -> None:
        """A backbone has its digest and the width of its vectors beside it, and fits the reader."""
        if not self.backbone:
            for key in ("digest", "vector"):
                if getattr(self, key):
                    raise TaskError(f"schema: {key} must be left out without a backbone")
            return
        if self.reader not in BACKBONES:
            raise TaskError(
                f"schema: backbone must be left out unless reader is {' or '.join(BACKBONES)}"
            )
        if not self.digest:
            raise TaskError(f"schema: digest must be {DIGEST} beside a backbone")
        if not self.vector:
            raise TaskError("schema: vector must be how many numbers the backbone gives a record")
        if self.reader == "images" and (self.channels != 3 or self.filters != "none"):
            raise TaskError("schema: channels must be 3, without filters, beside a backbone")


def described(text: str) -> Description:
    """The description in a schema's text; TaskError names the key that is wrong."""
    try:
        table: dict[str, Any] = dict(parse_toml(text))
    except DocumentError as error:
        raise TaskError(f"schema: {error}") from None
    arrays = table.get("x", {})
    if not isinstance(arrays, dict) or not all(isinstance(v, dict) for v in arrays.values()):
        raise TaskError("schema: x must be tables, as [x.NAME]")
    table["x"] = {
        name: build(ArrayRule, _floats(rule, "range"), TaskError, f"schema: x.{name}.")
        for name, rule in arrays.items()
    }
    columns = table.get("columns", {})
    if not isinstance(columns, dict) or not all(isinstance(v, list) for v in columns.values()):
        raise TaskError("schema: columns must be a table, NAME = [low, high]")
    table["columns"] = {
        name: tuple(float(v) if type(v) is int else v for v in pair)
        for name, pair in columns.items()
    }
    return build(Description, _floats(table, "bounds", "times"), TaskError, "schema: ")


def reader_of(text: str) -> str:
    """The reader that a schema names; "table" where it names none."""
    try:
        reader = parse_toml(text).get("reader", "table")
    except DocumentError as error:
        raise TaskError(f"schema: {error}") from None
    if reader not in (*READERS, "table"):
        raise TaskError(f"schema: reader must be one of table, {', '.join(READERS)}")
    return str(reader)


def _floats(table: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Whole numbers in these lists as the numbers that they stand for."""
    values = dict(table)
    for key in keys:
        if isinstance(values.get(key), list):
            values[key] = [float(v) if type(v) is int else v for v in values[key]]
    return values
