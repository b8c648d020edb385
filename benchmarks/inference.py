"""Local inference: latency and throughput of a released model, and of the local service.

`python benchmarks/inference.py [--seconds N] [--json]`. Ratios are medians of interleaved runs in
one process on one thread; the service and its clients share the machine's cores.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from table import save, versions

from client.inference.export import quantized
from client.inference.onnx_export import to_onnx
from client.inference.predictor import session
from client.tasks.rows import Rows
from tests.support.models import own_key, release


def mlp() -> nn.Module:
    """The MLP 784-256-10."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn() -> nn.Module:
    """A small CNN for 28x28 images (26,010 parameters)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def timed(ways: dict[str, Callable[[], object]], calls: int, rounds: int) -> dict[str, Any]:
    """Microseconds a call of each way, interleaved in rounds: median, 99th percentile, and ratios.

    A ratio is the median over rounds of (first way's median / this way's median).
    """
    for way in ways.values():
        for _ in range(max(20, calls // 5)):
            way()
    taken: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found = np.empty(calls)
            for i in range(calls):
                began = time.perf_counter()
                way()
                found[i] = time.perf_counter() - began
            taken[name].append(found * 1e6)
    first = next(iter(ways))
    medians = {name: [float(np.median(x)) for x in parts] for name, parts in taken.items()}
    return {
        name: {
            "p50": round(float(np.median(np.concatenate(parts))), 1),
            "p99": round(float(np.percentile(np.concatenate(parts), 99)), 1),
            "ratio": round(float(np.median(np.divide(medians[first], medians[name]))), 2),
        }
        for name, parts in taken.items()
    }


def in_process(rounds: int) -> dict[str, Any]:
    """Batch 1 and batch 256, eager torch against ONNX Runtime in fp32 and static int8."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    for name, network, shape in (("mlp", mlp(), (784,)), ("cnn", cnn(), (1, 28, 28))):
        network.eval()
        rows = np.random.default_rng(0).uniform(-1, 1, (512, *shape)).astype(np.float32)
        whole = torch.from_numpy(rows)
        graph = to_onnx(network, Rows(whole, torch.zeros(len(rows))))
        plain = session(graph.SerializeToString(), 1)
        small = session(quantized(graph, whole).SerializeToString(), 1)
        for batch, calls in ((1, 1000), (256, 60)):
            tensor = torch.from_numpy(np.ascontiguousarray(rows[:batch]))

            def eager(network: nn.Module = network, tensor: torch.Tensor = tensor) -> object:
                with torch.inference_mode():
                    return network(tensor)

            ways: dict[str, Callable[[], object]] = {
                "eager": eager,
                "onnx": lambda x=tensor, run=plain: run(x),
                "onnx-int8": lambda x=tensor, run=small: run(x),
            }
            results[f"{name} batch {batch}"] = timed(ways, calls, rounds)
    return results


async def load_on(port: int, rate: float, seconds: float, connections: int) -> dict[str, Any]:
    """Send digits at a fixed rate, whatever the answers take; latency counts from the due time."""
    body = json.dumps({"row": [i % 17 for i in range(64)]}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    taken: list[float] = []
    bad = 0
    due: asyncio.Queue[float | None] = asyncio.Queue()

    async def one() -> None:
        nonlocal bad
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (when := await due.get()) is not None:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            bad += not answer.startswith(b"HTTP/1.1 200")
            taken.append(time.perf_counter() - when)
        writer.close()

    tasks = [asyncio.create_task(one()) for _ in range(connections)]
    count = int(rate * seconds)
    began = time.perf_counter()
    for i in range(count):
        when = began + i / rate
        wait = when - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        due.put_nowait(when)
    for _ in tasks:
        due.put_nowait(None)
    await asyncio.gather(*tasks)
    elapsed = time.perf_counter() - began
    found = np.array(taken) * 1e3
    return {
        "asked": rate,
        "answered": round(len(taken) / elapsed, 1),
        "failed": bad,
        "p50_ms": round(float(np.percentile(found, 50)), 2),
        "p99_ms": round(float(np.percentile(found, 99)), 2),
        "max_ms": round(float(found.max()), 2),
    }


def served(rates: list[float], seconds: float) -> dict[str, Any]:
    """The digits model behind HTTP: service and load on the same cores, as two processes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "digits"
        release(folder, key=own_key(folder))
        log = Path(place) / "log"
        code = (
            "import typer\nfrom client.commands.models import register\n"
            "app = typer.Typer()\nregister(app)\napp()"
        )
        arguments = ["serve", "--model", str(folder), "--listen", "127.0.0.1:0"]
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments], cwd=ROOT, stderr=errors
            )
        try:
            while "listening on" not in log.read_text():
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.1)
            time.sleep(1)
            port = int(log.read_text().split("127.0.0.1:")[1].split()[0])
            asyncio.run(load_on(port, 200, 2, 8))
            return {f"{rate:g}/s": asyncio.run(load_on(port, rate, seconds, 32)) for rate in rates}
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {
        "in process (microseconds a call)": in_process(options.rounds),
        "served": served([1000, 2000], options.seconds),
    }
    save("inference", results | {"versions": versions("torch", "onnxruntime", "h11")})
    if options.json:
        print(json.dumps(results))
        return
    for title, lines in results.items():
        print(title)
        for name, found in lines.items():
            print(f"  {name}: {json.dumps(found)}")
    inside = results["in process (microseconds a call)"]
    goals = {
        "mlp batch 1, onnx at least 1.5x eager": inside["mlp batch 1"]["onnx"]["ratio"] >= 1.5,
        "cnn batch 1, onnx at least 5x eager": inside["cnn batch 1"]["onnx"]["ratio"] >= 5,
        "mlp batch 256, int8 at least 4x eager": inside["mlp batch 256"]["onnx-int8"]["ratio"] >= 4,
        "1,000 requests/s with p99 under 20 ms": results["served"]["1000/s"]["p99_ms"] < 20
        and results["served"]["1000/s"]["answered"] > 990,
    }
    for goal, met in goals.items():
        print(f"{'met ' if met else 'MISSED'} {goal}")


if __name__ == "__main__":
    main()
