"""The part of task.py that reading needs, told from its text."""

import ast

from privacy.task_package.archive import Package
from privacy.task_package.reading_part import loads_torch, reading_part

SOURCE = '''"""What it is."""

import csv
import torch
from torch import nn
from torch.nn import functional as F

NAMES = ("a", "b")


def scaled(text):
    return float(text) / 2


class Mean(nn.Module):
    def forward(self, x):
        return F.relu(x)


def read(path, options):
    yield from csv.reader(path.open())


def encode(record, options):
    return [scaled(text) for text in record], 0


def model(options):
    return Mean()
'''


def part_of(source: str) -> ast.Module:
    return reading_part(Package({"task.py": source.encode()}, b""))


def test_what_the_model_alone_needs_is_left_out_and_lines_stay() -> None:
    part = part_of(SOURCE)
    functions = [one for one in part.body if isinstance(one, ast.FunctionDef)]
    assert [(one.name, one.lineno) for one in functions] == [
        ("scaled", 11),
        ("read", 20),
        ("encode", 24),
    ]
    assert not loads_torch(part)
    assert [ast.unparse(one) for one in part.body[1:3]] == ["import csv", "NAMES = ('a', 'b')"]


def test_whatever_reading_names_stays_with_what_that_names() -> None:
    used = SOURCE.replace("def scaled(text):", "def scaled(text):\n    Mean()")
    part = part_of(used)
    assert loads_torch(part)
    assert {"Mean", "scaled"} <= {getattr(one, "name", "") for one in part.body}
    assert "import torch" not in [ast.unparse(one) for one in part.body]
    assert "from torch import nn" in [ast.unparse(one) for one in part.body]


def test_statements_that_do_something_stay_and_so_do_other_imports() -> None:
    more = SOURCE.replace("NAMES =", "LAYER = nn.Linear(1, 1)\nNAMES =").replace(
        "import csv", "import csv\nimport pillow_avif"
    )
    part = part_of(more)
    texts = [ast.unparse(one) for one in part.body]
    assert {"import pillow_avif", "LAYER = nn.Linear(1, 1)", "from torch import nn"} <= set(texts)
    assert loads_torch(part_of(SOURCE.replace("import csv", "import csv, my_codec")))
    assert loads_torch(part_of(SOURCE.replace("import csv", "import csv, safetensors.torch")))
    decorated = SOURCE.replace("def model(options)", "@torch.no_grad()\ndef model(options)")
    assert loads_torch(part_of(decorated))
