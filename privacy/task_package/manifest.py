"""`task.toml`: what a package says of itself, its options with their types and bounds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Final, Literal

from annotated_types import Interval, Len, MaxLen, Predicate
from packaging.requirements import InvalidRequirement, Requirement

from privacy.contract.keys.types import Code, Name
from privacy.contract.schema import Expected, build, check, shown
from privacy.files import DocumentError, Limits, parse_toml
from privacy.task_package.archive import MANIFEST, Package, PackageError
from privacy.task_package.installed import digest_of

LIMITS: Final = Limits(size=1 << 20)
KINDS: Final = (
    *("classification", "regression", "multi-label", "ordinal"),
    *("counts", "tokens", "survival", "values"),
)
Kind = Literal[
    "classification",
    "regression",
    "multi-label",
    "ordinal",
    "counts",
    "tokens",
    "survival",
    "values",
]
Option = str | int | float | bool
_WORD: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_WITH_CLASSES: Final = ("classification", "multi-label", "ordinal")
_MOST_NUMBERS: Final = 1 << 24
"""Numbers in one row: 64 MiB in float32."""


def _is_line(text: str) -> bool:
    return text.isprintable()


Line = Annotated[
    str, MaxLen(500), Predicate(_is_line), Expected("a line of at most 500 printable characters")
]
Lines = Annotated[tuple[Line, ...], Len(0, 10_000), Expected("a list of texts")]
Numbers = Annotated[tuple[float, ...], Len(0, 10_000), Expected("a list of numbers")]
Shape = Annotated[
    tuple[int | str, ...], Len(0, 6), Expected("a list of whole numbers or names of options")
]


@dataclass(frozen=True, slots=True)
class OptionRule:
    """One option: its default, and what else a plan may set."""

    type: Literal["integer", "number", "boolean", "choice"]
    default: Option
    min: float | None = None
    max: float | None = None
    values: Lines = ()

    def __post_init__(self) -> None:
        check(self, PackageError, "option.")

    def fits(self, value: object) -> bool:
        """Whether a value has the type and keeps to the bounds."""
        if self.type == "choice":
            return isinstance(value, str) and value in self.values
        if self.type == "boolean":
            return isinstance(value, bool)
        whole = self.type == "integer"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            return False
        low = -1e15 if self.min is None else self.min
        return low <= float(value) <= (1e15 if self.max is None else self.max)

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.type == "choice":
            return f"one of {', '.join(self.values)}"
        if self.type == "boolean":
            return "true or false"
        kind = "an integer" if self.type == "integer" else "a number"
        low = "" if self.min is None else f" >= {self.min:g}"
        high = "" if self.max is None else f"{' and' if low else ''} <= {self.max:g}"
        return kind + low + high


@dataclass(frozen=True, slots=True)
class Array:
    """One array of a row: its shape without the rows, and its type."""

    shape: Shape = ()
    dtype: Literal["float32", "int64", "bool"] = "float32"

    def __post_init__(self) -> None:
        check(self, PackageError, "x.")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `task.toml` says. Everything is public, and everything is in the digest.

    * `kind` says what a label is, and which loss, metrics and decoding the product has for it;
    * `x` are the arrays of a row by name; one alone is handed to the model by itself;
    * `classes` of a classification, of several labels, or ordered; `bounds` of a number;
    * `times` are the public edges of a survival task's bins;
    * `label_shape`, `label_dtype`: of kind "values" and "tokens", whose loss is the package's own;
    * `test` is the share of rows (or subjects) held out by a public hash; 0 where `encode` says
      itself of every row whether it is held out;
    * `subjects`: whether every row says whose it is, as a site's cap and the unit "subject" need;
    * `needs` are requirements, `packages` such whose installed files have one of these digests
      (privacy/task_package/installed.py);
    * `backbones` are frozen models by name, each with the digest of its files, which every site
      has: task.py finds their folders in BACKBONES (client/tasks/features/backbones.py);
    * `twins`: whether the product replaces LSTM, GRU, RNN and attention of the model by private
      twins, with their weights.
    """

    name: Name
    version: Annotated[Line, MaxLen(40)]
    kind: Kind
    licence: Line
    description: Line = ""
    x: Mapping[str, Array] = field(default_factory=dict)
    classes: Lines = ()
    bounds: Numbers = ()
    times: Numbers = ()
    label: Line = "label"
    label_shape: Shape = ()
    label_dtype: Literal["float32", "int64"] = "float32"
    test: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    subjects: bool = False
    twins: bool = False
    needs: Lines = ()
    packages: Mapping[str, Annotated[tuple[Code, ...], Len(1, 20)]] = field(default_factory=dict)
    backbones: Mapping[Name, Code] = field(default_factory=dict)
    options: Mapping[str, OptionRule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, PackageError)
        if self.kind in _WITH_CLASSES and len(self.classes) < 2:
            raise PackageError(f"classes must be at least 2 names where kind = {self.kind!r}")
        if len(set(self.classes)) < len(self.classes):
            raise PackageError("classes must be different names")
        if self.kind == "regression" and not (
            len(self.bounds) == 2 and self.bounds[0] < self.bounds[1]
        ):
            raise PackageError(
                'bounds must be [low, high] with low < high where kind = "regression"'
            )
        rising = all(a < b for a, b in zip(self.times, self.times[1:], strict=False))
        if self.kind == "survival" and (len(self.times) < 2 or not rising):
            raise PackageError('times must be rising edges of bins where kind = "survival"')
        if not self.x:
            raise PackageError("x must describe at least one array: [x.NAME] shape, dtype")
        for name in (*self.x, *self.options):
            if not _WORD.fullmatch(name):
                raise PackageError(
                    f"{shown(name)} must be a name of lower-case letters, digits and _"
                )
        for name, rule in self.options.items():
            if not rule.fits(rule.default):
                raise PackageError(
                    f"options.{name}.default must be {rule.expected}, got {shown(rule.default)}"
                )
        self.shapes({})
        self.label_of({})

    def resolved(self, given: Mapping[str, Any]) -> dict[str, Option]:
        """Every option's value: the plan's, else the default; PackageError names a wrong one."""
        for name, value in given.items():
            rule = self.options.get(name)
            if rule is None:
                known = ", ".join(sorted(self.options)) or "none"
                raise PackageError(f"task_options.{name[:40]} must be one of {known}")
            if not rule.fits(value):
                raise PackageError(
                    f"task_options.{name} must be {rule.expected}, got {shown(value)}"
                )
        return {name: given.get(name, rule.default) for name, rule in self.options.items()}

    def shapes(self, given: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The shape of every array of a row, with the options' values in it."""
        values = self.resolved(given)
        return {name: _sized(f"x.{name}", one.shape, values) for name, one in self.x.items()}

    def label_of(self, given: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
        """The shape and type of a label."""
        if self.kind in ("classification", "ordinal"):
            return (), "int64"
        if self.kind == "multi-label":
            return (len(self.classes),), "float32"
        if self.kind in ("regression", "counts"):
            return (), "float32"
        if self.kind == "survival":
            return (2,), "float32"
        dtype = "int64" if self.kind == "tokens" else self.label_dtype
        return _sized("label_shape", self.label_shape, self.resolved(given)), dtype

    def missing(self) -> list[str]:
        """The needed packages that are not installed here, each in one line."""
        problems = []
        for text in (*self.needs, *self.packages):
            wanted = Requirement(text)
            try:
                have = version(wanted.name)
            except PackageNotFoundError:
                problems.append(f"{wanted.name}: must be {text}, is not installed")
                continue
            if not wanted.specifier.contains(have, prereleases=True):
                problems.append(f"{wanted.name}: must be {text}, got {have}")
                continue
            if digests := self.packages.get(text):
                problems += _other_files(wanted.name, digests)
        return problems


def _other_files(name: str, digests: tuple[str, ...]) -> list[str]:
    try:
        digest = digest_of(name)
    except PackageError as error:
        return [str(error)]
    if digest in digests:
        return []
    return [f"{name}: must be the files of {' or '.join(digests)}, got those of {digest}"]


def manifest_of(package: Package) -> Manifest:
    """The manifest of a package; PackageError names the key that is wrong."""
    try:
        return parse_manifest(package.files[MANIFEST])
    except PackageError as error:
        raise PackageError(f"{MANIFEST}: {error}") from None


def parse_manifest(text: bytes | str) -> Manifest:
    """A manifest from TOML text; PackageError names the key that is wrong."""
    try:
        table = parse_toml(text, LIMITS)
    except DocumentError as error:
        raise PackageError(str(error)) from None
    values = dict(table)
    for key, kind in (("x", Array), ("options", OptionRule)):
        inner = values.get(key, {})
        if not isinstance(inner, dict) or not all(isinstance(v, dict) for v in inner.values()):
            raise PackageError(f"{key} must be tables, as [{key}.NAME]")
        values[key] = {
            name: build(kind, keys, PackageError, f"{key}.{name}.") for name, keys in inner.items()
        }
    for key in ("bounds", "times"):
        if isinstance(values.get(key), list):
            values[key] = [float(v) if type(v) is int else v for v in values[key]]
    packages = values.get("packages", {})
    if not isinstance(packages, dict):
        raise PackageError('packages must be a table, "NAME==VERSION" = "sha256:..."')
    values["packages"] = {
        k: (v,) if isinstance(v, str) else tuple(v) if isinstance(v, list) else v
        for k, v in packages.items()
    }
    needs = values.get("needs")
    for key, texts in (("needs", needs if isinstance(needs, list) else ()), ("packages", packages)):
        for text_ in texts:
            try:
                Requirement(text_)
            except (InvalidRequirement, TypeError):
                raise PackageError(
                    f"{key} must be requirements as scipy>=1.15, got {shown(text_)}"
                ) from None
    return build(Manifest, values, PackageError)


def _sized(key: str, shape: Shape, options: Mapping[str, Option]) -> tuple[int, ...]:
    sizes, total = [], 1
    for one in shape:
        size = options.get(one) if isinstance(one, str) else one
        if type(size) is not int or not 1 <= size <= _MOST_NUMBERS:
            raise PackageError(f"{key} must be whole numbers or options that are, got {shown(one)}")
        sizes.append(size)
        total *= size
    if total > _MOST_NUMBERS:
        raise PackageError(f"{key} must have at most {_MOST_NUMBERS} numbers a row, got {total}")
    return tuple(sizes)
