"""Simulated federations of Tacit and its peers: 100 clients, 10 a round, local DP-SGD.

Everybody learns the same model from the same 600 rows a client, one epoch of batches of 32, and
evaluates the same 1,000 rows after each round. The contenders live side by side and take turns, a
round each, so that every ratio is of rounds that followed one another. Tacit runs its product
whole: ledgers, accounting, checkpoints, history, signatures; the peers do not have these.

* flower: Flower's own simulation (Ray, two actors) of a ClientApp with stock Opacus;
* pfl: pfl-research's loop around Tacit's own trainer, in an environment that this script makes;
* jax-privacy: no federation, so a step of DP-SGD alone, beside a step of ours;
* opacus, fastdp: steps alone as well, of all models of `step.py`; fastDP, which is in no registry,
  from a checkout of https://github.com/awslabs/fast-differential-privacy.

    python benchmarks/peers.py [--peers flower,pfl,jax-privacy,opacus,fastdp] [--models mlp,cnn]
        [--turns 15] [--fastdp FOLDER] [--step-models mlp,logistic]
"""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from contenders.running import Contender, Missing
from table import RESULTS, quartiles, ratios, save, show, versions

HERE = Path(__file__).resolve().parent
PEERS = ("flower", "pfl", "jax-privacy", "opacus", "fastdp")
OF_STEPS = ("opacus", "fastdp")
PFL = "pfl==0.6.0"
JAX = ("jax==0.10.2", "jax-privacy==2.0.0", "optax==0.2.8")
BATCH = 256


def main() -> None:
    """Measure the models asked for, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=",".join(PEERS), help="a list, or nothing")
    parser.add_argument("--models", default="mlp,cnn")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--venvs", type=Path, default=RESULTS / "peers", help="peers' environments")
    parser.add_argument("--fastdp", type=Path, help="a checkout of fast-differential-privacy")
    parser.add_argument("--step-models", default="", help="those of step.py; else all of them")
    asked = parser.parse_args()
    peers = [name for name in asked.peers.split(",") if name]
    if unknown := set(peers) - set(PEERS):
        parser.error(f"--peers: expected some of {', '.join(PEERS)}, got {', '.join(unknown)}")
    result: dict[str, Any] = {"versions": versions("torch", "opacus", "flwr", "numpy")}
    found: dict[str, list[str]] = {}
    for name in (peer for peer in peers if peer not in OF_STEPS):
        try:
            found[name] = environment(name, asked.venvs.resolve(), result["versions"])
        except Missing as error:
            print(f"{name}: skipped, {error}")
    if options := steps_of(peers, asked.fastdp):
        options += ["--turns", str(asked.turns)]
        options += ["--models", asked.step_models] if asked.step_models else []
        subprocess.run([sys.executable, str(HERE / "step.py"), *options], check=True)
    if not set(peers) - set(OF_STEPS) and peers:
        return
    for model in asked.models.split(","):
        result[model] = federations(model, found, asked.turns, str(result["versions"]))
        if "jax-privacy" in found:
            result[model]["steps"] = steps(model, found["jax-privacy"], asked.turns)
    print(save("peers", result))


def steps_of(peers: Sequence[str], fastdp: Path | None) -> list[str]:
    """How `step.py` is asked for the peers of steps; nothing where there are none."""
    options = ["--cpu", "--threads", "1"]
    options += [] if "opacus" in peers else ["--no-opacus"]
    if "fastdp" in peers:
        if fastdp is not None and (fastdp / "fastDP").is_dir():
            options += ["--fastdp", str(fastdp)]
        else:
            print(f"fastdp: skipped, --fastdp must be a checkout with fastDP/, got {fastdp}")
    return options if "opacus" in peers or "--fastdp" in options else []


def environment(name: str, venvs: Path, versions: dict[str, str]) -> list[str]:
    """The peer's python, in an environment that is made if need be; Missing, with the reason."""
    if name == "flower":
        if importlib.util.find_spec("ray") is None:
            raise Missing("ray is not installed (the extra `ray`)")
        versions["ray"] = metadata.version("ray")
        return [sys.executable]
    own = ("opacus", "cryptography", "tomli_w", "safetensors")
    wanted = [PFL, *(f"{p}=={metadata.version(p)}" for p in own)] if name == "pfl" else list(JAX)
    python = venvs / name / "bin" / "python"
    if not python.exists():
        print(f"{name}: making {venvs / name}", flush=True)
        _run([sys.executable, "-m", "venv", str(venvs / name)])
        torch = [f"torch=={metadata.version('torch').split('+')[0]}"] if name == "pfl" else []
        _run([str(python), "-m", "pip", "install", "-q", *torch, *wanted])
    ask = f"from importlib.metadata import version as v; print(v('{name}'))"
    versions[name] = _run([str(python), "-c", ask]).strip()
    return [str(python)]


