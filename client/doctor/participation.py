"""The doctor's look at what keeps a site out of rounds: pause, answers, data and budget."""

import os
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from client.agent import populations
from client.agent.credentials import Enrolled
from client.agent.populations import Population
from client.agent.received_plans import received, site_of
from client.data.check import check
from client.data.site_rows import Source
from client.site import SiteError
from client.tasks.registry import task, task_of_schema
from client.tasks.rows import TaskError
from client.tasks.task import Task
from privacy.commands.checks import Check
from privacy.contract.forecast import Course, forecast, rounds_that_fit
from privacy.contract.plan import Plan
from privacy.contract.plan_file import schema_digest
from privacy.contract.policy import Policy, PolicyError, load_policy
from privacy.ledger.ledger import Ledger, LedgerError

_PLANS: Final = 5
"""How many of the plans asked are looked at, the latest."""


def participation(directory: Path, policy: Path | None, data: str) -> Iterator[Check]:
    """Everything that stands between a connected site and its next round."""
    path = policy or directory / "policy.toml"
    rules, policy_check = _policy(directory, path, data)
    yield policy_check
    paused = Enrolled(directory).paused
    if paused.exists():
        since = datetime.fromtimestamp(paused.stat().st_mtime, UTC)
        command = f"tacit-client pause --off {_dir(directory)}"
        yield Check("paused", "warn", f"since {since:%Y-%m-%d %H:%M} UTC", command)
    all_populations = _populations(directory)
    if isinstance(all_populations, Check):
        yield all_populations
        return
    sources = dict(_sources(directory, all_populations, data))
    yield from (one for one in sources.values() if isinstance(one, Check))
    rows = {n: s for n, s in sources.items() if isinstance(s, Source)}
    yield from _registered(directory, all_populations, rows)
    yield from _ledgers(directory, all_populations)
    if rules is not None:
        yield from _plans(directory, rules, all_populations, rows)


def _dir(directory: Path) -> str:
    return f"--dir {shlex.quote(str(directory))}"


def _policy(directory: Path, path: Path, data: str) -> tuple[Policy | None, Check]:
    try:
        return load_policy(path), Check("policy", "fine", str(path))
    except PolicyError as error:
        if path.exists():
            then = (
                f"edit {path}, which holds your approvals: `policy new --force` would drop them"
                if os.access(path, os.R_OK)
                else f"chown {shlex.quote(directory.owner())} {shlex.quote(str(path))}"
            )
            return None, Check("policy", "FAULT", str(error), then)
        if data.startswith("builtin:"):
            return None, Check("policy", "warn", "none: the built-in one serves embedded data")
        return None, Check(
            "policy", "FAULT", str(error), f"tacit-client policy new {_dir(directory)}"
        )


def _populations(directory: Path) -> tuple[Population, ...] | Check:
    try:
        return populations.known(directory)
    except ValueError as error:
        then = "restore populations.json from a backup: it says which ledger belongs to whom"
        return Check("populations", "FAULT", str(error), then)


def _sources(
    directory: Path, all_populations: Sequence[Population], data: str
) -> Iterator[tuple[str, Source | Check]]:
    """Each population's rows, or what is wrong with their place."""
    if data:
        try:
            source = Source.parse(data)
        except SiteError as error:
            yield "", Check("data", "FAULT", str(error), "check --data")
            return
        if source.path is not None and not os.access(source.path, os.R_OK):
            yield "", _unreadable(directory, source.path)
            return
        name = next(
            (one.name for one in all_populations if one.data == str(Path(data).absolute())), ""
        )
        yield (name or (all_populations[0].name if len(all_populations) == 1 else "")), source
        return
    for one in all_populations:
        if one.data is None:
            continue
        path = Path(one.data)
        if not path.exists():
            then = f"tacit-client data move {one.name} --data PATH {_dir(directory)}"
            yield one.name, Check("data", "FAULT", f"{one.name}: {path} is not there", then)
        elif not os.access(path, os.R_OK):
            yield one.name, _unreadable(directory, path)
        else:
            yield one.name, Source(path)


def _unreadable(directory: Path, path: Path) -> Check:
    then = f"let {directory.owner()} read it: chown, or chmod g+r and its group"
    return Check("data", "FAULT", f"{path}: not readable", then)


def _registered(
    directory: Path, all_populations: Sequence[Population], rows: dict[str, Source]
) -> Iterator[Check]:
    """Each population's rows under the schema that its owner registered."""
    for name, source in rows.items():
        yield Check("data", "fine", str(source.path or "embedded"))
        if source.path is None or not any(one.name == name for one in all_populations):
            continue
        try:
            schema = populations.schema_of(directory, name=name)
            learning = None if schema is None else task_of_schema(schema)
        except ValueError as error:
            yield Check("schema", "FAULT", str(error), "restore it, or register it again")
            continue
        if learning is not None:
            yield _read("rows", directory, name, learning, source.path)


