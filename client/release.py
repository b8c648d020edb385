"""The one door out: a field leaves a site only if it tells nothing of the data, or is paid for.

Every reply is built here. A field is `Public` by a name that privacy/contract/outputs.py declares
to be independent of the data and says why, `Paid` by entries of this site's own ledger, or
`Trusted` where the site's policy trusts the coordinator with un-noised updates. Anything else
raises before it is sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privacy.accounting.events import Event
from privacy.contract.outputs import PROPOSAL, PUBLIC, REASONS
from privacy.ledger.ledger import Entry, Ledger


class DoorError(RuntimeError):
    """Something tried to leave that nothing pays for; it did not leave."""


@dataclass(frozen=True, slots=True)
class Public:
    """A value that is the same whatever the records are; its name must be in `PUBLIC`."""

    value: Any


@dataclass(frozen=True, slots=True)
class Paid:
    """A noised value, with the event that it is an outcome of and the entry that paid for it."""

    value: Any
    event: Event
    entry: Entry


@dataclass(frozen=True, slots=True)
class Trusted:
    """A value that is not noised: it leaves only where the policy trusts the coordinator."""

    value: Any


Field = Public | Paid | Trusted


def release(
    fields: Mapping[str, object], *, ledger: Ledger | None, trust_coordinator: bool
) -> dict[str, Any]:
    """The values of `fields` if every one may leave, else DoorError and nothing leaves.

    An entry pays once: two fields of one reply cannot share it, and it must stand in this very
    ledger with the field's own event.
    """
    used: set[str] = set()
    out: dict[str, Any] = {}
    for name, field in fields.items():
        if isinstance(field, Public):
            _check_public(name, field.value)
        elif isinstance(field, Paid):
            if ledger is None or not ledger.contains(field.entry):
                raise DoorError(f"{name}: expected an entry of this site's ledger to pay for it")
            if field.entry.event != field.event or field.event.sigma <= 0:
                raise DoorError(f"{name}: expected the entry of its own event to pay for it")
            if field.entry.digest in used:
                raise DoorError(f"{name}: its entry has already paid for another field")
            used.add(field.entry.digest)
        elif isinstance(field, Trusted):
            if not trust_coordinator:
                raise DoorError(f"{name}: is not noised, and the policy trusts no coordinator")
        else:
            raise DoorError(f"{name}: expected a field that is public, paid or trusted")
        out[name] = field.value
    return out


def _check_public(name: str, value: object) -> None:
    if name not in PUBLIC and name not in PROPOSAL:
        raise DoorError(f"{name}: is not declared to be independent of the data")
    if name == "reason" and value not in REASONS:
        raise DoorError("reason: expected a code of the fixed list")
