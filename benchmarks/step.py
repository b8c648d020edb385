"""What a DP-SGD step costs, relative to a step of plain eager SGD on the same shapes.

Ours is the product's own `client.dpsgd.training.train`, with Poisson sampling, book-keeping
clipping and noise from the system's entropy; the plain step gets ready-made batches. Opacus' two
modes run beside them on the same batches with `torch.normal`. `--bfloat16` adds our own step in
that precision.

    python benchmarks/step.py [--models mlp,mnist-cnn] [--turns 15] [--threads 2] [--no-opacus]
        [--bfloat16] [--fastdp FOLDER] [--cpu] [--memory] [--seconds N]
"""

import argparse
import os
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contenders.fastdp import by_fastdp
from contenders.models import Language, Vision, resnet
from contenders.step_models import (
    Clicks,
    Recurrent,
    Sequence,
    Text,
    TextCnn,
    audio,
    cifar_cnn,
    logistic,
    lora,
    mlp,
    mnist_cnn,
    wide_mlp,
)
from opacus.grad_sample import prepare_module
from opacus.optimizers import get_optimizer_class
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from table import interleaved, ratios, save, show, versions
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd.training import train
from client.tasks.digits import task as digits
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.mechanism import noise


@dataclass(frozen=True)
class Case:
    build: Callable[[bool], nn.Module]
    batch: int
    shape: tuple[int, ...]
    rows: int
    steps: int
    target: float | None
    tokens: int = 0
    classes: int = 10


CASES = {
    "mlp": Case(mlp, 256, (784,), 60_000, 50, 1.25),
    "logistic": Case(logistic, 256, (784,), 60_000, 20, 1.5),
    "mnist-cnn": Case(mnist_cnn, 256, (1, 28, 28), 60_000, 5, 1.4),
    "text": Case(lambda _: Text(), 256, (32,), 60_000, 50, 2.0, tokens=10_000, classes=4),
    "cifar-cnn": Case(cifar_cnn, 64, (3, 32, 32), 10_000, 2, 2.0),
    "lstm": Case(Sequence, 64, (32,), 10_000, 5, 2.5, tokens=1000, classes=4),
    "gru": Case(Recurrent, 64, (32,), 10_000, 5, 1.8, tokens=1000, classes=4),
    "text-cnn": Case(lambda _: TextCnn(), 64, (64,), 10_000, 5, 1.3, tokens=10_000, classes=4),
    "audio": Case(audio, 32, (1, 8000), 1000, 5, 1.25),
    "dlrm": Case(lambda _: Clicks(100_000), 256, (8,), 60_000, 5, 1.5, tokens=100_000, classes=2),
    "mlp-4096": Case(wide_mlp, 128, (4096,), 1000, 5, 1.5, classes=1000),
    "lora": Case(lora, 16, (128,), 1000, 5, 1.1, tokens=4096),
    "gpt": Case(lambda _: Language(), 16, (128,), 1000, 5, 1.5, tokens=4096),
    "vit-tiny": Case(lambda _: Vision(), 32, (3, 32, 32), 1000, 5, 1.5),
    "resnet-18": Case(lambda _: resnet((2, 2, 2, 2), 64), 16, (3, 32, 32), 1000, 5, 2.0),
}


def main() -> None:
    """Measure the models asked for and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--opacus", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--fastdp", type=Path, help="A checkout of fast-differential-privacy.")
    parser.add_argument("--cpu", action="store_true", help="CPU time in place of elapsed time.")
    parser.add_argument("--memory", action="store_true", help="Also each contender's peak growth.")
    parser.add_argument("--seconds", type=float, help="No further model begins after so many.")
    chosen = parser.parse_args()
    began = time.monotonic()
    warnings.filterwarnings("ignore")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    result: dict[str, Any] = {"versions": versions("torch", "opacus", "numpy"), "models": {}}
    result["versions"]["threads"] = str(torch.get_num_threads())
    result["versions"]["noise"] = kernel()
    lines = []
    for name in chosen.models.split(","):
        if chosen.seconds is not None and time.monotonic() - began > chosen.seconds:
            print(f"{name}: left out, the {chosen.seconds:g} s are over", flush=True)
            continue
        case = CASES[name]
        runs = contenders(case, opacus=chosen.opacus, half=chosen.bfloat16, fastdp=chosen.fastdp)
        clock = time.process_time if chosen.cpu else time.perf_counter
        times = interleaved(runs, chosen.turns, clock=clock)
        relative = ratios(times, "plain")
        result["models"][name] = {
            "seconds": times,
            "ratios": relative,
            "steps": case.steps,
        }
        print(
            name,
            {k: f"{r[1]:.2f} ({r[0]:.2f}-{r[2]:.2f})" for k, r in relative.items()},
            flush=True,
        )
        if chosen.memory:
            result["models"][name]["MB"] = {k: peak_growth(run) for k, run in runs.items()}
            print(name, "peak growth, MB:", result["models"][name]["MB"], flush=True)
        base = sorted(times["plain"])[len(times["plain"]) // 2] / case.steps * 1e3
        cells = [
            f"{relative[k][1]:.2f} ({relative[k][0]:.2f}-{relative[k][2]:.2f})"
            if k in relative
            else "-"
            for k in ("tacit", "bfloat16", "opacus hooks", "opacus ghost", "fastdp")
        ]
        lines.append([name, str(case.batch), f"{base:.2f}", *cells, str(case.target or "-")])
    show(
        "A DP-SGD step relative to plain SGD",
        [
            *("model", "B", "plain ms", "tacit", "bfloat16"),
            *("Opacus hooks", "Opacus ghost", "fastDP", "target"),
        ],
        lines,
        "medians (quartiles) of interleaved turns; " + str(result["versions"]),
    )
    print(save("step", result))


def peak_growth(turn: Callable[[], None]) -> int:
    """By how many MB a turn in a child of its own raises the peak of its memory."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        turn()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(write, str(grown // 1024).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as file:
        return int(file.read())


