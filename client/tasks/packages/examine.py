"""A package's model looked at in a closed process, before anybody approves it.

The very examination that guards training (client/dpsgd/examination), and what a person wants to
know beside it: is the model the same for the same seed, is anything remembered, how large is it.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

import torch

from client.dpsgd.training import domain_of, model_refusal, train
from client.dpsgd.trees import tensors
from client.tasks.packages.package_task import package_task
from client.tasks.packages.product import product_changed
from client.tasks.rows import Rows, TaskError
from client.tasks.task import Task, none_of
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.task_package.archive import Package

_ROWS: Final = 24
_ROUNDS: Final = 6


def report(package: Package, request: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, as JSON values: `refused` is "" where the model can be trained."""
    facts: dict[str, Any] = {"refused": ""}
    try:
        learning = package_task(package, request["options"])
        facts |= _looked_at(learning)
    except TaskError as error:
        facts["refused"] = str(error)
    except Exception as error:  # noqa: BLE001 - a stranger's code raises what it likes
        place = _line(error)
        facts["refused"] = f"task.py: {type(error).__name__}: {str(error)[:200]}{place}"
    if changed := product_changed():
        facts["refused"] = f"task.py: changes {changed}"
    return facts


def _line(error: BaseException) -> str:
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "task.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f" (line {line})"


def _looked_at(learning: Task) -> dict[str, Any]:
    model = learning.model(0)
    named = dict(model.named_parameters())
    facts = {
        "parameters": sum(p.numel() for p in named.values()),
        "trained": sum(p.numel() for p in named.values() if p.requires_grad),
        "layers": sorted({type(m).__name__ for m in model.modules()}),
    }
    again = dict(learning.model(0).named_parameters())
    if any(not torch.equal(p, again[name]) for name, p in named.items()):
        return facts | {"refused": "model: must be the same for the same seed, got another"}
    if refusal := model_refusal(learning, 0):
        return facts | {"refused": refusal}
    rows = made_up_rows(learning, _ROWS)
    outputs = learning.model(0).eval()(rows.x)
    learning.metrics(outputs, rows.y)
    learning.decode(outputs)
    plan = Plan(
        task="examined",
        rounds=_ROUNDS,
        rate=1.0,
        rows=_ROWS,
        lr=0.1,
        sites=1,
        clip=1.0,
        sigma=1.0,
        delta=1e-5,
        steps=2,
    )
    began = time.process_time()
    for number in range(1, _ROUNDS + 1):
        event = Event("record", 1.0, 1.0, 2)
        train(learning.model(0), rows, learning, plan, site="s", event=event, round=number)
        if changed := learning.changed():
            return facts | {"refused": f"task.py: {changed} (round {number})"}
    seconds = (time.process_time() - began) / (_ROUNDS * 2)
    return facts | {"milliseconds_a_step_of_24_rows": round(1000 * seconds, 1)}


def made_up_rows(learning: Task, count: int) -> Rows:
    """Random rows that the task's model takes: its own sample's, or those of its examination."""
    from client.dpsgd.examination.made_up_rows import MadeUp

    domain = domain_of(learning, none_of(learning))
    last: Exception | None = None
    for source in MadeUp.of(domain, learning.model(0)).kinds():
        rows = source.rows(count, 1.0)
        try:
            with torch.no_grad():
                lost = learning.loss(learning.model(0)(rows.x), rows.y)
            if bool(torch.isfinite(lost).all()):
                return Rows(rows.x, rows.y)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            last = error
    size = [tuple(t.shape) for t in tensors(none_of(learning).x)]
    raise TaskError(f"task.py: must take made-up rows of {size}, or define sample ({last})")
