"""Write the reference pages from the code, so that they cannot drift: python docs/generate.py.

Commands, plan keys, policy keys, refusal codes and log events; the pages lie in
docs/reference/generated/ and are no part of the repository.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

import click
import typer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from client.__main__ import app as client_app  # noqa: E402
from privacy.__main__ import app as privacy_app  # noqa: E402
from privacy.contract.keys.contract import Contract  # noqa: E402
from privacy.contract.keys.tables import (  # noqa: E402
    AugmentPlan,
    ModelPlan,
    Operation,
    SecurePlan,
    Simulation,
    SitePlan,
    StatisticsPlan,
    TunePlan,
)
from privacy.contract.policy import MEANINGS, Policy  # noqa: E402
from privacy.contract.schema import expected  # noqa: E402
from privacy.event_log import CLIENT_EVENTS, SERVER_EVENTS  # noqa: E402
from server.__main__ import app as server_app  # noqa: E402
from server.dashboard.run_history import REASONS  # noqa: E402
from server.rounds.messages import FINAL_REFUSALS, WAITING_REFUSALS  # noqa: E402
from simulations.__main__ import app as simulate_app  # noqa: E402
from simulations.__main__ import new_app  # noqa: E402

APPS = {
    "tacit-privacy": privacy_app,
    "tacit-client": client_app,
    "tacit-server": server_app,
    "tacit-simulate": simulate_app,
    "tacit-simulate new": new_app,
}
TABLES = {
    "": Contract,
    "operation": Operation,
    "simulation": Simulation,
    "site.NAME": SitePlan,
    "model": ModelPlan,
    "statistics": StatisticsPlan,
    "secure": SecurePlan,
    "augment": AugmentPlan,
    "tune": TunePlan,
}
NESTED = {"site", "operation", "simulation", "model", "statistics", "secure", "augment", "tune"}


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(one) for one in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that can be run, by its full name."""
    for name, app in APPS.items():
        yield from _below(name, typer.main.get_command(app))


def _below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for word, inner in sorted(command.commands.items()):
            yield from _below(f"{name} {word}", inner)
    else:
        yield name, command


def commands_page() -> str:
    """One section a command: what it does, its arguments and options."""
    parts = ["# Commands\n"]
    for name, command in commands():
        context = click.Context(command, info_name=name)
        usage = " ".join(command.collect_usage_pieces(context))
        parts.append(f"## {name}\n\n{_prose(command.help or '')}\n\n```\n{name} {usage}\n```\n")
        rows = [_option(one, context) for one in command.params if one.name != "help"]
        if rows:
            parts.append(table(("argument or option", "value", "meaning"), iter(rows)) + "\n")
    return "\n".join(parts)


def _option(parameter: click.Parameter, context: click.Context) -> tuple[str, str, str]:
    names = parameter.opts + parameter.secondary_opts
    if isinstance(parameter, click.Argument):
        names = [parameter.make_metavar(context)]
    value = "" if getattr(parameter, "is_flag", False) else parameter.type.name
    choices = getattr(parameter.type, "choices", None)
    if choices:
        value = ", ".join(map(str, choices))
    default = parameter.default
    if default not in (None, False, (), "") and not callable(default):
        value += f" (default {default})"
    words = getattr(parameter, "help", None) or ""
    if parameter.required and isinstance(parameter, click.Option):
        words = f"{words} Required.".strip()
    return ", ".join(f"`{one}`" for one in names), value, words


def _prose(text: str) -> str:
    return "\n".join(line.strip() for line in text.replace("\b", "").strip().splitlines())


def plan_meanings() -> Mapping[str, str]:
    """The meaning of each plan key, from the tables of docs/plan.md."""
    found: dict[str, str] = {}
    for line in (HERE / "plan.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 2:
            for key in re.findall(r"`([a-z_0-9]+)`", cells[0]):
                found[key] = cells[1]
    return found


def plan_page() -> str:
    """Type, bounds and default of every key of a plan; the meanings are those of docs/plan.md."""
    meanings = plan_meanings()
    parts = ["# Plan keys\n", "How keys go together: [the plan](../../plan.md).\n"]
    for name, kind in TABLES.items():
        parts.append(f"## {'`[' + name + ']`' if name else 'The contract'}\n")
        hints = get_type_hints(kind, include_extras=True)
        rows = (
            (f"`{item.name}`", expected(hints[item.name]), _default(item), meanings[item.name])
            for item in fields(kind)
            if item.name not in NESTED
        )
        parts.append(table(("key", "must be", "default", "meaning"), rows) + "\n")
    return "\n".join(parts)


def _default(item: "Field[Any]") -> str:
    if item.default is MISSING:
        return "required" if item.default_factory is MISSING else "none"
    return "none" if item.default in (None, (), "") else f"`{item.default}`"


def policy_page() -> str:
    """Type, bounds, default and meaning of every key of a policy."""
    hints = get_type_hints(Policy, include_extras=True)
    rows = (
        (f"`{item.name}`", expected(hints[item.name]), _default(item), MEANINGS[item.name])
        for item in fields(Policy)
    )
    head = "# Policy keys\n\nHow a site decides: [the policy](../../policy.md).\n\n"
    return head + table(("key", "must be", "default", "meaning"), rows) + "\n"


def refusals_page() -> str:
    """Every code that a site or the coordinator gives, in words, and what it means for the run."""

    def consequence(code: str) -> str:
        if code in FINAL_REFUSALS:
            return "the site is not asked again in this run"
        return "the site waits for a person or the next day" if code in WAITING_REFUSALS else ""

    rows = ((f"`{code}`", words, consequence(code)) for code, words in sorted(REASONS.items()))
    head = "# Refusal codes\n\nA code is all that leaves: it never depends on a row.\n\n"
    return head + table(("code", "meaning", "then"), rows) + "\n"


def events_page() -> str:
    """Every event of the logs."""
    parts = [
        "# Log events\n",
        "With `--json` an event is one JSON object: `time`, `event`, facts.\n",
    ]
    for title, events in (("Client", CLIENT_EVENTS), ("Coordinator", SERVER_EVENTS)):
        rows = ((f"`{name}`", words) for name, words in sorted(events.items()))
        parts.append(f"## {title}\n\n{table(('event', 'meaning'), rows)}\n")
    return "\n".join(parts)


PAGES = {
    "commands": commands_page,
    "plan-keys": plan_page,
    "policy-keys": policy_page,
    "refusals": refusals_page,
    "events": events_page,
}


def main(folder: Path = HERE / "reference" / "generated") -> None:
    """Write every page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / f"{name}.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