def kernel() -> str:
    """Which noise transform this machine uses."""
    return "numpy" if noise._kernel() is None else "native"


def contenders(
    case: Case, *, opacus: bool, half: bool = False, fastdp: Path | None = None
) -> dict[str, Callable[[], None]]:
    """Each contender's turn: `case.steps` steps. A peer that cannot train a model is left out."""
    generator = torch.Generator().manual_seed(0)
    if case.tokens:
        x = torch.randint(0, case.tokens, (case.rows, *case.shape), generator=generator)
    else:
        x = torch.randn(case.rows, *case.shape, generator=generator)
    y = torch.randint(0, case.classes, (case.rows,), generator=generator)
    batches = [
        (x[i * case.batch : (i + 1) * case.batch], y[i * case.batch : (i + 1) * case.batch])
        for i in range(case.steps)
    ]
    runs = {"plain": plain(case, batches), "tacit": tacit(case, Rows(x, y))}
    if half:
        runs["bfloat16"] = tacit(case, Rows(x, y), precision="bfloat16")
    peers: dict[str, Callable[[], Callable[[], None]]] = {}
    if opacus:
        peers |= {f"opacus {m}": partial(by_opacus, case, batches, m) for m in ("hooks", "ghost")}
    if fastdp is not None:
        model = case.build(False)
        peers["fastdp"] = partial(by_fastdp, fastdp, model, batches, sample_size=case.rows)
    for name, start in peers.items():
        try:
            turn = start()
            turn()
        except Exception as error:  # noqa: BLE001 - a peer's own fault costs no other figure
            print(f"{name}: left out, {type(error).__name__}: {str(error)[:100]}", flush=True)
            continue
        runs[name] = turn
    return runs


def plain(case: Case, batches: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Eager SGD."""
    model = case.build(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)

    def turn() -> None:
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    return turn


def tacit(case: Case, rows: Rows, *, precision: str = "float32") -> Callable[[], None]:
    """The product's own training, one round of `case.steps` steps."""
    rate = case.batch / case.rows
    plan = Plan(
        task="digits",
        sites=1,
        rounds=1,
        rate=rate,
        rows=case.rows,
        lr=0.01,
        steps=case.steps,
        clip=1.0,
        sigma=1.0,
        delta=1e-6,
        precision=precision,
    )
    task: Task = replace(digits(), shape=case.shape, classes=tuple(map(str, range(case.classes))))
    model = case.build(True)
    event = Event("record", 1.0, rate, case.steps)
    return lambda: void(train(model, rows, task, plan, site="site", event=event, round=1))


def by_opacus(case: Case, batches: list[tuple[Tensor, Tensor]], mode: str) -> Callable[[], None]:
    """Opacus' steps, without its loader and its accounting."""
    limit = {"max_grad_norm": 1.0} if mode == "ghost" else {}
    model = prepare_module(case.build(True), mode, batch_first=True, loss_reduction="mean", **limit)
    optimizer = get_optimizer_class("flat", False, mode)(
        torch.optim.SGD(model.parameters(), lr=0.01),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=case.batch,
    )
    loss: Any = nn.CrossEntropyLoss()
    if mode == "ghost":
        loss = DPLossFastGradientClipping(model, optimizer, loss)

    def turn() -> None:
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            loss(model(x), y).backward()
            optimizer.step()

    return turn


def void(_: object) -> None:
    """Forget a result."""


if __name__ == "__main__":
    main()
