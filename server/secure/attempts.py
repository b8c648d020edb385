"""Ask a round of secure aggregation: keys, shares, masked updates, survivors, reveal.

Until the masked updates nothing is spent: a site that is missing there is left out of a new list. A
site that is missing later has dropped out, and is recovered from the others' shares. An attempt
that is not finished, for whatever reason, ends in no sum at all; the next one has fresh keys.
"""

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from flwr.app import Message

from privacy.arrays import encode
from privacy.secagg import coordinator
from privacy.secagg.masks import Words
from privacy.secagg.messages import (
    MessageError,
    list_text,
    map_text,
    names_text,
    read_keys,
    read_revealed,
    read_shares,
    read_signature,
)
from privacy.secagg.parties import (
    Attempt,
    PartyList,
    Roster,
    SecureAggregationError,
    SignedKeys,
    check_keys,
    party_list,
)
from privacy.secagg.party import Revealed, SignedShares
from privacy.secagg.plan_ring import ring_of
from privacy.secagg.ring import Ring
from server.rounds.aggregation import State
from server.rounds.collection import NO_ANSWER, judged, replies, shapes_of, without_arrays
from server.rounds.history import RoundRecord
from server.rounds.job import Job
from server.rounds.messages import Answer, ReplyError, Request, ask, packed
from server.secure.steps import Declined, read_step, step
from server.secure.sums import SecureSum

T = TypeVar("T")
_NO_FIELDS: Final[Mapping[str, str]] = {}


def secure_sum(
    job: Job, state: State, sites: Collection[str], record: RoundRecord
) -> SecureSum | None:
    """The sum of one round, or None: where too few sites took part, or too few stayed.

    Parties that are not connected are missing from the start; the plan's noise allows for some.
    """
    plan = job.plan
    one = _Round(job, state, record, job.roster or plan.roster)
    able = {site for site in job.grid.names().values() if site in sites and site in one.roster}
    for site in able:
        record.answers[site] = Answer(site, "failed", NO_ANSWER)
    if not job.masks:
        return one.unmasked(able) if len(able) >= plan.terms.least else None
    while len(able) >= plan.terms.least:
        parties, messages = one.list_of(able)
        if parties is not None:
            return one.finish(parties, messages)
        able = one.able(able)
    return None