def _run(command: Sequence[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        tail = (ended.stderr.strip() or "no message").splitlines()[-1]
        raise Missing(f"`{' '.join(command[:4])} ..` failed: {tail}")
    return ended.stdout


def federations(
    model: str, peers: dict[str, list[str]], turns: int, versions: str
) -> dict[str, Any]:
    """One table: everybody's rounds, in turns."""
    rounds = str(turns + 2)
    folder = HERE / "contenders"
    commands = {
        "tacit serial": [sys.executable, str(folder / "tacit.py"), model, "serial", rounds],
        "tacit processes": [sys.executable, str(folder / "tacit.py"), model, "processes", rounds],
    }
    if "flower" in peers:
        commands["flower"] = [*peers["flower"], str(folder / "flower.py"), model, rounds]
    if "pfl" in peers:
        commands["pfl"] = [*peers["pfl"], str(folder / "pfl_loop.py"), model, rounds]
    contenders = {name: Contender(name, command) for name, command in commands.items()}
    measured = _play(contenders, turns)
    times = {name: one["seconds"] for name, one in measured.items()}
    lines = []
    for name, one in measured.items():
        over = [ratios(times, base)[name] for base in ("tacit serial", "tacit processes")]
        one["over serial"], one["over processes"] = over
        lines.append(
            [
                name,
                f"{quartiles(one['seconds'])[1]:.3f}",
                *(f"{m:.2f} ({low:.2f}-{high:.2f})" for low, m, high in over),
                f"{one['began']:.1f} - {one['first']:.1f}",
                f"{one['megabytes']:.0f}",
                f"{one['cpu']:.2f}",
                f"{one['accuracy']:.2f}",
            ]
        )
    show(
        f"{model}: 100 clients, 10 a round, one local epoch of DP-SGD",
        ["", "s a round", "/ serial", "/ processes", "first round, s", "MB", "CPU s", "accuracy"],
        lines,
        "medians (quartiles) of rounds in turns; first round: when it began and ended "
        "after the start; MB: the most "
        f"that all its processes held together (PSS); CPU a round; {versions}",
    )
    return measured


def _play(contenders: dict[str, Contender], turns: int) -> dict[str, dict[str, Any]]:
    """Start one after the other, warm each with a round, then let rounds take turns."""
    try:
        for one in contenders.values():
            one.start()
            one.turn()
        before = {name: one.cpu() for name, one in contenders.items()}
        for _ in range(turns):
            for one in contenders.values():
                one.turn()
        return {
            name: {
                "seconds": one.seconds[1:],
                "began": one.began,
                "first": one.first,
                "megabytes": one.megabytes,
                "cpu": (one.cpu() - before[name]) / turns,
                "accuracy": one.accuracy,
            }
            for name, one in contenders.items()
        }
    finally:
        for one in contenders.values():
            one.end()


def steps(model: str, python: list[str], turns: int) -> dict[str, Any]:
    """A step of DP-SGD alone: ours with its sampling, theirs with ready-made batches."""
    turns, script = min(turns, 5), str(HERE / "contenders" / "steps.py")
    starts = {"tacit": [sys.executable], "jax-privacy": python}
    contenders, counts = {}, {"tacit": 50 if model == "mlp" else 5, "jax-privacy": 1}
    for who, start in starts.items():
        sizes = (turns + 2, counts[who], BATCH)
        contenders[who] = Contender(who, [*start, script, who, model, *map(str, sizes)])
    played = _play(contenders, turns)
    times = {who: [s / counts[who] for s in one["seconds"]] for who, one in played.items()}
    over = ratios(times, "tacit")
    lines = []
    for who, own in times.items():
        low, middle, high = over[who]
        lines.append(
            [who, f"{quartiles(own)[1] * 1e3:.2f}", f"{middle:.1f} ({low:.1f}-{high:.1f})"]
        )
    note = "one process; the time of a warm step"
    show(f"{model}: a step of DP-SGD, batch {BATCH}", ["", "ms a step", "/ tacit"], lines, note)
    return {"seconds": times, "ratios": over}


if __name__ == "__main__":
    main()
