"""Released models for tests: checkpoints as a run leaves them, of any task, trained or not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from client.commands import look, models
from client.tasks.registry import task_of
from client.tasks.task import Task
from privacy.contract.plan import Plan
from privacy.contract.plan_file import parse
from privacy.identity.keys import new_signing_key, signing_public
from privacy.identity.model_signature import sign_model

RUN = "00aa11bb22cc33dd"


def plan_for(name: str, **changes: Any) -> Plan:
    """A small plan of a task."""
    table: dict[str, Any] = {
        "task": name,
        "rounds": 5,
        "rate": 0.25,
        "rows": 300,
        "lr": 1.0,
        "clip": 1.0,
        "sigma": 3.0,
        "delta": 1e-4,
        "sites": 2,
    }
    return parse({k: v for k, v in {**table, **changes}.items() if v is not None})


def history(number: int) -> dict[str, Any]:
    """A round's line."""
    site = {"status": "trained", "reason": None, "epsilon": 1.25, "delta": 1e-4, "steps": 1}
    return {
        "round": number,
        "metrics": {"accuracy": 0.9, "loss": 0.4},
        "sites": {"site-0": site, "site-1": site | {"epsilon": 1.0}},
        "epsilon": 1.25,
        "seconds": 0.1,
    }


def fitted(task: Task, steps: int = 60) -> nn.Module:
    """A model fitted without privacy to the task's embedded training rows."""
    network = task.model(0)
    if task.embedded:
        rows = task.load(None, "train")
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            task.loss(network(rows.x), rows.y).mean().backward()
            optimizer.step()
    return network.eval()


def shaken(task: Task) -> nn.Module:
    """A model with random weights everywhere, so that its scores differ from row to row."""
    network = task.model(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def release(
    folder: Path,
    number: int = 5,
    plan: Plan | None = None,
    network: nn.Module | None = None,
    *,
    key: bytes | None = None,
    extra: Mapping[str, str] | None = None,
    task: Task | None = None,
) -> Path:
    """Write round `number` of a run into a run folder, signed if there is a key."""
    plan = plan or plan_for("digits")
    task = task or task_of(plan)
    path = folder / "checkpoints" / f"{number:06d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "plan.toml").write_text(plan.to_toml(), encoding="utf-8")
    tensors = dict((network or fitted(task)).state_dict())
    tensors["server/momentum"] = torch.zeros(3)
    metadata = {
        "run": RUN,
        "round": str(number),
        "plan": plan.digest,
        "plan_json": plan.to_json(),
        "task": plan.task,
        "history": json.dumps(history(number)),
        **(extra or {}),
    }
    save_file(tensors, path, metadata=metadata)
    if key is not None:
        sign(path, number, key)
    return path


def sign(path: Path, number: int, key: bytes, run: str = RUN) -> None:
    """Sign a model file as a coordinator does."""
    signature = sign_model(path.read_bytes(), run, number, key)
    path.with_name(path.name + ".sig").write_bytes(signature.to_bytes())


def own_key(folder: Path) -> bytes:
    """Give a run folder a key of its own."""
    key = new_signing_key()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "signing.pub").write_text(signing_public(key) + "\n")
    return key


def know(directory: Path, key: bytes) -> None:
    """Let a site know a coordinator's key."""
    directory.mkdir(parents=True, exist_ok=True)
    facts = {"v": 1, "site": directory.name, "verify": signing_public(key)}
    (directory / "site.json").write_text(json.dumps(facts))


def digits_csv(path: Path, rows: int | None = None, *, labels: bool = True) -> Path:
    """scikit-learn's digits as a CSV file, with its own column names."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = data.data[:rows].astype(int), data.target[:rows]
    lines = [",".join([*data.feature_names, "target"] if labels else data.feature_names)]
    for values, label in zip(x.tolist(), y.tolist(), strict=True):
        lines.append(",".join(str(v) for v in ([*values, label] if labels else values)))
    path.write_text("\n".join(lines) + "\n")
    return path


class Answer:
    """What a command printed, and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def command(*arguments: object) -> Answer:
    """Run one of the model commands in this process, as `tacit-client` does."""
    app = typer.Typer(pretty_exceptions_enable=False)
    models.register(app)
    look.register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    error = result.exception
    if isinstance(error, ValueError):
        return Answer(2, result.stdout, f"{result.stderr}tacit-client: {error}\n")
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return Answer(result.exit_code, result.stdout, result.stderr)