def _read(what: str, directory: Path, name: str, learning: Task, path: Path) -> Check:
    """What a file is under a schema; nothing of it is said but counts."""
    then = f"tacit-client data check --population {name} {_dir(directory)}"
    try:
        result = check(learning, path)
    except (ValueError, OSError) as error:
        return Check(what, "FAULT", f"{name}: {error}", then)
    text = (
        f"{name}: {result.rows} rows on {result.lines} lines, {result.left_out} would be left out"
    )
    return Check(what, "warn", text, then) if result.worst() else Check(what, "fine", text)


def _ledgers(directory: Path, all_populations: Sequence[Population]) -> Iterator[Check]:
    for one in all_populations:
        name = f"--population {one.name} {_dir(directory)}"
        try:
            trusted = populations.open_ledger(one).trusted()
        except (LedgerError, OSError) as error:
            then = (
                f"if it lies elsewhere: tacit-client data move {one.name} --ledger PATH "
                f"{_dir(directory)}; if it is lost: tacit-client ledger recover --record FILE "
                f"{name} (FILE: the coordinator's heads of this site; docs/ledger.md)"
            )
            yield Check("ledger", "FAULT", str(error), then)
            continue
        if trusted:
            yield Check("ledger", "fine", one.ledger)
            continue
        then = (
            f"bring back the newest copy; else tacit-client ledger recover --record FILE {name}, "
            "or ledger acknowledge (docs/ledger.md)"
        )
        text = f"{one.ledger}: an older copy: its log remembers more than it holds"
        yield Check("ledger", "FAULT", text, then)


def _plans(
    directory: Path, rules: Policy, all_populations: Sequence[Population], rows: dict[str, Source]
) -> Iterator[Check]:
    """The plans asked last: whose they are, whether they were answered, and what is left."""
    try:
        plans = [one.plan for one in received(directory)][-_PLANS:]
    except ValueError as error:
        yield Check("plans", "FAULT", str(error), "delete this file: the coordinator asks again")
        return
    for plan in plans:
        if plan.digest in rules.denied:
            continue
        short = plan.digest[:16]
        if rules.approve == "list" and plan.digest not in rules.plans:
            then = f"tacit-client approve {short} {_dir(directory)}, or deny"
            yield Check("plan", "warn", f"{short} ({plan.task}) waits for your answer", then)
        people = [one for one in all_populations if _suits(one, plan, rows.get(one.name))]
        if not people and rows:
            then = (
                "tacit-client data add NAME --ledger PATH --schema FILE, if its schema is right "
                f"for your data; else tacit-client deny {short} {_dir(directory)}"
            )
            yield Check("plan", "warn", f"{short} ({plan.task}): for no data of this site", then)
        for one in people:
            yield from _fits(directory, rules, one, plan, rows.get(one.name))


def _suits(one: Population, plan: Plan, source: Source | None) -> bool:
    if source is None:
        return False
    if one.tasks and plan.task not in one.tasks:
        return False
    if plan.code is not None:
        return one.schema is None and source.path is not None
    try:
        embedded = task(plan.task, plan.schema).embedded
    except TaskError:
        return False
    if source.path is None:
        return plan.schema is None and embedded
    if plan.schema is None:
        return one.schema is None and not embedded
    return schema_digest(plan.schema) == one.schema


def _fits(
    directory: Path, rules: Policy, one: Population, plan: Plan, source: Source | None
) -> Iterator[Check]:
    """Whether the rows can be read as the plan's, and how many of its rounds can be paid."""
    short = plan.digest[:16]
    readable = plan.schema is None and plan.code is None
    if readable and source is not None and source.path is not None:
        yield _read(f"rows for {short}", directory, one.name, task(plan.task), source.path)
    if not plan.noised_at_site or rules.budget is None:
        return
    try:
        ledger = populations.open_ledger(one)
        past, left = ledger.merged(), plan.rounds - _played(ledger, plan)
    except (LedgerError, OSError):
        return
    outlook = forecast(plan, site_of(directory), rules, past)
    events, first = outlook.events, plan.rounds - left + 1
    course = Course.of(plan, site_of(directory), rules, events, first)
    fit = rounds_that_fit(past, course, rules.budget, most=left)
    text = f"{one.name}: {fit} of {left} rounds of {short} fit"
    if fit >= left:
        yield Check("budget", "fine", text)
        return
    then = (
        f"nothing, if you accept that it ends early; tacit-client deny {short} {_dir(directory)}; "
        "or raise epsilon in the policy, which is a decision about these people"
    )
    yield Check("budget", "warn" if fit else "FAULT", text, then)


def _played(ledger: Ledger, plan: Plan) -> int:
    """How far the last run of this plan has come, as the ledger tells it."""
    mine = [entry for entry in ledger.entries() if entry.plan == plan.digest]
    return max((entry.round for entry in mine if entry.run == mine[-1].run), default=0)
