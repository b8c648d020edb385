"""The sites of one client's process: one for each population that it serves, behind one connection.

A plan is for the population whose schema and tasks it suits. Where it could be for two of them the
client does not start: nobody but the owner can say whose budget pays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from client.agent import populations, process
from client.agent.credentials import Enrolled
from client.data.site_rows import SiteRows, Source
from client.round_request import weights_limit
from client.site import Site, SiteError
from client.tasks.rows import TaskError
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import from_json
from privacy.event_log import EventLog

REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Residents:
    """The sites, in the order in which their populations were added; never empty."""

    sites: Sequence[Site]

    def site_for(self, content: RecordDict) -> Site:
        """Whom a request is for; the first, which refuses it, where it is for none."""
        record = content.get(REQUEST)
        return self.of(record if isinstance(record, ConfigRecord) else {})

    def of(self, fields: Mapping[str, Any]) -> Site:
        """Whom a request with these fields is for."""
        text = fields.get("plan")
        try:
            plan = from_json(text) if isinstance(text, str) else None
        except PlanError:
            plan = None
        return self.sites[0] if plan is None or len(self.sites) == 1 else self._for(plan)

    def limit(self, fields: Mapping[str, Any], kind: str) -> int:
        """How many bytes of arrays a request may bring."""
        return weights_limit(self.of(fields), fields, kind)

    def _for(self, plan: Plan) -> Site:
        for site in self.sites:
            if _suits(site, plan):
                return site
        return self.sites[0]


def residents(
    site: Enrolled,
    source: Source | None,
    log: EventLog,
    *,
    policy: Path | None,
    population: str | None,
    where: str,
    on_fault: Callable[[], None],
) -> Residents:
    """The site of `source`, or where there is none of every population whose rows' place is known.

    SiteError where one plan could be for two of them.
    """
    sources = {population: source} if source is not None else _known(site, population)
    sites = [
        process.resident(
            site, one, log, policy=policy, population=name, where=where, on_fault=on_fault
        )
        for name, one in sources.items()
    ]
    for one, other in combinations(sites, 2):
        if isinstance(one.rows, SiteRows) and isinstance(other.rows, SiteRows):
            _refuse_overlap(one, one.rows, other, other.rows)
    return Residents(sites)


def _known(site: Enrolled, population: str | None) -> dict[str | None, Source]:
    populations.tell_apart(site.folder)
    chosen = [one for one in populations.known(site.folder) if population in (None, one.name)]
    sources: dict[str | None, Source] = {}
    for one in chosen:
        if one.data is None:
            continue
        try:
            sources[one.name] = Source.parse(one.data)
        except SiteError as error:
            then = f"tacit-client data move {one.name} --data PATH"
            raise SiteError(f"{one.name}: {error} (is it elsewhere by now? {then})") from None
    if not sources:
        raise SiteError(
            "--data: expected the path of this site's rows, or builtin:K/N, or a population whose "
            "rows were named (tacit-client data add NAME --ledger PATH --data PATH)"
        )
    return sources


def _suits(site: Site, plan: Plan) -> bool:
    try:
        return isinstance(site.rows, SiteRows) and site.rows.suits(plan)
    except TaskError:
        return False


def _refuse_overlap(one: Site, rows: SiteRows, other: Site, others: SiteRows) -> None:
    names = [site.ledger.population for site in (one, other) if site.ledger is not None]
    if rows.overlaps(others):
        raise SiteError(
            f"{' and '.join(names)}: one plan could be for both; say which tasks each is for "
            f"(tacit-client data add {names[-1]} --ledger PATH --task TASK), or serve one of them "
            "(--population NAME)"
        )
