"""A round on made-up rows, without network and without any ledger of yours: what would leave."""

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from flwr.app import ConfigRecord, RecordDict

from client.agent import received_plans
from client.agent.credentials import Enrolled
from client.app import answer
from client.dpsgd.weights import trained_of
from client.reply import REPLY, carried
from client.round_request import ARRAYS, REQUEST, STYPE
from client.site import Site
from client.tasks.packages.examine import made_up_rows
from client.tasks.packages.store import Packages
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.arrays import encode
from privacy.contract.outputs import PUBLIC
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from privacy.contract.policy import Policy, load_policy
from privacy.ledger.heads import GENESIS
from privacy.ledger.ledger import Ledger

_ROWS: Final = 200


def rehearse(directory: Path, name: str | None, policy: Path | None) -> dict[str, Any]:
    """Play round 1 of a plan (the last one asked, else `digits`) and list every field and byte."""
    site = Enrolled(directory)
    known = site.name if site.about.is_file() else "rehearsal"
    plan = _plan(directory, name)
    if plan.is_secure:
        raise PlanError(
            'aggregation must not be "secure" for a dry run: a masked reply is random words, and '
            "needs the other parties (docs/secure-aggregation.md)"
        )
    rules = _rules(directory, policy, plan)
    tasks = Packages(directory, lambda: rules.packages)
    learning = tasks(plan)
    model = learning.model(plan.seed)
    weights = encode({n: p.detach().numpy() for n, p in trained_of(model).items()})
    request: dict[str, Any] = {
        "run": "rehearsal",
        "round": 1,
        "site": known,
        "plan": plan.to_json(),
        "head": json.dumps(GENESIS.to_dict()),
    }
    if plan.clip is not None and plan.unit == "client":
        request["clip"] = plan.clip
    content = RecordDict(
        {ARRAYS: carried("weights", weights, STYPE), REQUEST: ConfigRecord(request)}
    )
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "ledger.jsonl", population="nobody", durable=False)
        held = Site(
            known, rules, ledger, lambda _: made_up(learning), check_head=_any_head, tasks=tasks
        )
        reply = answer(held, content)
    return _facts(plan, reply)


def _any_head(head: object) -> bool:
    """A dry run has no coordinator whose signature could be checked."""
    return True


def made_up(learning: Task) -> Rows:
    """Random rows in the form of the task's own; where these say whose they are, two a person."""
    people = torch.arange(_ROWS) // 2 if learning.subjects else None
    if learning.code or learning.read is not None:
        return replace(made_up_rows(learning, _ROWS), subject=people)
    x = torch.rand((_ROWS, *learning.shape)) * 2 - 1
    if learning.kind == "regression":
        return Rows(x, torch.rand(_ROWS) * 2 - 1, subject=people)
    return Rows(x, torch.randint(len(learning.classes), (_ROWS,)), subject=people)


def show(facts: dict[str, Any]) -> str:
    """The list for a person."""
    lines = [
        f"{facts['task']} ({facts['plan'][:16]}): {facts['status']} {facts['reason']}".rstrip()
    ]
    for one in facts["fields"]:
        lines.append(f"  {one['name']:<8} {one['bytes']:>9} bytes  {one['why']}")
        lines.append(f"           {one['value']}")
    lines.append(f"{facts['bytes']} bytes would leave, and nothing else; the rows were made up")
    lines.append("A real reply has these fields; its head grows by 67 bytes for each entry of the")
    lines.append("ledger that the coordinator has not seen.")
    return "\n".join(lines)


def _plan(directory: Path, name: str | None) -> Plan:
    before = received_plans.received(directory)
    plan = before[-1].plan if name is None and before else load_plan(name or "digits")
    return plan if isinstance(plan.nominal_units, int) else plan.with_units(_ROWS)


def _rules(directory: Path, policy: Path | None, plan: Plan) -> Policy:
    path = policy or directory / "policy.toml"
    if policy is not None or path.is_file():
        return load_policy(path)
    return Policy.simulated(plan, plan.nominal_limit())


def _facts(plan: Plan, reply: RecordDict) -> dict[str, Any]:
    fields = dict(reply.config_records[REPLY])
    listed: list[dict[str, Any]] = []
    for name, value in fields.items():
        text = repr(value)
        why = f"public: {PUBLIC[name]}" if name in PUBLIC else "paid for by the ledger"
        listed.append({"name": name, "bytes": len(text.encode()), "why": why, "value": text})
    for record in reply.array_records.values():
        for name, array in record.items():
            digest = hashlib.sha256(array.data).hexdigest()
            value = f"{plan.wire} safetensors, sha256 {digest}, begins {array.data[:32].hex()}"
            why = "the noised update, paid for by the ledger"
            if not plan.private or not plan.noised_at_site:
                why = "the update, NOT noised here"
            listed.append({"name": name, "bytes": len(array.data), "why": why, "value": value})
    return {
        "plan": plan.digest,
        "task": plan.task,
        "status": fields["status"],
        "reason": fields["reason"],
        "fields": listed,
        "bytes": sum(one["bytes"] for one in listed),
    }
