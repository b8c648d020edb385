"""What Tacit does on a GPU, in one script of at most six minutes: is it right, what does it cost?

    python benchmarks/gpu.py [--out FOLDER] [--seconds 330] [--only noise,steps]
    python benchmarks/gpu.py --device cpu        # the same at tiny sizes, without a GPU

Parts, in this order: noise (the kernels' bits, law and speed, and rows drawn), equal (a round of
training on the device, as it is and recorded as a CUDA graph, against the same on the CPU), steps
(of DP-SGD relative to plain SGD on the same card, in float32, bfloat16 and recorded; memory, where
the time goes), predict, vector (many clients together), audit. A part that fails is reported, and
the next one begins; results are written after each part and each model. benchmarks/README.md says
how it is run on a machine without a network.
"""

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import numpy as np
import torch
from contenders.gpu_cases import TINY, Case, task_of
from contenders.gpu_run import Bench, Turn, milliseconds
from torch import Tensor, nn

from client.dpsgd import training
from client.dpsgd.gpu.rows import batches_on
from client.dpsgd.gpu.stream import CudaStream, stream_on
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.mechanism import noise


def started(bench: Bench, count: int) -> CudaStream | None:
    """A stream with a key; None where noise is the host's."""
    stream = stream_on(bench.on, count)
    if stream is not None:
        noise.start_on(stream)
    return stream


def noise_part(bench: Bench) -> dict[str, Any]:
    """The kernels' bits and law; noise and rows, on the device and by the host."""
    begin = time.perf_counter()
    stream = started(bench, 1)
    facts: dict[str, Any] = {
        "kernels agree with numpy to the last bit": stream is not None,
        "seconds until they are compiled and compared": round(time.perf_counter() - begin, 2),
        "ms": {},
    }
    for count in (1000, 20_000) if bench.tiny else (200_000, 1_000_000, 11_000_000, 125_000_000):
        sums = torch.zeros(count, device=bench.on)
        turns: dict[str, Turn] = {"host": lambda sums=sums: by_host(sums)}  # type: ignore[misc]
        if (stream := started(bench, count)) is not None:
            turns["device"] = lambda sums=sums, at=stream: noise.privatise_on(at, sums, 1.0)  # type: ignore[misc]
        times = bench.seconds(turns, 0.0 if bench.tiny or count > 10**8 else 1.0)
        facts["ms"][str(count)] = {name: milliseconds(own) for name, own in times.items()}
    sums = torch.zeros(5000 if bench.tiny else 4_000_000, device=bench.on)
    std, stream = 2.0, started(bench, sums.numel())
    if stream is None:
        by_host(sums, std)
    else:
        noise.privatise_on(stream, sums, std)
        facts["undecided numbers found room"] = not stream.failed()
    values = sums.double().cpu().numpy() / std
    steps = values * std / noise.grid(std)
    facts["law"] = {
        "mean, in its standard deviations": round(float(values.mean() * len(values) ** 0.5), 2),
        "deviation, in its standard deviations": round(
            float((values.std() - 1) * (2 * len(values)) ** 0.5), 2
        ),
        "on the grid": bool(np.array_equal(steps, np.rint(steps))),
        "beyond 3, expected 0.0027": round(float((np.abs(values) > 3).mean()), 6),
    }
    facts["ms of 20 steps' rows at a rate of 0.005"] = {}
    for n in (50_000, 1_281_167):
        turns = {"host": lambda n=n: [rows_of(x, bench) for x in noise.batches(n, 0.005, 20)]}  # type: ignore[misc]
        if (stream := started(bench, 1)) is not None:
            turns["device"] = lambda n=n, at=stream: list(batches_on(at, n, 0.005, 20))  # type: ignore[misc]
        drawn = bench.seconds(turns, 0.0)
        facts["ms of 20 steps' rows at a rate of 0.005"][str(n)] = {
            name: milliseconds(own) for name, own in drawn.items()
        }
    return facts


def rows_of(drawn: Any, bench: Bench) -> Tensor:
    """Rows that the host has drawn, on the device."""
    return torch.from_numpy(drawn).to(bench.on)


@contextmanager
def recorded() -> Iterator[None]:
    """While steps are recorded as CUDA graphs where they can be."""
    os.environ["TACIT_CUDA_GRAPHS"] = "1"
    try:
        yield
    finally:
        del os.environ["TACIT_CUDA_GRAPHS"]


def by_host(sums: Tensor, std: float = 1.0) -> None:
    """Noise as for a CPU: to the host and back."""
    total = sums.cpu()
    noise.privatise(total.numpy(), std)
    sums.copy_(total)