@dataclass(slots=True)
class _Round:
    job: Job
    state: State
    record: RoundRecord
    roster: Roster
    failed: set[str] = field(default_factory=set)

    @property
    def ring(self) -> Ring:
        return ring_of(self.job.plan, sum(a.size for a in self.state.weights.values()))

    def able(self, sites: Collection[str]) -> set[str]:
        """Those of the sites asked that have not failed in this round."""
        return set(sites) - self.failed

    def list_of(self, able: Collection[str]) -> tuple[PartyList | None, dict[str, SignedShares]]:
        """A list that every party on it has signed, with all their shares; None where one fails."""
        plan, run = self.job.plan, self.job.folder.id
        attempt = Attempt(run, plan.digest, self.state.round + 1, secrets.token_hex(16))

        def read(site: str, text: str) -> SignedKeys:
            keys = read_keys(text)
            if keys.site != site:
                raise MessageError("the keys of another site")
            check_keys(keys, attempt, self.roster)
            return keys

        common = {"attempt": attempt.number}
        keys = self.steps(able, {"stage": "keys", **common}, read)
        if len(keys) < plan.terms.least:
            return None, {}
        parties = party_list(keys.values(), attempt, plan.terms, self.roster)

        def read_sharing(site: str, text: str) -> SignedShares:
            message = read_shares(text)
            if message.site != site:
                raise MessageError("the shares of another site")
            coordinator.check_shares(parties, self.roster, message)
            return message

        listed = list_text(parties.keys)
        fields = {"stage": "shares", "keys": listed, **common}
        messages = self.steps(parties.names, fields, read_sharing)
        return (parties, messages) if len(messages) == len(parties.names) else (None, {})

    def finish(self, parties: PartyList, messages: Mapping[str, SignedShares]) -> SecureSum | None:
        """Masked updates, their survivors, and the masks off; None where too few stayed."""
        terms, attempt = self.job.plan.terms, parties.attempt
        agreements = map_text({name: one.agreement for name, one in messages.items()})

        def fields_for(site: str) -> Mapping[str, str]:
            sealed = {n: one.sealed[site] for n, one in messages.items() if n != site}
            return {
                "attempt": attempt.number,
                "agreements": agreements,
                "sealed": map_text(sealed),
            }

        total, survivors = self.updates(parties.names, fields_for)
        if len(survivors) < terms.least:
            return None

        def read_confirmation(site: str, text: str) -> bytes:
            signature = read_signature(text)
            coordinator.check_confirmation(parties, self.roster, survivors, site, signature)
            return signature

        common = {"attempt": attempt.number}
        fields = {"stage": "survivors", "survivors": names_text(survivors), **common}
        signatures = self.steps(survivors, fields, read_confirmation, keep=True)
        if len(signatures) < terms.threshold:
            return None

        def read_reveal(site: str, text: str) -> Revealed:
            message = read_revealed(text)
            if message.site != site:
                raise MessageError("the shares of another site")
            coordinator.check_revealed(parties, survivors, message)
            return message

        fields = {"stage": "reveal", "signatures": map_text(signatures), **common}
        revealed = self.steps(tuple(signatures), fields, read_reveal, keep=True)
        if len(revealed) < terms.threshold:
            return None
        try:
            named = coordinator.unmask(total, parties, terms, survivors, tuple(revealed.values()))
        except SecureAggregationError as error:
            self.fail(error.site, error.code)
            return None
        value = self.ring.value(total)
        return SecureSum(value, survivors, len(parties.names), tuple(sorted(named)))

    def unmasked(self, able: Collection[str]) -> SecureSum | None:
        """The same sum without any masks: in a simulation alone."""
        total, survivors = self.updates(able, lambda site: _NO_FIELDS)
        if len(survivors) < self.job.plan.terms.least:
            return None
        return SecureSum(self.ring.value(total), survivors, len(able))

    def updates(
        self, names: Collection[str], fields_for: Callable[[str], Mapping[str, str]]
    ) -> tuple[Words, tuple[str, ...]]:
        """The sum of the updates that came, modulo the ring, and whose they were."""
        job, number = self.job, self.state.round + 1
        weights, shapes = packed(encode(self.state.weights)), shapes_of(self.state, job.plan)
        total = self.ring.zeros(sum(a.size for a in self.state.weights.values()))
        survivors: list[str] = []

        def message(node: int, request: Request) -> Message:
            return ask(job.grid, node, request, weights, more=fields_for(request.site))

        pending = self.post(names, message)
        self.record.bytes_down += len(weights.data) * len(pending)
        for request, reply in self.answers(pending):
            answer = judged(reply, request, job.plan, shapes, job.heads)
            del reply
            self.record.answers[request.site] = without_arrays(answer)
            job.listener.on_answer(number, self.record.answers[request.site])
            if answer.words is not None:
                total += answer.words
                survivors.append(request.site)
            else:
                self.failed.add(request.site)
            del answer
        return total, tuple(sorted(survivors))

    def steps(
        self,
        names: Collection[str],
        fields: Mapping[str, str],
        read: Callable[[str, str], T],
        *,
        keep: bool = False,
    ) -> dict[str, T]:
        """Everybody's answer to one step; who fails is recorded, unless `keep`: it is in it."""
        answers: dict[str, T] = {}
        pending = self.post(names, lambda node, request: step(self.job.grid, node, request, fields))
        for request, reply in self.answers(pending):
            site = request.site
            try:
                answers[site] = read(site, read_step(reply, request))
            except Declined as error:
                self.fail(site, str(error), keep, status="declined")
            except ReplyError as error:
                self.fail(site, str(error), keep)
            except MessageError:
                self.fail(site, "bad-reply", keep)
            except SecureAggregationError as error:
                self.fail(site, error.code, keep)
        for request in pending.values():
            self.fail(request.site, NO_ANSWER, keep)
        return answers

    def fail(self, site: str, reason: str, keep: bool = False, status: str = "failed") -> None:
        """Record why a site is left out; a site whose update is in the sum stays as it is."""
        self.failed.add(site)
        if not keep:
            before = self.record.answers.get(site, Answer(site, status, reason))
            answer = replace(before, status=status, reason=reason)
            self.record.answers[site] = answer
            self.job.listener.on_answer(self.state.round + 1, answer)

    def post(
        self, names: Collection[str], message: Callable[[int, Request], Message]
    ) -> dict[str, Request]:
        """Send a message to each site; the requests by the ids of their messages."""
        job, number, text = self.job, self.state.round + 1, self.job.plan.to_json()
        nodes = {site: node for node, site in job.grid.names().items() if site in names}
        requests, messages = [], []
        for site, node in sorted(nodes.items()):
            head = job.heads.last(site) if job.heads is not None else None
            request = Request(job.folder.id, number, site, text, None, head, job.base)
            requests.append(request)
            messages.append(message(node, request))
        for site in set(names) - set(nodes):
            self.failed.add(site)
        return dict(zip(job.grid.push_messages(messages), requests, strict=True))

    def answers(self, pending: dict[str, Request]) -> Any:
        """Replies as they come, until the round's patience ends."""
        job = self.job
        return replies(job.grid, pending, job.attempts.round_timeout, job.listener.waiting)
