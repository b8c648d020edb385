"""A proposed plan is answered from plan, policy and ledger; nothing is spent and no row is read."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from client.proposal import answer_proposal
from client.site import KeptReplies, Site
from client.tasks.packages.store import Packages
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.epsilon import spent
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.contract.policy import Policy
from privacy.ledger.heads import GENESIS
from privacy.ledger.ledger import Ledger
from privacy.task_package.archive import MOST_SHOWN, Package
from tests.support.task_packages import MODEL, READ, packed

PLAN = load_plan("digits", ["rounds=10", "sigma=2.0", "rate=1.0", "delta=1e-4", "rows=400"])
RUN = "0123456789abcdef"


def never(learning: Task) -> Rows:
    raise AssertionError("a proposal looks at no row")


def make_site(folder: Path, **policy: Any) -> Site:
    folder.mkdir(exist_ok=True)
    rules = replace(Policy.simulated(PLAN, None), epsilon=100.0, delta=1e-4, **policy)
    ledger = Ledger.create(folder / "ledger.jsonl", population="people", durable=False)
    return Site("north", rules, ledger, never, check_head=lambda head: True)


def propose(held: Site, asked: Plan = PLAN, **change: Any) -> dict[str, Any]:
    fields = {"run": "", "round": 1, "site": "north", "plan": asked.to_json()} | change
    reply = answer_proposal(held, RecordDict({"request": ConfigRecord(fields)}))
    return dict(reply.config_records["reply"])


def test_a_plan_within_the_limits_is_approved_for_all_its_rounds(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    reply = propose(site)
    assert (reply["status"], reply["reason"], reply["rounds"]) == ("approved", "", 10)
    assert site.ledger is not None
    assert site.ledger.entries() == ()


def test_the_forecast_counts_what_the_ledger_holds_and_the_rounds_already_played(
    tmp_path: Path,
) -> None:
    seven = [replace(event, count=7) for event in PLAN.events_of_round("north")]
    budget = spent(seven, 1e-4) + 1e-9
    site = make_site(tmp_path)
    site.policy = replace(site.policy, epsilon=budget)
    assert propose(site)["rounds"] == 7
    assert site.ledger is not None
    site.ledger.spend_all(PLAN.events_of_round("north"), None, run=RUN, round=1, plan=PLAN.digest)
    assert propose(site, run=RUN, round=2)["rounds"] == 6
    assert propose(site, run=RUN, round=8)["rounds"] == 3, "rounds 8, 9 and 10 are left"


def test_a_round_of_which_the_reply_is_kept_costs_nothing_more(tmp_path: Path) -> None:
    seven = [replace(event, count=7) for event in PLAN.events_of_round("north")]
    site = make_site(tmp_path)
    site.policy = replace(site.policy, epsilon=spent(seven, 1e-4) + 1e-9)
    assert site.ledger is not None
    for number in range(1, 8):
        events = PLAN.events_of_round("north")
        site.ledger.spend_all(events, None, run=RUN, round=number, plan=PLAN.digest)
        if number == 3:
            site.replies.put(f"{RUN}/3/weights", [b"a reply"])
            assert propose(site, run=RUN, round=3)["rounds"] == 5, "round 3 again, and four more"
            assert propose(site, run=RUN, round=4)["rounds"] == 4
            assert propose(site, run="ab" * 8, round=3)["rounds"] == 4, "of another run"
    assert propose(site, run=RUN, round=7)["reason"] == "budget-exhausted"
    site.replies.put(f"{RUN}/7/weights", [b"a reply"])
    reply = propose(site, run=RUN, round=7)
    assert (reply["status"], reply["reason"], reply["rounds"]) == ("approved", "", 1)
    assert propose(site, run=RUN, round=8)["reason"] == "budget-exhausted"
    site.paused = lambda: True
    assert propose(site, run=RUN, round=7)["reason"] == "paused"


def test_kept_replies_are_found_by_their_round_and_those_of_older_versions_are_read(
    tmp_path: Path,
) -> None:
    kept = KeptReplies(tmp_path / "replies", most=2)
    assert not kept.holds("run/1")
    for number in (1, 2, 3):
        kept.put(f"run/{number}/weights", [b"%d" % number])
    assert [kept.holds(f"run/{number}") for number in (1, 2, 3)] == [False, True, True]
    assert kept.get("run/3/weights") == b"3"
    assert kept.get("run/3/others") is None
    old = hashlib.sha256(b"run/9/weights").hexdigest()[:32]
    (tmp_path / "replies" / f"{old}.reply").write_bytes(b"of version 0.1.0")
    assert kept.get("run/9/weights") == b"of version 0.1.0"


def test_a_spent_budget_declines_with_no_rounds(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.policy = replace(site.policy, epsilon=1e-3)
    reply = propose(site)
    assert (reply["status"], reply["reason"], reply["rounds"]) == (
        "declined",
        "budget-exhausted",
        0,
    )


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"approve": "list"}, "plan-not-approved"),
        ({"denied": (PLAN.digest,)}, "plan-denied"),
        ({"approve": "list", "plans": (PLAN.digest,)}, ""),
        ({"min_sigma": 2.5}, "noise-too-low"),
    ],
)
def test_the_policy_decides_and_the_forecast_is_told_all_the_same(
    tmp_path: Path, policy: dict[str, Any], reason: str
) -> None:
    reply = propose(make_site(tmp_path, **policy))
    assert reply["reason"] == reason
    assert reply["status"] == ("declined" if reason else "approved")
    assert reply["rounds"] == 10


def test_a_paused_site_says_so_and_a_task_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.paused = lambda: True
    assert propose(site)["reason"] == "paused"
    assert propose(site, replace(PLAN, task="unheard-of"))["reason"] == "task-not-allowed"


@pytest.mark.parametrize(
    "change",
    [
        {"site": "south"},
        {"round": 0},
        {"round": 11},
        {"round": True},
        {"run": "x" * 65},
        {"plan": "{}"},
        {"plan": 7},
    ],
)
def test_anything_else_is_a_bad_request(tmp_path: Path, change: dict[str, Any]) -> None:
    reply = propose(make_site(tmp_path), **change)
    assert (reply["status"], reply["reason"], reply["rounds"]) == ("failed", "bad-request", 0)


def test_an_error_leaves_as_a_code(tmp_path: Path) -> None:
    site = make_site(tmp_path)

    def broken(plan: Plan) -> None:
        raise ValueError("a secret")

    site.on_plan = broken
    reply = propose(site)
    assert (reply["status"], reply["reason"]) == ("failed", "failed")
    assert "secret" not in str(reply)


def test_a_ledger_that_does_not_follow_the_coordinators_head_waits_for_its_owner(
    tmp_path: Path,
) -> None:
    head = {"n": 3, "digest": "ab" * 32, "signature": "00"}
    assert propose(make_site(tmp_path), head=json.dumps(head))["reason"] == "ledger-untrusted"
    head = {**GENESIS.to_dict(), "signature": "00"}
    assert propose(make_site(tmp_path / "new"), head=json.dumps(head))["reason"] == ""


def test_a_policy_without_forecast_tells_nothing_of_what_is_left(tmp_path: Path) -> None:
    one = spent(list(PLAN.events_of_round("north")), 1e-4) + 1e-9
    answers = []
    for number, epsilon in enumerate((one, 100.0)):
        site = make_site(tmp_path / str(number), forecast=False)
        site.policy = replace(site.policy, epsilon=epsilon)
        answers.append(propose(site))
    assert answers[0] == answers[1]
    assert answers[0]["rounds"] == 10
    site = make_site(tmp_path / "with")
    site.policy = replace(site.policy, epsilon=one)
    assert propose(site)["rounds"] == 1


def test_a_package_that_comes_with_a_proposal_is_kept_to_be_read_and_never_run(
    tmp_path: Path,
) -> None:
    package = packed(READ + MODEL + "\nraise RuntimeError('it was run')\n")
    site, shown = make_site(tmp_path), list[Package]()
    site.on_package = lambda plan, one: shown.append(one)
    site.tasks = Packages(tmp_path, lambda: ())
    asked = Plan(
        task="mine",
        rounds=2,
        rate=0.5,
        rows=40,
        lr=1.0,
        sites=1,
        clip=1.0,
        sigma=4.0,
        delta=1e-4,
        code=package.code,
    )
    assert propose(site, asked, package=package.content)["reason"] == "task-not-approved"
    assert [one.code for one in shown] == [package.code]
    changed = package.content.replace(b"nn.Tanh", b"nn.ReLU")
    other = propose(site, asked, package=changed)
    assert (other["status"], other["reason"]) == ("failed", "bad-request")
    for content in (b"", b"x" * (MOST_SHOWN + 1), "text", package.content[:-1]):
        assert propose(site, asked, package=content)["status"] == "failed"
    damaged = replace(asked, code="sha256:" + hashlib.sha256(b"no archive").hexdigest())
    assert propose(site, damaged, package=b"no archive")["status"] == "failed"
    assert propose(site, PLAN, package=package.content)["status"] == "failed", "no package's plan"
    assert len(shown) == 1


def test_a_plan_for_other_data_is_declined_before_its_first_round(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.accepts = lambda plan: plan.task != "digits"
    reply = propose(site)
    assert (reply["status"], reply["reason"], reply["rounds"]) == ("declined", "schema-differs", 0)
