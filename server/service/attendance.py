"""Who can take part in the next round of a plan: a pure function of what the sites answered."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from privacy.contract.plan import Plan
from server.registry.relays import party_of, relays_for, relays_of
from server.registry.sites import Home
from server.rounds.messages import BUDGET, FINAL_REFUSALS
from server.rounds.site_grid import SiteGrid
from server.service.queue import Queue, SiteAnswer

AWAY: Final = "away"
NOT_ASKED: Final = "not-asked"


@dataclass(frozen=True, slots=True)
class Attendance:
    """The enrolled sites: `able` now; `waiting` for a person or a connection; `refused` for good.

    The reasons are codes. Behind the relays `unheard` there may be any number of sites.
    """

    able: frozenset[str]
    waiting: Mapping[str, str]
    refused: Mapping[str, str]
    unheard: frozenset[str] = frozenset()

    def reachable(self, least: int) -> bool:
        """Whether `least` sites may ever take part, as far as is known."""
        return bool(self.unheard) or len(self.able) + len(self.waiting) >= least

    def unreachable(self, least: int) -> tuple[str, str]:
        """How a run ends that is not reachable: "budget" or "failed", and why."""
        spent = bool(self.refused) and all(reason == BUDGET for reason in self.refused.values())
        if spent and not self.able and not self.waiting:
            return "budget", "every site's budget is spent"
        reason = f"min_sites = {least} cannot be reached: {self}"
        return ("budget" if spent else "failed"), reason

    def __str__(self) -> str:
        absent = {**self.waiting, **self.refused}
        listed = "; ".join(f"{site}: {reason}" for site, reason in sorted(absent.items()))
        return f"{len(self.able)} can take part" + (f" ({listed})" if listed else "")


def turnout(home: Home, grid: SiteGrid, queue: Queue, plan: Plan, number: int) -> Attendance:
    """Who can take part in round `number` of a plan, as far as is known now.

    Who was enrolled after a plan that does not allow for them was made is not in it: a relay where
    it needs single replies, a site that is no party of its secure aggregation.
    """
    members = home.members()
    every = relays_of(members)
    relays = relays_for(plan, every)
    parties = plan.roster or members.sites
    enrolled = [
        one.name
        for one in members.enrolled
        if one.name in parties and (one.name in relays or one.name not in every)
    ]
    connected = set(grid.names().values())
    return attendance(enrolled, connected, queue.answers(plan.digest), number, relays)


def attendance(
    enrolled: Iterable[str],
    connected: Collection[str],
    answers: Mapping[str, SiteAnswer],
    number: int,
    relays: Collection[str] = frozenset(),
) -> Attendance:
    """Who can take part in round `number`: direct sites, and those that the `relays` told of.

    A site that approved with a forecast of R rounds from round r on has spent its budget at r + R.
    A site behind a relay is connected if both are.
    """
    able: set[str] = set()
    waiting: dict[str, str] = {}
    refused: dict[str, str] = {}
    behind = [site for site in answers if party_of(site) != site and party_of(site) in relays]
    unheard = set(relays) - {party_of(site) for site in behind}
    for site in [*enrolled, *behind]:
        if site in relays and site not in unheard:
            continue
        answer = answers.get(site)
        if answer is not None and answer.status == "declined" and answer.reason in FINAL_REFUSALS:
            refused[site] = answer.reason
        elif answer is not None and answer.status == "approved" and _spent(answer, number):
            refused[site] = BUDGET
        elif (site if site in connected else party_of(site)) not in connected:
            waiting[site] = AWAY
        elif answer is None:
            waiting[site] = NOT_ASKED
        elif answer.status == "approved":
            able.add(site)
        else:
            waiting[site] = answer.reason
    return Attendance(frozenset(able), waiting, refused, frozenset(unheard))


def _spent(answer: SiteAnswer, number: int) -> bool:
    return number >= answer.round + answer.rounds
