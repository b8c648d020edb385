"""Reading source: what is refused, what is left to a person, and honest packages pass."""

import pytest

from privacy.task_package.archive import Package
from privacy.task_package.manifest import parse_manifest
from privacy.task_package.source_check import findings, imports

MANIFEST = parse_manifest(
    'name = "a"\nversion = "1"\nkind = "classification"\nlicence = "MIT"\n'
    'classes = ["n", "y"]\n[x.a]\nshape = [2]\n'
)
HONEST = """
import csv
import math
import re
from pathlib import Path
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WORD = re.compile(r"[a-z]+")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x)
        h += F.relu(h)
        return self.last(h)

    def train(self, mode=True):
        super().train(mode)
        self.mode = mode
        return self


def model(options):
    return Net()


def read(path, options):
    with open(path) as file:
        yield from csv.DictReader(file)


def encode(record, options):
    return np.array([float(record["a"]), math.pi]), record["y"]
"""


def said(source: str) -> list[str]:
    package = Package({"task.py": source.encode(), "task.toml": b""}, b"")
    return [one.text for one in findings(package, MANIFEST) if one.refused]


def test_an_honest_package_is_refused_nothing() -> None:
    assert said(HONEST) == []
    package = Package({"task.py": HONEST.encode()}, b"")
    expected = ("csv", "math", "numpy", "pathlib", "re", "torch", "torch.nn")
    assert imports(package) == expected
    judged = [str(one) for one in findings(package, MANIFEST)]
    assert judged == ["task.py:36: opens files"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("import socket", "imports socket"),
        ("import os", "imports os"),
        ("from privacy.mechanism import noise", "imports privacy.mechanism"),
        ("import pickle", "imports pickle"),
        ("import requests", "imports requests"),
        ("import numpy.f2py", "imports numpy.f2py"),
        ("import torch.multiprocessing as mp", "imports torch.multiprocessing"),
        ("from torch import load", "imports load of torch"),
        ("from torch import *", "imports * of torch"),
        ("import pandas", "which task.toml does not list under needs"),
        ("from . import other", "imports"),
        ("a = torch.load('x')", "uses the attribute load"),
        ("import torch as t\na = t.load('x')", "uses the attribute load"),
        ("a = torch.hub.load('x', 'y')", "uses the attribute hub"),
        ("np.save('x', 1)", "uses the attribute save"),
        ("a = np.load('x', allow_pickle=True)", "uses allow_pickle"),
        ("a = eval('1')", "uses eval"),
        ("a = __import__('os')", "uses __import__"),
        ("a = ().__class__.__bases__[0].__subclasses__()", "__subclasses__"),
        ("a = getattr(np, 'sa' + 've')", "uses getattr with a name that is not plain"),
        ("a = getattr(np, '__dict__')", "uses getattr"),
        ("torch.relu = None", "changes the module torch"),
        ("nn.functional.relu = None", "changes the module nn"),
        ("Path('x').write_text('y')", "uses the attribute write_text"),
        ("def later():\n    global WORD\n    WORD = 1", "keeps state (global)"),
        (
            "class M(nn.Module):\n    def forward(self, x):\n        self.seen = x\n",
            "keeps state from batch to batch (self.seen)",
        ),
        ("a = 1 # \u202e", "holds a hidden character"),
        ("a = (", "must be Python"),
    ],
)
def test_what_reaches_outside_is_refused(line: str, text: str) -> None:
    assert any(text in one for one in said(HONEST + line)), said(HONEST + line)


def test_the_functions_of_a_task_must_be_there() -> None:
    assert said("x = 1") == [
        "must define the function encode",
        "must define the function model",
        "must define the function read",
    ]
    values = parse_manifest(
        'name = "a"\nversion = "1"\nkind = "values"\nlicence = "MIT"\n[x.a]\nshape = [2]\n'
    )
    package = Package({"task.py": HONEST.encode()}, b"")
    texts = [one.text for one in findings(package, values) if one.refused]
    assert texts == [
        'must define the function loss where kind = "values"',
        'must define the function metrics where kind = "values"',
    ]
