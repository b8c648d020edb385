"""Which enrolled parties are relays, how the sites behind them are called, and what passes them.

A relay is one by its coordinator's own act (`tacit-server sign --relay`). A site behind it is known
to the coordinator as RELAY:SITE; no site's own name holds a colon.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

from privacy.contract.plan import Plan, PlanError
from server.registry.sites import Home, Members, MembersError

_BETWEEN: Final = ":"
UPWARD: Final = "upward"
"""The folder, within a relay's own, that holds its enrolment with its coordinator."""


def behind(relay: str, site: str) -> str:
    """What a relay's site is called at the coordinator."""
    return f"{relay}{_BETWEEN}{site}"


def party_of(name: str) -> str:
    """Who is asked for a site of this name: its relay, or itself."""
    return name.partition(_BETWEEN)[0]


def own_name(name: str) -> str:
    """What a site is called where it is enrolled."""
    return name.rpartition(_BETWEEN)[2]


def relays_of(members: Members) -> frozenset[str]:
    """The relays that may connect."""
    return frozenset(member.name for member in members.enrolled if member.relay)


def upward_of(home: Home) -> Path:
    """Where a relay's enrolment with its coordinator is."""
    return home.folder / UPWARD


def check_not_relay(home: Home) -> Home:
    """The home, where it is no relay's: that one plays its coordinator's runs; MembersError."""
    if upward_of(home).is_dir():
        raise MembersError(f"--dir {home.folder}: is a relay's folder (tacit-server relay)")
    return home


def needs_single_replies(plan: Plan) -> str | None:
    """Why sums of several sites are not enough for a plan, in words; None where they are."""
    if plan.is_secure:
        return 'aggregation = "secure": its parties speak to one coordinator'
    if plan.statistics is not None:
        return "[statistics]: each site's own sums are kept"
    if plan.combine != "mean":
        return f'combine = "{plan.combine}": it looks at each site\'s update'
    if plan.unit == "client":
        return 'unit = "client": the coordinator clips each site\'s update itself'
    if plan.site:
        return f"[site.{next(iter(plan.site))}]: a value for one site cannot be told by its name"
    if plan.tune is not None:
        return "[tune]: a relay is not told which pilot was chosen"
    return None


def relays_for(plan: Plan, relays: Collection[str]) -> frozenset[str]:
    """Those of the relays that take part in a plan's runs: none where it needs single replies.

    A relay that is enrolled while such a run is under way waits for the next run.
    """
    return frozenset() if needs_single_replies(plan) is not None else frozenset(relays)


def check_composes(plan: Plan, relays: frozenset[str]) -> None:
    """PlanError where a plan needs single replies and a relay is enrolled."""
    if relays and (why := needs_single_replies(plan)) is not None:
        raise PlanError(f"cannot pass the relay {min(relays)}, which sends sums: {why}")
