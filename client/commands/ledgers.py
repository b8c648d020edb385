"""`data`, `ledger` and `budget`: the people in the data, what was spent of them, what is left."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.agent import populations
from client.agent.credentials import Enrolled
from client.agent.populations import Population, PopulationError, choose
from client.agent.received_plans import received, site_of
from client.commands.data_check import check
from client.commands.options import HERE, Dir, Json, PolicyFile, PopulationName
from privacy.accounting.epsilon import json_number, spent
from privacy.accounting.rounding import left_text, spent_text
from privacy.accounting.segments import Budget
from privacy.audit_trail import recorded
from privacy.contract.decision import Accepted, judge, with_records
from privacy.contract.forecast import Course, rounds_that_fit
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.contract.policy import Policy, load_policy
from privacy.files import Limits, parse_json, read_bounded
from privacy.identity.keys import verify
from privacy.ledger.ledger import Ledger
from privacy.ledger.recovery import Known, RecoveryError, known_events, recover
from privacy.runtime import ACCOUNTANTS, load

_KEY: Final = re.compile(r"[0-9a-f]{64}")
_HEADS_MAX: Final = 1 << 28
_HEAD_LINE: Final = Limits(size=1 << 26, count=1 << 20)
"""A file of heads, as a coordinator sends it to an owner who recovers a ledger."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    data = typer.Typer(help="The people in this site's data.", no_args_is_help=True)
    data.command("add")(add)
    data.command("remove")(remove)
    data.command("list")(list_)
    data.command("move")(move)
    data.command("check")(check)
    app.add_typer(data, name="data")
    ledger = typer.Typer(help="Repair what happened to a ledger.", no_args_is_help=True)
    ledger.command("acknowledge")(acknowledge)
    ledger.command("recover")(recover_)
    app.add_typer(ledger, name="ledger")
    app.command()(budget)


def add(
    name: Annotated[str, typer.Argument(help="A name for the people in the data, for good.")],
    ledger: Annotated[Path, typer.Option(help="Where their ledger is, or is to be made.")],
    data: Annotated[Path | None, typer.Option(help="Where their rows lie.")] = None,
    schema: Annotated[
        Path | None,
        typer.Option(help="Their schema (TOML): only plans with this one are taken."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task that they are for (repeatable); none: any."),
    ] = None,
    separate: Annotated[
        bool,
        typer.Option(
            "--separate-people", help="The rows are another population's, but of other people."
        ),
    ] = False,
    directory: Dir = HERE,
) -> None:
    """Give the people in the data their name, their schema and their ledger, for all runs."""
    text = _schema(schema)
    where = f"{name}: ledger {ledger}" + (f", data {data}" if data is not None else "")
    where += ", declared separate people" if separate else ""
    with recorded(directory, "data add", where):
        opened, existing = populations.add(
            directory, name, ledger, data, text, task or (), separate=separate
        )
    what = f"found, with {opened.head.n} entries" if existing else "made; nothing was spent yet"
    typer.echo(f"{name}: ledger {opened.path} {what}")


def remove(
    name: Annotated[str, typer.Argument(help="The people's name.")], directory: Dir = HERE
) -> None:
    """Forget where the people's rows lie, and remove the copies that were made of them.

    The name, the schema and the ledger stay: what was spent is spent. The rows' own files are not
    touched.
    """
    from client.agent.process import alone  # loads torch
    from client.data.cache import Cache

    with alone(directory), recorded(directory, "data remove", name):
        one = populations.forget_data(directory, name)
        size = Cache(populations.cache_folder(directory, one.name)).remove()
    typer.echo(f"{one.name}: {size} bytes of encoded copies removed; the ledger {one.ledger} stays")


def move(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The population.")],
    data: Annotated[Path | None, typer.Option(help="Where its rows lie by now.")] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Where its ledger lies by now, with its other files.")
    ] = None,
    directory: Dir = HERE,
) -> None:
    """Say where a population's rows or its ledger lie, after they were moved; nothing is copied."""
    if data is None and ledger is None:
        raise PopulationError("data move needs --data PATH or --ledger PATH")
    places = [f"data {data}"] if data is not None else []
    places += [f"ledger {ledger}"] if ledger is not None else []
    with recorded(directory, "data move", f"{name}: {', '.join(places)}"):
        one = populations.move(directory, name, data=data, ledger=ledger)
    typer.echo(f"{name}: ledger {one.ledger}, data {one.data or 'as given at run'}")


def _schema(path: Path | None) -> str | None:
    """The text of a schema that can be used."""
    if path is None:
        return None
    from client.tasks.registry import task_of_schema  # torch, only where a schema is read

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise PopulationError(f"--schema {path}: expected a TOML file ({why})") from None
    task_of_schema(text)
    return text


def list_(directory: Dir = HERE, as_json: Json = False) -> None:
    """Show the populations of this site."""
    entries = populations.known(directory)
    if as_json:
        facts = [
            {
                "name": p.name,
                "ledger": p.ledger,
                "data": p.data,
                "schema": p.schema,
                "tasks": list(p.tasks),
            }
            for p in entries
        ]
        typer.echo(json.dumps({"populations": facts}))
        return
    for one in entries:
        typer.echo(f"{one.name}: ledger {one.ledger}, data {one.data or 'as given at run'}")


def acknowledge(
    directory: Dir = HERE,
    name: PopulationName = None,
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "by the operator",
) -> None:
    """Go on with a ledger that lost entries, such as a restored copy: logged, for good."""
    population = choose(directory, name=name)
    ledger = Ledger.open(Path(population.ledger))
    with recorded(directory, "ledger acknowledge", population.name, reason=reason):
        head = ledger.acknowledge(reason)
    typer.echo(
        f"{ledger.path}: goes on from {head.n} entries. What a lost copy spent after them is "
        "not counted here; the log says so."
    )


