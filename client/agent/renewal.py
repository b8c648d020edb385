"""The site's certificate is renewed over its connection, at two thirds of its life.

The site asks for its bundle when it connects, once a day, and when a renewal is due. What comes
must be of the same authority, for the same keys; the coordinator's addresses may be others.
"""

import datetime
import time
from collections.abc import Callable
from typing import Final

import httpx

from client.agent.credentials import Enrolled, take_renewed
from privacy.audit_trail import record
from privacy.ledger.chain import LedgerError

PATH: Final = "/v1/site/bundle"
_DAY: Final = 86_400.0
_AGAIN: Final = 20
"""A renewal that failed is tried again after so small a part of the time that is left."""

Log = Callable[..., None]


class Renewal:
    """When to ask the coordinator for this site's bundle, and what to make of it."""

    def __init__(
        self,
        site: Enrolled,
        log: Log,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._site, self._log, self._now = site, log, now
        self._next = 0.0
        self._last_logged: dict[str, float] = {}

    def connected(self) -> None:
        """A new connection: the coordinator may have other addresses by now."""
        self._next = 0.0

    def is_due(self) -> bool:
        """Whether it is time to ask."""
        return time.monotonic() >= self._next

    def ask(self, post: Callable[[], httpx.Response]) -> bool:
        """Ask; True where there is a new certificate, with which to connect again.

        Only a broken connection raises (httpx.TransportError).
        """
        why = ""
        try:
            answer = post()
            renewed = False
            if answer.status_code == httpx.codes.OK:
                renewed = take_renewed(self._site.folder, answer.content, self._now())
            else:
                why = f"the coordinator answered {answer.status_code}"
        except (ValueError, OSError) as error:
            why, renewed = str(error), False
        certificate = self._site.read_certificate()
        left = (certificate.ends - self._now()).total_seconds()
        until = (certificate.renewal - self._now()).total_seconds()
        if renewed:
            self._log("certificate_renewed", ends=f"{certificate.ends:%Y-%m-%d}")
            try:
                reason = "by itself, when it was due"
                key = certificate.fingerprint
                record(self._site.folder, "renew", self._site.name, fingerprint=key, reason=reason)
            except (OSError, LedgerError) as error:
                self._log("audit_not_written", why=str(error))
        if until <= 0 and not renewed:
            self._tell("certificate_not_renewed", why=why or "it is the one in use")
        if certificate.age(self._now()) == "soon" and until <= 0:
            self._tell("certificate_expires_soon", ends=f"{certificate.ends:%Y-%m-%d}")
        wait = until if until > 0 else left / _AGAIN
        self._next = time.monotonic() + min(max(wait, 1.0), _DAY)
        return renewed

    def _tell(self, event: str, **facts: str) -> None:
        """Once a day."""
        last = self._last_logged.get(event)
        if last is None or time.monotonic() - last >= _DAY:
            self._last_logged[event] = time.monotonic()
            self._log(event, **facts)
