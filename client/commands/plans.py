"""`policy new`, `plans`, `approve`, `deny`: what is asked of a site, and what its owner allows."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.agent import populations, received_plans
from client.commands.options import HERE, Dir, Json, PolicyFile, Reason
from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.rounding import left_text, spent_text
from privacy.audit_trail import recorded
from privacy.contract.decision import alone
from privacy.contract.forecast import Forecast, epsilons, forecast
from privacy.contract.plan import Plan
from privacy.contract.plan_file import schema_digest
from privacy.contract.policy import Policy, PolicyError, load_policy
from privacy.files import write_atomic
from privacy.printable import folded, printable
from privacy.runtime import ACCOUNTANTS, load

Hash = Annotated[str, typer.Argument(metavar="HASH", help="The plan's hash, or its beginning.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="This site's own limits.", no_args_is_help=True)
    group.command("new")(new)
    app.add_typer(group, name="policy")
    app.command("plans")(plans)
    app.command("approve")(approve)
    app.command("deny")(deny)


def new(
    directory: Dir = HERE,
    epsilon: Annotated[float, typer.Option(help="The most that may ever be spent.")] = 1.0,
    delta: Annotated[float, typer.Option(help="At which delta epsilon is counted.")] = 1e-5,
    min_sigma: Annotated[float, typer.Option(help="The least noise of a release.")] = 0.5,
    max_rate: Annotated[float, typer.Option(help="The largest sampling rate.")] = 1.0,
    max_steps: Annotated[int, typer.Option(help="The most steps a round.")] = 1000,
    max_rounds_per_day: Annotated[int, typer.Option(help="The most rounds a day.")] = 10_000,
    min_rows: Annotated[int, typer.Option(help="The least rows to start with.")] = 1,
    records_per_subject: Annotated[
        int, typer.Option(help="The records of one person that the limit binds together.")
    ] = 1,
    unit: Annotated[
        Literal["any", "record", "subject"],
        typer.Option(help="Whom a plan must protect: a record, or a person with all records."),
    ] = "any",
    task: Annotated[list[str] | None, typer.Option(help="An allowed task (repeatable).")] = None,
    output: Annotated[
        list[str] | None, typer.Option(help="An allowed paid metric (repeatable).")
    ] = None,
    approval: Annotated[
        Literal["list", "within-limits"],
        typer.Option("--approve", help="list: each plan by its hash; or within-limits."),
    ] = "list",
    more_noise: Annotated[
        bool, typer.Option("--more-noise", help="Answer with more noise rather than decline.")
    ] = False,
    trust_coordinator: Annotated[
        bool, typer.Option("--trust-coordinator", help="Allow un-noised updates to be shown.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where, if not DIR/policy.toml.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing policy.")] = False,
    reason: Reason = "",
) -> None:
    """Write a policy, each key with its meaning; unless told more, it allows little."""
    path = out or directory / "policy.toml"
    if path.exists() and not force:
        raise PolicyError(f"{path}: exists already, expected --force to replace it")
    policy = Policy(
        epsilon=epsilon,
        delta=delta,
        min_sigma=min_sigma,
        max_rate=max_rate,
        max_steps=max_steps,
        max_rounds_per_day=max_rounds_per_day,
        min_rows=min_rows,
        tasks=tuple(task or ["*"]),
        approve=approval,
        outputs=("update", *(name for name in output or [] if name != "update")),
        more_noise=more_noise,
        trust_coordinator=trust_coordinator,
        unit=unit,
        records_per_subject=records_per_subject,
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = policy.to_toml().encode()
    digest = hashlib.sha256(text).hexdigest()
    with recorded(directory, "policy new", str(path), fingerprint=digest, reason=reason):
        write_atomic(path, text)
        _log_change(directory, policy)
    typer.echo(f"{path}: epsilon {epsilon:g} at delta {delta:g} for life; read it, and change it")


def plans(directory: Dir = HERE, policy: PolicyFile = None, as_json: Json = False) -> None:
    """The plans that were asked, what each would cost, and what was said to it."""
    rules = load_policy(policy or directory / "policy.toml")
    rows = [
        _facts(directory, rules, one.plan) | {"since": one.since}
        for one in received_plans.received(directory)
    ]
    if as_json:
        typer.echo(json.dumps({"plans": rows}))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("hash", "task", "unit", "first asked", "state", "asks", "left"):
        table.add_column(name)
    for facts in rows:
        since = datetime.fromtimestamp(facts["since"], UTC).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            facts["plan"][:16],
            escape(facts["task"]),
            facts["unit"],
            since,
            facts["state"],
            _number(facts["asks"]),
            _number(facts["left"]),
        )
    console = Console()
    if rows:
        console.print(table, highlight=False)
    else:
        console.print("no coordinator has asked for a plan yet")


def approve(
    hash_: Hash,
    directory: Dir = HERE,
    policy: PolicyFile = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Allow a plan: how it differs from the last approved one, and what it asks of the balance."""
    path = policy or directory / "policy.toml"
    _answer(directory, path, hash_, reason, as_json, allowed=True)


