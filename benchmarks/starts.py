"""How soon every command shows something, and how soon one row is predicted.

    python benchmarks/starts.py [--turns N]

Each command is started afresh, its modules compiled before; seconds from its start to the first
byte of its output, and CPU seconds up to its end. `--help` is the first output of commands that
work for longer; a prediction is of one row, by a checkpoint and by its export to ONNX.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from table import quartiles, save, show, versions

COMMANDS = {
    "tacit-simulate --help": ("simulations", "--help"),
    "tacit-simulate digits": ("simulations", "digits", "--set", "rounds=1", "--runs", "RUNS"),
    "tacit-client --help": ("client", "--help"),
    "tacit-client run --help": ("client", "run", "--help"),
    "tacit-client predict --help": ("client", "predict", "--help"),
    "tacit-client plans --help": ("client", "plans", "--help"),
    "tacit-client budget --help": ("client", "budget", "--help"),
    "tacit-client enroll --help": ("client", "enroll", "--help"),
    "tacit-client audit --help": ("client", "audit", "--help"),
    "tacit-server --help": ("server", "--help"),
    "tacit-server run --help": ("server", "run", "--help"),
    "tacit-server status --help": ("server", "status", "--help"),
    "tacit-server sign --help": ("server", "sign", "--help"),
    "tacit-server relay --help": ("server", "relay", "--help"),
    "tacit-privacy --help": ("privacy", "--help"),
}


def models(folder: Path) -> dict[str, tuple[str, ...]]:
    """A checkpoint, its export, and one row to predict by each."""
    from client.inference.export import export
    from client.models.loading import find, load
    from client.models.provenance import Trust
    from client.models.trusted_keys import sign_beside
    from tests.support.models import own_key, release

    run = folder / "digits"
    release(run, key=own_key(run))
    model = load(find(str(run)), Trust())
    content = export(model, "onnx").content
    (folder / "digits.onnx").write_bytes(content)
    sign_beside(folder / "digits.onnx", content, model.card.run, model.card.round, folder)
    names = model.task.inputs
    one = ",".join(names) + "\n" + ",".join(str(i % 17) for i in range(len(names))) + "\n"
    (folder / "one.csv").write_text(one)
    words = ("--data", str(folder / "one.csv"))
    return {
        "predict one row, checkpoint": ("client", "predict", "--model", str(run), *words),
        "predict one row, ONNX": (
            *("client", "predict", "--model", str(folder / "digits.onnx"), *words),
        ),
    }


def start(words: tuple[str, ...]) -> tuple[float, float, float]:
    """Seconds to the first byte, seconds to the end, and CPU seconds."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    read, write = os.pipe()
    before, began = os.times(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *words], stdout=write, stderr=write, env=environment
    )
    os.close(write)
    os.read(read, 1)
    first = time.perf_counter() - began
    while os.read(read, 65536):
        continue
    os.close(read)
    code = process.wait()
    after = os.times()
    if code:
        raise SystemExit(f"{' '.join(words)}: ended with {code}")
    spent = sum(after[2:4]) - sum(before[2:4])
    return first, time.perf_counter() - began, spent


def main() -> None:
    """Measure each command and print them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=1)
    turns = parser.parse_args().turns
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        commands = COMMANDS | models(Path(place))
        for turn in range(-1, turns):
            for name, words in commands.items():
                filled = tuple(word.replace("RUNS", f"{place}/runs{turn}") for word in words)
                if turn >= 0 or "predict one" in name or name.count(" ") == 1:
                    figures = start(filled)
                    if turn >= 0:
                        found.setdefault(name, []).append(figures)
    middles = {
        name: [round(quartiles(column)[1], 2) for column in zip(*rows, strict=True)]
        for name, rows in found.items()
    }
    save("starts", {"seconds": middles, "versions": versions("torch", "typer")})
    rows = [[name, *(f"{one:.2f}" for one in figures)] for name, figures in middles.items()]
    show("Starts", ["command", "first output, s", "end, s", "CPU s"], rows)


if __name__ == "__main__":
    main()
