"""What a package says of itself is typed and bounded, and so are its options."""

from typing import Any

import pytest

from privacy.task_package.archive import PackageError
from privacy.task_package.manifest import parse_manifest

BASE = """
name = "mine"
version = "1"
kind = "classification"
licence = "MIT"
classes = ["no", "yes"]
needs = ["numpy>=1"]
[x.image]
shape = [1, "size", "size"]
[options.size]
type = "integer"
default = 8
min = 4
max = 64
[options.kind]
type = "choice"
default = "a"
values = ["a", "b"]
[options.share]
type = "number"
default = 0.5
min = 0
[options.deep]
type = "boolean"
default = false
"""


def test_options_have_defaults_and_decide_shapes() -> None:
    found = parse_manifest(BASE)
    assert found.resolved({}) == {"size": 8, "kind": "a", "share": 0.5, "deep": False}
    assert found.shapes({}) == {"image": (1, 8, 8)}
    assert found.shapes({"size": 16}) == {"image": (1, 16, 16)}
    assert found.label_of({}) == ((), "int64")
    assert found.missing() == []


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"size": 3}, "task_options.size must be an integer >= 4 and <= 64, got 3"),
        ({"size": 8.0}, "task_options.size must be an integer"),
        ({"size": True}, "task_options.size must be an integer"),
        ({"kind": "c"}, "task_options.kind must be one of a, b"),
        ({"share": -1}, "task_options.share must be a number >= 0, got -1"),
        ({"deep": 1}, "task_options.deep must be true or false"),
        ({"other": 1}, "task_options.other must be one of deep, kind, share, size"),
    ],
)
def test_an_option_keeps_to_its_type_and_bounds(given: dict[str, Any], text: str) -> None:
    with pytest.raises(PackageError, match=text):
        parse_manifest(BASE).resolved(given)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('name = "mine"', 'name = "a b"', "name must be"),
        ('kind = "classification"', 'kind = "magic"', "kind must be one of"),
        ('licence = "MIT"\n', "", "licence is missing"),
        ('classes = ["no", "yes"]', 'classes = ["no"]', "classes must be at least 2"),
        ('classes = ["no", "yes"]', 'classes = ["no", "no"]', "different names"),
        ("default = 8", "default = 99", "options.size.default must be an integer"),
        ('shape = [1, "size", "size"]', "shape = [0]", "x.image must be whole numbers"),
        ('shape = [1, "size", "size"]', 'shape = ["kind"]', "x.image must be whole numbers"),
        ('shape = [1, "size", "size"]', "shape = [100000, 1000]", "at most"),
        ('needs = ["numpy>=1"]', 'needs = ["???"]', "needs must be requirements"),
        ('needs = ["numpy>=1"]', "other = 1", "unknown key other"),
        ("[x.image]", "[y.image]", "unknown key y"),
        ('kind = "classification"', 'kind = "regression"', "bounds must be"),
        ('kind = "classification"', 'kind = "survival"', "times must be rising"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_by_its_key(old: str, new: str, text: str) -> None:
    assert old in BASE
    with pytest.raises(PackageError, match=text):
        parse_manifest(BASE.replace(old, new, 1))


def test_a_needed_package_that_is_not_here_is_named() -> None:
    found = parse_manifest(BASE.replace("numpy>=1", "numpy>=999"))
    assert found.missing()[0].startswith("numpy: must be numpy>=999, got ")
    found = parse_manifest(BASE.replace("numpy>=1", "no-such-distribution-here"))
    assert found.missing() == [
        "no-such-distribution-here: must be no-such-distribution-here, is not installed"
    ]
