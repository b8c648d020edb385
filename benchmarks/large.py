"""What a round costs beside its mathematics where the model is large: two sites, one step of each.

    python benchmarks/large.py [--parameters 1000000,10000000] [--rounds 5] [--profile]

CPU seconds of a round of the serial engine (messages, ledgers, training, aggregation, checkpoint)
against those of both sites' plain SGD steps on the same rows, taken in turns; peak memory in copies
of the model; how often SHA-256 goes over how many bytes.
"""

import argparse
import cProfile
import hashlib
import itertools
import math
import pstats
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from privacy.runtime import prepare

prepare()

import torch
from sklearn.datasets import load_digits
from table import save, show, versions
from torch import nn
from torch.nn import functional

from privacy.contract.plan_file import load_plan
from simulations.run import simulate

SITES, ROWS = 2, 32
LAYERS_WIDEST = 4096


def main() -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", default="1000000,10000000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines, result = [], {}
    for size in map(int, chosen.parameters.split(",")):
        found = measure(size, chosen.rounds, profile=chosen.profile)
        result[str(size)] = found
        cells = ("round", "plain", "ratio", "copies", "hashed")
        lines.append([f"{size:.0e}", *(f"{found[cell]:.3g}" for cell in cells)])
    columns = (
        "parameters",
        "CPU s a round",
        "plain maths",
        "ratio",
        "copies of the model",
        "hashed",
    )
    show("A round of one step at two sites", columns, lines, "hashed: in models, a round")
    save("large", {"sizes": result, "versions": versions("torch", "numpy")})


def measure(size: int, rounds: int, *, profile: bool) -> dict[str, float]:
    """One size's figures; what loading and the first round take is left out of the seconds."""
    widths = hidden(size)
    with tempfile.TemporaryDirectory() as folder:
        plan = load_plan(write(Path(folder), widths), [f"rounds={rounds + 1}"])
        ends: list[float] = []
        plains: list[float] = []
        step = plain(widths)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        profiler = cProfile.Profile() if profile else None
        counting = Hashed()

        def on_round(_: Any) -> None:
            ends.append(time.process_time())
            begin = time.process_time()
            for _ in range(SITES):
                step()
            plains.append(time.process_time() - begin)
            ends.append(time.process_time())
            if len(ends) == 2:
                counting.bytes = 0
                if profiler is not None:
                    profiler.enable()

        with counting:
            simulate(plan, Path(folder) / "run", data=Path(folder) / "rows.csv", on_round=on_round)
        if profiler is not None:
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    each = [end - begin for begin, end in zip(ends[1::2], ends[2::2], strict=False)]
    model = 4 * sum(a * b for a, b in zip([64, *widths], [*widths, 10], strict=True))
    median, base = statistics.median(each), statistics.median(plains[1:])
    return {
        "round": median,
        "plain": base,
        "ratio": median / base,
        "copies": grown * 1024 / model,
        "hashed": counting.bytes / model / rounds,
    }


class Hashed:
    """How many bytes of large buffers SHA-256 is given."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> None:
        self._sha256 = hashlib.sha256

        def sha256(data: Any = b"", **options: Any) -> Any:
            return Counted(self, self._sha256(**options), data)

        hashlib.sha256 = sha256  # type: ignore[assignment]

    def count(self, data: Any) -> None:
        """What one call was given, if it is large."""
        if len(data) > 1 << 16:
            self.bytes += memoryview(data).nbytes

    def __exit__(self, *_: object) -> None:
        hashlib.sha256 = self._sha256  # type: ignore[assignment]


class Counted:
    """A SHA-256 whose large updates are counted."""

    def __init__(self, by: Hashed, real: Any, data: Any) -> None:
        self._by, self._real = by, real
        self.update(data)

    def update(self, data: Any) -> None:
        """Hash more."""
        self._by.count(data)
        self._real.update(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def hidden(size: int) -> list[int]:
    """Equal hidden layers, as few as a schema's widths allow, of some `size` numbers in all."""
    for square in itertools.count(1):
        width = int((math.sqrt(74**2 + 4 * square * size) - 74) / (2 * square))
        if width <= LAYERS_WIDEST:
            return [width] * (square + 1)
    raise ValueError(f"parameters: must be at least 1, got {size}")


def plain(widths: list[int]) -> Any:
    """A step of plain SGD of the same model on as many rows."""
    layers: list[nn.Module] = []
    for a, b in zip([64, *widths], widths, strict=False):
        layers += [nn.Linear(a, b), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(ROWS, 64), torch.randint(0, 10, (ROWS,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    return step


def write(folder: Path, widths: list[int]) -> str:
    """A table of digits under hidden layers; few rows to evaluate on."""
    images, labels = load_digits(return_X_y=True)
    names = [f"p{i}" for i in range(64)]
    cells = [[*map(int, row), int(label)] for row, label in zip(images, labels, strict=True)]
    for name, part in (("rows.csv", cells[: SITES * 500]), ("test.csv", cells[1000:1020])):
        lines = [[*names, "digit"], *part]
        (folder / name).write_text("\n".join(",".join(map(str, line)) for line in lines) + "\n")
    numbers = "".join(f'[columns.{n}]\ntype = "number"\nmin = 0\nmax = 16\n' for n in names)
    classes = ", ".join(f'"{digit}"' for digit in range(10))
    (folder / "schema.toml").write_text(
        f'label = "digit"\nhidden = {widths}\ntest = "test.csv"\n{numbers}'
        f'[columns.digit]\ntype = "category"\nvalues = [{classes}]\n'
    )
    (folder / "plan.toml").write_text(
        f'task = "table"\nschema = "schema.toml"\nsites = {SITES}\nrounds = 6\n'
        f"rate = {ROWS / 500}\n"
        'rows = "actual"\nlr = 0.1\nsteps = 1\nclip = 1.0\nsigma = 1.0\ndelta = 1e-4\n'
        '[simulation]\nengine = "serial"\n'
    )
    return str(folder / "plan.toml")


if __name__ == "__main__":
    main()
