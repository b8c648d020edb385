"""The coordinator renews its own certificate while it runs, and warns of those that end soon."""

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from privacy.audit_trail import record
from privacy.identity.certificates import Certificate
from privacy.identity.keys import IdentityError
from privacy.ledger.chain import LedgerError
from server.registry.authority import renew_server
from server.registry.sites import Home

_DAY: Final = 86_400.0
_LOOK_SECONDS: Final = 5.0

Log = Callable[..., None]


@dataclass(slots=True)
class CertificateUpkeep:
    """Looks at all certificates every few seconds; `now()` is the time."""

    home: Home
    log: Log
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)
    _next: float = 0.0
    _last_logged: dict[str, float] = field(default_factory=dict)

    def __call__(self) -> None:
        """Renew what is due, and warn of what ends soon, each once a day."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_SECONDS
        try:
            self._look()
        except (
            OSError,
            ValueError,
        ) as error:  # a full disk, or a damaged file
            self._tell("certificate_not_renewed", "folder", why=str(error))

    def _look(self) -> None:
        now = self.now()
        server = Certificate.read(self.home.certificate.read_bytes())
        if now >= server.renewal:
            try:
                server = renew_server(self.home.folder, [], now)
                self.log("certificate_renewed", whose="coordinator", ends=_date(server))
                note_renewal(self.home, self.log, "coordinator", server.fingerprint)
            except (OSError, ValueError, IdentityError) as error:
                self._tell("certificate_not_renewed", "coordinator", why=str(error))
        shown = {"coordinator": server, "authority": Certificate.read(self.home.ca.read_bytes())}
        for member in self.home.members().enrolled:
            shown[f"site {member.name}"] = member.certificate
        for whose, certificate in shown.items():
            if now >= certificate.renewal and certificate.age(now) != "good":
                self._tell("certificate_expires_soon", whose, ends=_date(certificate))

    def _tell(self, event: str, whose: str, **facts: Any) -> None:
        """Once a day for each."""
        last = self._last_logged.get(f"{event} {whose}")
        if last is None or time.monotonic() - last >= _DAY:
            self._last_logged[f"{event} {whose}"] = time.monotonic()
            self.log(event, whose=whose, **facts)


def note_renewal(home: Home, log: Log, whose: str, key: str) -> None:
    """Tell the audit log of a renewal that nobody asked for; one that cannot be told stands."""
    try:
        record(home.folder, "renew", whose, fingerprint=key, reason="by itself, when it was due")
    except (OSError, LedgerError) as error:
        log("audit_not_written", why=str(error))


def _date(certificate: Certificate) -> str:
    return f"{certificate.ends:%Y-%m-%d}"