def plan_of(case: Case, rows: int, steps: int, sigma: float, **keys: Any) -> tuple[Plan, Event]:
    """A plan of one round, and its event."""
    rate = min(1.0, case.batch / rows)
    plan = Plan(
        task="x", sites=1, rounds=1, rate=rate, rows=rows, lr=0.01, steps=steps, clip=1.0,
        sigma=sigma, delta=1e-6, **keys,
    )  # fmt: skip
    return plan, Event("record", sigma, rate, steps)


def equal_part(bench: Bench) -> dict[str, Any]:
    """How far a clipped sum and a round of almost no noise are from the CPU's, relative in L2."""
    facts: dict[str, Any] = {}
    for name, case in TINY.items():
        rows = case.rows(case.batch)
        plan, event = plan_of(case, case.batch, 3, 1e-6)

        def done(where: Any, case: Case = case, rows: Rows = rows, plan: Plan = plan) -> Any:
            torch.manual_seed(0)
            at = {"site": "s", "event": event, "round": 1, "device": where}  # noqa: B023
            changed = training.train(case.build(), rows, task_of(case), plan, **at)
            return np.concatenate([u.ravel() for u in changed.update.values()])

        def clipped(where: Any, case: Case = case, rows: Rows = rows, plan: Plan = plan) -> Any:
            torch.manual_seed(0)
            parts = training.clipped_sum(
                *(case.build(), rows, task_of(case), plan),
                event=event,  # noqa: B023
                expected=float(case.batch),
                device=where,
            )
            return np.concatenate([u.ravel() for u in parts.values()])

        facts[name] = {}
        try:
            host = done("cpu")
            facts[name]["update"] = distance(host, done(bench.on))
            facts[name]["clipped sum"] = distance(clipped("cpu"), clipped(bench.on))
            with recorded():
                facts[name]["recorded update"] = distance(host, done(bench.on))
        except Exception as error:  # noqa: BLE001 - a model's fault must not cost the others
            traceback.print_exc()
            facts[name]["failed"] = f"{type(error).__name__}: {error}"[:300]
        bench.result["equal"] = facts
        bench.save()
    return facts | {"stated": "below 1e-3 with TF32 convolutions, below 1e-4 without"}


def distance(*pair: Any) -> float:
    """|a - b| / |a| of two vectors; 0 where there is one only."""
    one, other = pair[0].astype(float), pair[-1].astype(float)
    return float(f"{np.linalg.norm(one - other) / np.linalg.norm(one):.2e}")


