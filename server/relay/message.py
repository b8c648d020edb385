"""What a coordinator and its relay tell each other beside a round's request: typed and bounded.

Downward `Directions` in the request's field `relay`. Upward one sum, and a `Leaf` for each site
that was asked, in an array of JSON. Every field's type and bound stands in its annotation.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

from annotated_types import Interval, Len, Predicate
from flwr.app import ConfigRecord, Message

from privacy.contract.outputs import REASONS
from privacy.contract.schema import build
from privacy.files import DocumentError, Limits, parse_json
from privacy.identity.keys import IdentityError, check_name
from privacy.ledger.heads import Head, HeadError
from server.rounds.messages import REPLY, ReplyError, Request

FIELD: Final = "relay"
SITES: Final = "sites"
SUM: Final = "update"
JSON: Final = "json"
RELAYED: Final = "relayed"
"""The status of a reply that brings sites' answers."""
SITES_MAX: Final = 1000
"""The most sites behind one relay."""
PROOFS_MAX: Final = 10 << 20
"""The most bytes that the heads of one reply take."""
JUDGED: Final = frozenset(
    {
        *("no-answer", "bad-reply", "bad-update", "old-reply", "unpaid"),
        *("too-quiet", "too-loud", "ledger-untrusted"),
    }
)
"""What a relay may find of a site's reply, beside what the site itself says."""
NOT_ASKED: Final = frozenset({"away", "not-asked"})

_DIRECTIONS: Final = Limits(size=1 << 19, depth=4, digits=16, length=80, count=8 * SITES_MAX)
_LEAVES: Final = Limits(size=12 << 20, depth=6, digits=32, length=128, count=1 << 19)
_PROPOSED: Final = Limits(size=1 << 19, depth=4, digits=16, length=80, count=8 * SITES_MAX)


def _is_site(name: str) -> bool:
    try:
        return check_name(name) == name
    except IdentityError:
        return False


Name = Annotated[str, Predicate(_is_site)]


@dataclass(frozen=True, slots=True)
class Directions:
    """Whom a relay asks in a round, each site with its last head that the coordinator knows.

    `seconds` is how long it may wait for its sites; `late_rounds` and `check_noise` are the
    coordinator's `[operation]`, which is no part of the plan that travels.
    """

    heads: Annotated[Mapping[str, dict[str, Any]], Len(0, SITES_MAX)]
    seconds: Annotated[float, Interval(gt=0, le=1e7)] | None
    late_rounds: Annotated[int, Interval(ge=0, le=1000)]
    check_noise: bool

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: object) -> "Directions":
        """Read what `to_text` wrote; ReplyError for anything else."""
        table = _json(text, _DIRECTIONS)
        directions = build(cls, table if isinstance(table, dict) else {}, _bad)
        if not all(_is_site(name) for name in directions.heads):
            raise ReplyError("bad-reply")
        directions.known()
        return directions

    def known(self) -> dict[str, Head]:
        """The heads as values; ReplyError."""
        try:
            return {site: Head.from_dict(one) for site, one in self.heads.items()}
        except HeadError:
            raise ReplyError("bad-reply") from None


@dataclass(frozen=True, slots=True)
class Leaf:
    """One site's answer as its relay judged it; `round` is the round that it was made in.

    `head` is the proof of its ledger, from the head that the coordinator knows.
    """

    site: Name
    round: Annotated[int, Interval(ge=1, le=10**7)]
    status: Literal["trained", "declined", "failed"]
    reason: Annotated[str, Predicate((REASONS | JUDGED).__contains__)]
    events: Annotated[tuple[dict[str, Any], ...], Len(0, 8)]
    sigma: float | None
    metrics: dict[str, Any] | None
    head: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ProposalAnswer:
    """One site's answer to a proposal, or why it was not asked."""

    site: Name
    status: Literal["approved", "declined", "failed"]
    reason: Annotated[str, Predicate((REASONS | JUDGED | NOT_ASKED).__contains__)]
    rounds: Annotated[int, Interval(ge=0, le=10**7)]
    ledger: Annotated[str, Predicate(lambda text: text == "" or _is_ledger(text))]


def _is_ledger(text: str) -> bool:
    return len(text) <= 32 and set(text) <= set("0123456789abcdef")


def encode_leaves(leaves: Iterable[Leaf]) -> bytes:
    """The sites' answers as bytes."""
    return json.dumps([asdict(leaf) for leaf in leaves]).encode()


def read_leaves(data: bytes) -> tuple[Leaf, ...]:
    """The sites' answers; ReplyError where one is malformed, doubled, or one too many."""
    table = _json(bytes(data), _LEAVES)
    leaves = tuple(build(Leaf, one, _bad) for one in _listed(table, 2 * SITES_MAX))
    if len({(leaf.site, leaf.round) for leaf in leaves}) < len(leaves):
        raise ReplyError("bad-reply")
    for leaf in leaves:
        if (leaf.status == "trained") != (leaf.reason == ""):
            raise ReplyError("bad-reply")
    return leaves


def encode_proposed(answers: Iterable[ProposalAnswer]) -> str:
    """The sites' answers to a proposal as text."""
    return json.dumps([asdict(one) for one in answers])


def read_proposed(text: object) -> tuple[ProposalAnswer, ...]:
    """The sites' answers to a proposal; ReplyError."""
    answers = tuple(
        build(ProposalAnswer, one, _bad) for one in _listed(_json(text, _PROPOSED), SITES_MAX)
    )
    if len({one.site for one in answers}) < len(answers):
        raise ReplyError("bad-reply")
    if any((one.status == "approved") != (one.reason == "") for one in answers):
        raise ReplyError("bad-reply")
    return answers


def read_relay_proposal(message: Message, request: Request) -> tuple[ProposalAnswer, ...]:
    """What a relay's sites say to a proposal; ReplyError."""
    if message.has_error():
        raise ReplyError("no-answer")
    fields = message.content.get(REPLY)
    if not isinstance(fields, ConfigRecord) or set(message.content) != {REPLY}:
        raise ReplyError("bad-reply")
    if fields.get("run") != request.run or fields.get("round") != request.round:
        raise ReplyError("old-reply")
    if set(fields) != {"run", "round", "site", SITES} or fields["site"] != request.site:
        raise ReplyError("bad-reply")
    return read_proposed(fields[SITES])


def _listed(value: object, most: int) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > most:
        raise ReplyError("bad-reply")
    if not all(isinstance(one, dict) for one in value):
        raise ReplyError("bad-reply")
    return value


def _json(text: object, limits: Limits) -> object:
    if not isinstance(text, str | bytes):
        raise ReplyError("bad-reply")
    try:
        value: object = parse_json(text, limits)
    except DocumentError:
        raise ReplyError("bad-reply") from None
    return value


def _bad(text: str) -> ReplyError:
    return ReplyError("bad-reply")