def recover_(
    directory: Dir = HERE,
    name: PopulationName = None,
    record: Annotated[
        list[Path] | None,
        typer.Option(help="A coordinator's heads/SITE.jsonl of this site (repeatable)."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="A further coordinator's verifying key: its hex, or a file with it."),
    ] = None,
) -> None:
    """Rebuild a lost ledger from the coordinators' records, or open one marked fully spent."""
    population = choose(directory, name=name)
    known = _known(directory, record or [], key or [])
    with recorded(directory, "ledger recover", population.name):
        ledger = recover(Path(population.ledger), population=population.name, known=known)
    notes = [note for note in ledger.notes() if note.what == "recovered"]
    typer.echo(f"{ledger.path}: {notes[-1].details['result']}")


def budget(
    directory: Dir = HERE,
    policy: PolicyFile = None,
    plan: Annotated[
        str | None, typer.Option(help="A plan's name or file; else every plan that was asked.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What was spent of each population, what is left, how many more rounds of a plan fit."""
    rules = load_policy(policy or directory / "policy.toml")
    plans = [load_plan(plan)] if plan is not None else [one.plan for one in received(directory)]
    entries = populations.known(directory)
    if not entries:
        raise PopulationError(f"{directory}: knows no data yet; expected `tacit-client data add`")
    load(ACCOUNTANTS)
    facts = [_balance(one, rules, plans, directory) for one in entries]
    if as_json:
        shown = [one | {"spent": json_number(one["spent"])} for one in facts]
        typer.echo(json.dumps({"populations": shown}))
    else:
        _print(Console(), facts)


def _known(directory: Path, records: Sequence[Path], keys: Sequence[str]) -> Known | None:
    if not records:
        return None
    trusted = [_key(text) for text in keys]
    if (directory / "site.json").is_file() and (verifying_key := Enrolled(directory).verify):
        trusted.append(verifying_key)
    if not trusted:
        raise RecoveryError("expected --key with the coordinator's verifying key")

    def signed(payload: bytes, signature: bytes) -> bool:
        return any(verify(key, payload, signature) for key in trusted)

    return known_events([_lines(path) for path in records], signed)


def _key(text: str) -> str:
    """A verifying key: its 64 hexadecimal digits, or a file that holds them."""
    try:
        key = text if _KEY.fullmatch(text) else Path(text).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError, ValueError):
        key = ""
    if not _KEY.fullmatch(key):
        raise RecoveryError(f"--key: expected 64 hexadecimal digits or a file of them, got {text}")
    return key


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        content = read_bounded(path, _HEADS_MAX)
        lines = [parse_json(line, _HEAD_LINE) for line in content.split(b"\n") if line]
    except (OSError, ValueError) as error:
        raise RecoveryError(f"{path}: expected a JSON object a line ({error})") from None
    if not all(isinstance(line, dict) for line in lines):
        raise RecoveryError(f"{path}: expected a JSON object a line")
    return lines


def _balance(
    population: Population, rules: Policy, plans: Sequence[Plan], directory: Path
) -> dict[str, Any]:
    ledger = populations.open_ledger(population)
    past, records = ledger.merged(), rules.records_per_subject
    used = spent(past, rules.delta, records=None)
    site = site_of(directory)
    return {
        "population": population.name,
        "ledger": population.ledger,
        "entries": ledger.head.n,
        "trusted": ledger.trusted(),
        "epsilon": rules.epsilon,
        "delta": rules.delta,
        "records": records,
        "spent": used,
        "left": max(0.0, rules.epsilon - used),
        "plans": [_fit(one, rules, ledger, site) for one in plans if one.noised_at_site],
    }


def _fit(plan: Plan, rules: Policy, ledger: Ledger, site: str) -> dict[str, Any]:
    past = ledger.merged()
    verdict = judge(plan, rules, past, site=site)
    taken = isinstance(verdict, Accepted)
    events = with_records(plan.events_of_round(site), rules)
    if isinstance(verdict, Accepted):
        events = verdict.events
    course = Course.of(plan, site, rules, events)
    limit = rules.budget or Budget(rules.epsilon, rules.delta)
    rounds = rounds_that_fit(past, course, limit, most=max(plan.rounds, 1000))
    return {
        "plan": plan.digest,
        "task": plan.task,
        "rounds": plan.rounds,
        "rounds_left": rounds,
        "sigma": course.events[0].sigma,
        "accepted": taken,
        "code": "" if isinstance(verdict, Accepted) else verdict.code,
    }


def _print(console: Console, facts: Sequence[dict[str, Any]]) -> None:
    for one in facts:
        group = f" for {one['records']} records of a person" if one["records"] > 1 else ""
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("population", "entries", "spent", "of", "left", "delta"):
            table.add_column(name, justify="left" if name == "population" else "right")
        table.add_row(
            escape(one["population"]),
            str(one["entries"]),
            spent_text(one["spent"]),
            f"{one['epsilon']:g}",
            left_text(one["left"]),
            f"{one['delta']:g}{group}",
        )
        console.print(table, highlight=False)
        if not one["trusted"]:
            console.print("its log remembers more than it holds: `tacit-client ledger acknowledge`")
        for plan in one["plans"]:
            more = f"{plan['rounds_left']} more rounds of {plan['task']} {plan['plan'][:12]} fit"
            state = "" if plan["accepted"] else f"; as it stands: {plan['code']}"
            console.print(f"{more} (it has {plan['rounds']}){state}", highlight=False)
