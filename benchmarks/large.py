"""What a round costs beside its mathematics where the model is large: two sites, one step of each.

    python benchmarks/large.py [--parameters 1000000,10000000] [--rounds 5] [--profile]

CPU seconds of a round of the serial engine (messages, ledgers, training, aggregation, checkpoint)
against those of both sites' plain SGD steps on the same rows, taken in turns; the peak of memory,
over what is there after a run of a small model, in copies of the model: until the first round has
ended, in which the model is examined, and in later rounds; how often SHA-256 goes over how many
bytes. On Linux.
"""

import argparse
import cProfile
import hashlib
import math
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from privacy.runtime import prepare

prepare()

import torch
from sklearn.datasets import load_digits
from table import save, show, versions
from torch import nn
from torch.nn import functional

from privacy.contract.plan import Plan, Simulation
from simulations.own_task import OwnData
from simulations.run import simulate

SITES, ROWS = 2, 32


def main() -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", default="1000000,10000000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines, result = [], {}
    measure(10_000, 1, profile=False)  # what is loaded at first use is no copy of a model
    for size in map(int, chosen.parameters.split(",")):
        found = measure(size, chosen.rounds, profile=chosen.profile)
        result[str(size)] = found
        cells = ("round", "plain", "ratio", "first", "later", "hashed")
        lines.append([f"{size:.0e}", *(f"{found[cell]:.3g}" for cell in cells)])
    columns = (
        "parameters",
        "CPU s a round",
        "plain maths",
        "ratio",
        "copies, first round",
        "later",
        "hashed",
    )
    note = "hashed: in models, a round; copies: of both sites and the coordinator in one process"
    show("A round of one step at two sites", columns, lines, note)
    save("large", {"sizes": result, "versions": versions("torch", "numpy")})


def measure(size: int, rounds: int, *, profile: bool) -> dict[str, float]:
    """One size's figures; what loading and the first round take is left out of the seconds."""
    width = width_of(size)
    plan = Plan(
        task="large",
        rounds=rounds + 1,
        rate=ROWS / 500,
        rows=500,
        lr=0.1,
        sites=SITES,
        steps=1,
        clip=1.0,
        sigma=1.0,
        delta=1e-4,
        simulation=Simulation("serial"),
    )
    with tempfile.TemporaryDirectory() as folder:
        ends: list[float] = []
        plains: list[float] = []
        other = network(width)
        model = 4 * sum(p.numel() for p in other.parameters())
        step, often = plain(other), 1 + 10_000_000 // size  # the clock may tick in 4 ms
        before, peaks = memory("VmRSS"), list[int]()
        forget_peak()
        profiler = cProfile.Profile() if profile else None
        counting = Hashed()

        def on_round(_: Any) -> None:
            ends.append(time.process_time())
            peaks.append(memory("VmHWM"))
            begin = time.process_time()
            for _ in range(SITES * often):
                step()
            plains.append((time.process_time() - begin) / often)
            forget_peak()
            ends.append(time.process_time())
            if len(ends) == 2:
                counting.bytes = 0
                if profiler is not None:
                    profiler.enable()

        with counting:
            simulate(
                plan,
                Path(folder) / "run",
                task=partial(network, width),
                data=digits(),
                on_round=on_round,
            )
        if profiler is not None:
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    each = [end - begin for begin, end in zip(ends[1::2], ends[2::2], strict=False)]
    median, base = statistics.median(each), statistics.median(plains[1:])
    return {
        "round": median,
        "plain": base,
        "ratio": median / base,
        "first": (peaks[0] - before) / model,
        "later": (max(peaks[1:]) - before) / model,
        "hashed": counting.bytes / model / rounds,
    }


def memory(what: str) -> int:
    """Bytes of this process: VmRSS, what it has now, or VmHWM, the most since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{what}:")[1].split()[0])


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


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


def width_of(size: int) -> int:
    """Of two equal hidden layers in a model of `size` numbers."""
    return int(math.sqrt(37**2 + size) - 37)


def network(width: int) -> nn.Module:
    """64 numbers to ten classes."""
    return nn.Sequential(
        *(nn.Linear(64, width), nn.Tanh()),
        *(nn.Linear(width, width), nn.Tanh()),
        nn.Linear(width, 10),
    )


def plain(model: nn.Module) -> Callable[[], None]:
    """A step of plain SGD on as many rows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(ROWS, 64), torch.randint(0, 10, (ROWS,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    return step


def digits() -> OwnData:
    """500 rows a site, and few to evaluate on."""
    images, labels = load_digits(return_X_y=True)
    x, y = images / 8 - 1, labels.astype(int)
    held = slice(SITES * 500, SITES * 500 + 20)
    return OwnData(x[: held.start], y[: held.start], list(range(10)), test=(x[held], y[held]))


if __name__ == "__main__":
    main()