def deny(
    hash_: Hash,
    directory: Dir = HERE,
    policy: PolicyFile = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Refuse a plan for good, until it is approved."""
    path = policy or directory / "policy.toml"
    _answer(directory, path, hash_, reason, as_json, allowed=False)


def _answer(
    directory: Path, policy: Path, text: str, reason: str, as_json: bool, *, allowed: bool
) -> None:
    rules = load_policy(policy)
    digest = received_plans.find(directory, text)
    known = {one.plan.digest: one.plan for one in received_plans.received(directory)}
    plan = known.get(digest)
    facts: dict[str, Any] = {"plan": digest}
    if plan is not None:
        before = received_plans.last_approved(directory, rules, but=digest)
        changes = received_plans.difference(before, plan) if before is not None else {}
        facts |= {"since_plan": before.digest if before is not None else None}
        facts |= {"changes": {key: list(pair) for key, pair in changes.items()}}
    change = received_plans.approve if allowed else received_plans.deny
    what = f"plan {digest[:16]}" + (f" ({plan.task})" if plan is not None else "")
    command = "approve" if allowed else "deny"
    with recorded(directory, command, what, fingerprint=digest, reason=reason):
        after = change(policy, digest)
    if plan is not None:
        facts = _facts(directory, after, plan) | facts | {"rows": _rows_for(directory, plan)}
    facts["state"] = "approved" if allowed else "denied"
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _print(Console(), facts)


def _facts(directory: Path, rules: Policy, plan: Plan) -> dict[str, Any]:
    """A plan, what it asks of each population's balance, and whether it may."""
    site, past = received_plans.site_of(directory), _past(directory)
    load(ACCOUNTANTS)
    outlook = forecast(plan, site, rules, past)
    state = "denied" if plan.digest in rules.denied else "asked"
    if plan.digest in rules.plans:
        state = "approved"
    elif state == "asked" and rules.approve == "within-limits":
        state = "within limits" if outlook.refusal is None else "asked"
    used = spent(past, rules.delta, records=None)
    return {
        "plan": plan.digest,
        "task": plan.task,
        "unit": plan.unit,
        "rounds": plan.rounds,
        "purpose": plan.purpose,
        "state": state,
        "asks": _asks(plan, outlook, rules),
        "epsilon_run": None
        if not plan.private
        else next(iter(epsilons(outlook, plan.required_delta, [plan.rounds])))[1],
        "left": max(0.0, rules.epsilon - used),
        **_alone(plan, outlook, rules, past),
        "refused": None if outlook.refusal is None else outlook.refused,
        "code": "" if outlook.refusal is None else outlook.refusal.code,
        "message": "" if outlook.refusal is None else outlook.refusal.message,
    }


def _rows_for(directory: Path, plan: Plan) -> list[str] | None:
    """The populations whose registered schema is the plan's; None where the plan brings none."""
    if plan.schema is None or plan.code is not None:
        return None
    digest = schema_digest(plan.schema)
    return [one.name for one in populations.known(directory) if one.schema == digest]


def _alone(plan: Plan, outlook: Forecast, rules: Policy, past: tuple[Event, ...]) -> dict[str, Any]:
    """Secure aggregation: who the parties are, and what is spent if all others collude."""
    if not plan.is_secure:
        return {}
    whole = alone(outlook.course.taken(plan.rounds))
    used = spent(alone(past), rules.delta, records=None)
    return {
        "asks_alone": spent(whole, rules.delta, records=None),
        "left_alone": max(0.0, rules.epsilon_alone - used),
        "parties": dict(plan.roster),
        "colluding": plan.terms.colluding,
        "dropouts": plan.terms.dropouts,
    }


def _asks(plan: Plan, outlook: Forecast, rules: Policy) -> float | None:
    """Epsilon of the whole run by itself at the policy's delta; None where the site spends none."""
    if not plan.noised_at_site:
        return None
    return spent(outlook.course.taken(plan.rounds), rules.delta, records=None)


def _past(directory: Path) -> tuple[Event, ...]:
    """What was spent of the population that has spent most entries, of those here."""
    ledgers = [populations.open_ledger(one) for one in populations.known(directory)]
    return max((one.merged() for one in ledgers), key=_releases, default=())


def _releases(events: tuple[Event, ...]) -> int:
    return sum(event.steps * event.count for event in events)


def _log_change(directory: Path, policy: Policy) -> None:
    """The ledgers' logs hear of every new limit."""
    for one in populations.known(directory):
        populations.log_policy(populations.open_ledger(one), policy)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _print(console: Console, facts: dict[str, Any]) -> None:
    def say(line: str) -> None:
        for part in folded(line):
            console.print(escape(part), highlight=False, soft_wrap=True)

    if facts.get("asks") is not None:  # first, so that nothing from outside can hide it
        cost, left = spent_text(facts["asks"]), left_text(facts["left"])
        say(f"epsilon {cost} is asked, {left} is left")
    elif "task" in facts:
        say(f"no epsilon is spent here: unit {facts['unit']}")
    if "asks_alone" in facts:
        cost, left = spent_text(facts["asks_alone"]), left_text(facts["left_alone"])
        say(
            f"this holds while at most {facts['colluding']} other parties work with the coordinator"
        )
        say(f"epsilon {cost} is asked if all of them do, {left} is left of epsilon_alone")
    say(f"{facts['plan']}: {facts['state']}")
    if "task" not in facts:
        say("it was not asked yet; it may be, from now on")
        return
    say(f"task {printable(facts['task'])}, {facts['rounds']} rounds, unit {facts['unit']}")
    if facts["purpose"]:
        say(f"  purpose, as the coordinator states it: {printable(facts['purpose'], 500)}")
    if "asks_alone" in facts:
        say("secure aggregation among these parties: compare each key with its site's owner")
        for name, key in facts["parties"].items():
            say(f"  {name}: {key}")
    if facts.get("rows") == [] and facts["state"] == "approved":
        say("no rows of this site are for it: none are registered with its schema")
        say("the client declines it (schema-differs); if the schema is right for your rows:")
        say("tacit-client data add NAME --ledger PATH --data PATH --schema FILE")
    if facts["refused"] is not None:
        say(f"round {facts['refused']} would be refused: {facts['code']} ({facts['message']})")
    if facts["since_plan"] is None:
        say("no plan was approved before it")
        return
    say(f"since {facts['since_plan'][:16]}, approved last:")
    for key, (old, now) in facts["changes"].items():
        say(f"  {key}: {printable(old)} -> {printable(now)}")
