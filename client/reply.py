"""What every reply is made of; whatever goes wrong leaves the site as a code."""

import json
import traceback
from collections.abc import Mapping
from typing import Any, Final

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.release import Field, Public, release
from client.round_request import Refused, is_run_id
from client.site import Site
from privacy.arrays import Buffer

REPLY: Final = "reply"


class Coded:
    """Turns whatever is raised into a code: an exception's text may hold data."""

    def __init__(self, site: Site, fields: Mapping[str, Any]) -> None:
        self._site, self._fields, self._status, self._code = site, fields, "failed", "failed"

    def __enter__(self) -> "Coded":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> bool:
        if isinstance(error, Refused):
            self._status, self._code = error.status, error.code
            run, number = self._fields.get("run"), self._fields.get("round")
            self._site.on_event(error.status, reason=error.code, run=run, round=number)
        elif isinstance(error, Exception):
            self._site.on_event("failed", error=type(error).__name__, where=_where(error))
        return isinstance(error, Exception)

    def reply(self) -> RecordDict:
        """The refusal: a code and nothing else."""
        return refusal(self._site, self._fields, self._status, self._code)


def refusal(site: Site, request_fields: Mapping[str, Any], status: str, code: str) -> RecordDict:
    return RecordDict({REPLY: ConfigRecord(about(site, request_fields, status, code))})


def about(site: Site, request_fields: Mapping[str, Any], status: str, code: str) -> dict[str, Any]:
    """What every reply says beside its payload: all of it public, and checked at the door."""
    run, number = request_fields.get("run"), request_fields.get("round")
    fields: dict[str, Field] = {
        "run": Public(run if is_run_id(run) else ""),
        "round": Public(number if isinstance(number, int) else 0),
        "site": Public(site.name),
        "status": Public(status),
        "reason": Public(code),
    }
    if site.ledger is not None and code != "ledger-untrusted":
        events = (
            site.ledger.merged(run, coordinator=site.coordinator) if isinstance(run, str) else ()
        )
        fields["events"] = Public(json.dumps([event.to_dict() for event in events]))
        proof = site.proof(request_fields.get("head"))
        if proof is not None:
            fields["head"] = Public(json.dumps(proof.to_dict()))
    return release(fields, ledger=site.ledger, trust_coordinator=False)


def carried(name: str, content: Buffer, stype: str) -> ArrayRecord:
    """Encoded arrays as a record of Flower's, without a copy."""
    array = Array(dtype="uint8", shape=(len(content),), stype=stype, data=b"")
    vars(array)["data"] = content  # Flower only slices it, and asks for bytes when it is made
    record = ArrayRecord()
    record[name] = array
    return record


def _where(error: BaseException) -> str:
    """The innermost place of an exception: function and line, never its text."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return f"{frames[0].name}:{frames[0].lineno}" if frames else ""