def steps_part(bench: Bench) -> dict[str, Any]:
    """Each model's step to a plain one, in float32 and in bfloat16."""
    facts: dict[str, Any] = {}
    for name, case in bench.cases.items():
        if bench.left() < 60 and not bench.tiny:
            facts[name] = {"failed": "no time was left"}
            continue
        try:
            facts[name] = ratios(bench, case)
        except Exception as error:  # noqa: BLE001 - a model's fault must not cost the others
            traceback.print_exc()
            facts[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(name, facts[name], flush=True)
        bench.result["steps"] = facts
        bench.save()
        if not bench.tiny:
            torch.cuda.empty_cache()
    return facts


def ratios(bench: Bench, case: Case) -> dict[str, Any]:
    """One model's figures."""
    steps = 2 if bench.tiny else 20 if case.shape == (784,) else 5
    rows = case.rows(case.batch * (2 if bench.tiny else 8))
    x, y = rows.x.to(bench.on), rows.y.to(bench.on)
    batches = [(x[: case.batch], y[: case.batch])] * steps
    turns: dict[str, Turn] = {}
    for half in (False, True):
        kind = "bfloat16" if half else "float32"
        turns[f"plain {kind}"] = plain(case, case.build().to(bench.on), batches, half)
        plan, event = plan_of(case, len(rows.y), steps, 1.0, precision=kind)
        model, at = case.build(), {"site": "s", "event": event, "round": 1, "device": bench.on}
        turns[f"tacit {kind}"] = lambda model=model, plan=plan, at=at: training.train(  # type: ignore[misc]
            model, Rows(x, y), task_of(case), plan, **at
        )
    if case.recorded:
        plan, event = plan_of(case, len(rows.y), steps, 1.0)
        at = {"site": "s", "event": event, "round": 1, "device": bench.on}

        model = case.build()

        def again(model: nn.Module = model, plan: Plan = plan, at: Any = at) -> None:
            with recorded():
                training.train(model, Rows(x, y), task_of(case), plan, **at)

        turns["tacit recorded"] = again
    times = bench.seconds(turns, 0.0 if bench.tiny else 6.0)
    facts: dict[str, Any] = {"target": case.target, "batch": case.batch}
    facts["ms a step"] = {kind: milliseconds(own, steps) for kind, own in times.items()}
    for kind in ("float32", "bfloat16", "recorded")[: 3 if case.recorded else 2]:
        against = "float32" if kind == "recorded" else kind
        pairs = zip(times[f"tacit {kind}"], times[f"plain {against}"], strict=True)
        facts[f"ratio {kind}"] = round(statistics.median(a / b for a, b in pairs), 3)
    facts["MB"] = {kind: bench.peak(turn) for kind, turn in turns.items()}
    print(
        f"{facts['ratio float32']} of plain SGD on this {'CPU' if bench.tiny else 'card'}, "
        f"target {case.target or 'none'}",
        flush=True,
    )
    facts["where"] = hottest(bench, turns["tacit float32"])
    return facts


def plain(case: Case, model: nn.Module, batches: list[tuple[Tensor, Tensor]], half: bool) -> Turn:
    """Eager SGD."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    loss, kind = task_of(case).loss, batches[0][0].device.type

    def turn() -> None:
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(kind, torch.bfloat16) if half else nullcontext():
                losses = loss(model(x).float(), y)
            torch.autograd.backward(losses.mean())
            optimizer.step()

    return turn


def hottest(bench: Bench, turn: Turn) -> list[str]:
    """The operations that take a turn's time on the device, and the host's share of waiting."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] if bench.tiny else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=kinds) as run:
        turn()
        bench.wait()
    key = "self_cpu_time_total" if bench.tiny else "self_device_time_total"
    events = sorted(run.key_averages(), key=lambda e: -getattr(e, key))[:14]
    return [f"{getattr(e, key) / 1e3:.2f} ms {e.count}x {e.key[:60]}" for e in events]


def predict_part(bench: Bench) -> dict[str, Any]:
    """A network's outputs by the product's predictor on the device and on the CPU."""
    from client.inference.predictor import predictor

    facts: dict[str, Any] = {}
    for name, case in TINY.items():
        torch.manual_seed(0)
        network = case.build().eval()
        x = case.rows(32).x
        model: Any = SimpleNamespace(network=network, graph=None, path="model")
        expected = predictor(model, "cpu").outputs(x).numpy()
        outputs = predictor(model, str(bench.on)).outputs(x).numpy()
        facts[name] = distance(expected, outputs)
    return facts | {"stated": "below 1e-3 with TF32 convolutions, below 1e-5 without"}


def vector_part(bench: Bench) -> dict[str, Any]:
    """A round of many clients' tiny models together, on the device and on the CPU."""
    from simulations.engines.stacked_models import Stack
    from simulations.engines.stacked_training import Member, train_together

    case, clients = TINY["mlp"], 20 if bench.tiny else 400
    plan, event = plan_of(case, 50, 5, 1.0)
    model, own = case.build(), [case.rows(50, seed) for seed in range(clients)]
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    members = [Member(rows, weights, 10.0, 1.0) for rows in own]
    keys: Any = {"rate": 0.2, "steps": event.steps, "round": 1, "private": True}
    turns: dict[str, Turn] = {}
    for name, on in {"cpu": torch.device("cpu"), "device": bench.on}.items():
        stack = Stack(case.build(), case.shape)
        stack.to(on)
        turns[name] = lambda stack=stack, on=on: train_together(  # type: ignore[misc]
            stack, members, task_of(case), plan, **keys, device=on
        )
    times = bench.seconds(turns, 0.0 if bench.tiny else 2.0)
    return {"clients": clients, "ms": {name: milliseconds(own) for name, own in times.items()}}


def audit_part(bench: Bench) -> dict[str, Any]:
    """The audit's checks of the trainer on this device, as long as there is time."""
    from client.audit.audit import settings_of
    from client.audit.conformance import TRAINER_CHECKS
    from client.audit.setting_checks import SETTING_CHECKS

    device, drawn, facts = str(bench.on), settings_of(0)[:4], {}
    checks = [
        *TRAINER_CHECKS,
        *(lambda device, check=check: check(drawn, device) for check in SETTING_CHECKS),
    ]
    for check in checks[:2] if bench.tiny else checks:
        if bench.left() < 10:
            facts["left out"] = "no time was left"
            break
        done = check(device)
        facts[done.name] = {"passed": done.passed, "p": done.p, "detail": done.detail[:200]}
    return facts


PARTS = {
    "noise": noise_part,
    "equal": equal_part,
    "steps": steps_part,
    "predict": predict_part,
    "vector": vector_part,
    "audit": audit_part,
}


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, which are of torch and of Opacus."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 1 where one has failed, or the device is not here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=330.0)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", HERE / "results")))
    chosen = parser.parse_args(arguments)
    if chosen.device != "cpu" and not torch.cuda.is_available():
        print(f"gpu.py: no {chosen.device} is here; --device cpu runs every part at tiny sizes")
        return 1
    bench = Bench(chosen.device, chosen.seconds, chosen.out)
    with quiet():
        for name in chosen.only.split(","):
            bench.part(name, PARTS[name])
    print(bench.out / "gpu.json")
    parts = [bench.result[name] for name in chosen.only.split(",")]
    return int('"failed"' in json.dumps(parts))


if __name__ == "__main__":
    sys.exit(main())
