"""A site's part in a round of secure aggregation: its state between the coordinator's messages.

`keys`, `shares`, then a TRAIN request (client/app.py) with everybody's signatures, `survivors`,
`reveal`: privacy/secagg/party.py has what each state checks. The state is in memory alone: a site
that is started again has dropped out, which the others' shares cover. Nothing is spent before every
party has signed the list, and the same masked update never leaves twice.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from client.judgement import accepted
from client.release import Public, release
from client.reply import REPLY, Coded, about
from client.round_request import (
    Refused,
    RoundRequest,
    check_permitted,
    fields_of,
    read_round_request,
)
from client.site import Site
from privacy.arrays import Arrays
from privacy.contract.plan import Plan
from privacy.mechanism import noise
from privacy.secagg.masks import Words
from privacy.secagg.messages import (
    MessageError,
    keys_text,
    read_list,
    read_map,
    read_names,
    read_signatures,
    revealed_text,
    shares_text,
)
from privacy.secagg.parties import ORDER, Attempt, SecureAggregationError
from privacy.secagg.party import (
    SEALED_BYTES,
    Advertised,
    Agreed,
    Confirmed,
    Masked,
    Me,
    Shared,
    advertise,
)
from privacy.secagg.plan_ring import ring_of
from privacy.secagg.ring import Sums, in_order

ACTION: Final = "secure"
READY: Final = "ready"
WORDS: Final = "words"
"""The array type of a masked update."""


def answer_step(site: Site, content: RecordDict) -> RecordDict:
    """The reply to a message that brings no weights; a refusal is a code."""
    fields = fields_of(content)
    with Coded(site, fields) as coded:
        try:
            text = _step(site, fields)
        except SecureAggregationError as error:
            site.on_event("secure_refused", code=error.code, message=str(error))
            raise Refused(error.code) from None
        except MessageError as error:
            site.on_event("secure_refused", code="bad-request", message=str(error))
            raise Refused("bad-request") from None
        message = release({"message": Public(text)}, ledger=site.ledger, trust_coordinator=False)
        return RecordDict({REPLY: ConfigRecord(about(site, fields, READY, "") | message)})
    return coded.reply()


def _step(site: Site, fields: Mapping[str, Any]) -> str:
    request = read_round_request(site, fields)
    if not request.plan.is_secure:
        raise Refused("bad-request")
    stage, state = fields.get("stage"), site.secure.state
    if stage == "keys":
        return _advertise(site, request)
    if site.secure.attempt != attempt_of(request):
        raise SecureAggregationError(ORDER, "no such attempt is under way here")
    site.secure.state = None  # whatever goes wrong now, this attempt is over for this site
    if stage == "shares" and isinstance(state, Advertised):
        site.secure.state, shares = state.share(read_list(fields.get("keys")))
        return shares_text(shares)
    if stage == "survivors" and isinstance(state, Masked):
        site.secure.state, signature = state.confirm(read_names(fields.get("survivors")))
        return signature.hex()
    if stage == "reveal" and isinstance(state, Confirmed):
        return revealed_text(state.unmask(read_signatures(fields.get("signatures"))))
    raise SecureAggregationError(ORDER, "the message does not follow the last one")


def _advertise(site: Site, request: RoundRequest) -> str:
    """Begin an attempt, in which the last one ends; what the owner declines is declined here."""
    plan = request.plan
    check_permitted(site, request)
    accepted(site, plan, request.run, request.round)
    attempt = attempt_of(request)
    if attempt == site.secure.attempt:
        raise SecureAggregationError(ORDER, "this attempt has begun already")
    me = Me(plan.terms, site.parties(plan), attempt, site.name, site.sign)
    site.secure.attempt = attempt
    site.secure.state, keys = advertise(me)
    return keys_text(keys)


def attempt_of(request: RoundRequest) -> Attempt:
    """The attempt that a request belongs to; Refused where it names none."""
    given = request.fields.get("attempt")
    number = given if isinstance(given, str) else ""
    try:
        return Attempt(request.run, request.plan.digest, request.round, number)
    except ValueError:
        raise Refused("bad-request") from None


def agreed_for(site: Site, request: RoundRequest) -> Agreed | None:
    """The agreement of all parties on their list, before anything is paid; else Refused.

    None in a simulation without masks, where nobody is protected from anybody.
    """
    if not site.secure.masks:
        return None
    state, fields = site.secure.state, request.fields
    try:
        if site.secure.attempt != attempt_of(request) or not isinstance(state, Shared):
            raise SecureAggregationError(ORDER, "the message does not follow the last one")
        site.secure.state = None
        agreements = read_signatures(fields.get("agreements"))
        return state.agree(agreements, read_map(fields.get("sealed"), SEALED_BYTES))
    except SecureAggregationError as error:
        site.on_event("secure_refused", code=error.code, message=str(error))
        raise Refused(error.code) from None
    except MessageError as error:
        site.on_event("secure_refused", code="bad-request", message=str(error))
        raise Refused("bad-request") from None


def masked(site: Site, plan: Plan, agreed: Agreed | None, sums: Sums) -> Words:
    """The sums with this site's share of the noise, masked; there is no way back from it."""
    flat = in_order(sums)
    words = ring_of(plan, len(flat)).share(flat)
    if agreed is not None:
        site.secure.state = agreed.mask(words)
    return words


def clipped_update(update: Arrays, plan: Plan) -> Sums:
    """A site's whole update in the unit client: one contribution of norm at most `clip`."""
    if plan.clip is None:
        raise Refused("bad-request")
    clipped, _ = noise.clip(list(update.values()), plan.clip)
    return {name: one.astype(np.float64) for name, one in zip(update, clipped, strict=True)}
