"""TLS settings, the listening socket, and the rate-limited log of refused connections."""

import ssl
import time
from collections import Counter
from collections.abc import Callable

from server.registry.sites import Home

Log = Callable[..., None]


class Refusals:
    """A log of what was refused that a flood cannot flood: ten lines a second, then counts."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._second = 0
        self._lines = 0
        self._more: Counter[str] = Counter()

    def __call__(self, why: str, peer: object, site: str = "") -> None:
        self.flush()
        if self._lines >= 10:
            self._more[why] += 1
            return
        self._lines += 1
        address = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        address = address.removeprefix("::ffff:")  # an IPv4 peer of a socket for both
        self._log("connection_refused", why=why, peer=address, **({"site": site} if site else {}))

    def flush(self) -> None:
        """Report what the last second held back."""
        now = int(time.monotonic())
        if now != self._second:
            self._second, self._lines = now, 0
            for why, count in self._more.items():
                self._log("connection_refused", why=why, more=count)
            self._more.clear()


def server_context(home: Home) -> ssl.SSLContext:
    """TLS 1.3 alone, with a certificate of the federation's authority on both sides.

    While the authority is being replaced, sites show certificates of the old or the next one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=home.authorities().decode())
    context.load_cert_chain(home.certificate, home.key)
    context.num_tickets = 0  # no resumption: every connection shows its certificate
    return context


def handshake_failure(error: ssl.SSLError) -> str:
    """Why a handshake failed, in OpenSSL's words."""
    words = (error.reason or "handshake").lower().replace("_", " ")
    detail = getattr(error, "verify_message", "")
    return f"tls: {words}" + (f" ({detail})" if detail else "")
