"""The doctor's look at the line: name, proxy, TCP, TLS and clock, by the client's own route."""

import datetime
import socket
import ssl
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from client.agent.credentials import Enrolled
from client.agent.route import Proxy, Route, proxy_for, split_address
from privacy.commands.checks import Check
from privacy.identity.certificates import issuer_of
from privacy.identity.keys import IdentityError

_SECONDS: Final = 5.0
_DRIFT: Final = 60.0


def connection(site: Enrolled, route: Route) -> Iterator[Check]:
    """The checks of the first address that serves; of all of them where none does."""
    failed: list[Check] = []
    for server in route.servers:
        checks = list(_one(site, server, proxy_for(server, route.proxy)))
        if not any(check.state == "FAULT" for check in checks):
            for check in failed:  # another address serves
                yield Check(check.what, "warn", check.finding, check.next_step)
            yield from checks
            return
        failed += checks
    yield from failed


def _one(site: Enrolled, server: str, proxy: Proxy | None) -> Iterator[Check]:
    host, port = (proxy.host, proxy.port) if proxy is not None else split_address(server)
    what = "proxy" if proxy is not None else "TCP"
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        then = "check --proxy and the resolver" if proxy else "check --server and the resolver"
        yield Check("name", "FAULT", f"{host}: {error}", then)
        return
    yield Check("name", "fine", f"{host} is {address}")
    try:
        with socket.create_connection((host, port), _SECONDS):
            pass
    except OSError as error:
        then = "is the coordinator running? does a firewall allow outbound TCP to it?"
        if proxy is not None:
            then = "is the proxy running? check --proxy, or connect without it: --proxy none"
        yield Check(what, "FAULT", f"{host}:{port}: {error.strerror or error}", then)
        return
    yield Check(what, "fine", f"{host}:{port}" + (f" leads to {server}" if proxy else ""))
    yield from _tls(site, server, proxy)


def _tls(site: Enrolled, server: str, proxy: Proxy | None) -> Iterator[Check]:
    options = {"proxy": None if proxy is None else proxy.url, "trust_env": False}
    try:
        with httpx.Client(verify=site.tls(), timeout=_SECONDS, **options) as client:  # type: ignore[arg-type]
            answer = client.post(f"https://{server}/v1/fleet/activate-node", content=b"")
    except httpx.ProxyError as error:
        yield Check("proxy", "FAULT", f"{proxy}: {error}", _proxy_step(str(error), server))
        return
    except (httpx.HTTPError, ssl.SSLError, OSError) as error:
        reason = tls_reason(error)
        then = _NEXT.get(reason, "ask the coordinator for its log")
        issuer = _issuer(server, proxy) if "another authority" in reason else ""
        if issuer:
            reason += f", {issuer}"
            then = (
                f"something else answers there: stop; if it is a proxy that opens TLS ({issuer}), "
            )
            then += f"ask for an exception for {server}"
        yield Check("TLS", "FAULT", reason or f"refused ({type(error).__name__})", then)
        return
    if answer.status_code == 410:
        then = f"tacit-client enroll --site {site.name} --new-keys, then send its request"
        yield Check("identity", "FAULT", "revoked", then)
        return
    if answer.status_code == 404:
        then = "ask the coordinator (tacit-server sites) to sign this site's .csr again; then join"
        yield Check("identity", "FAULT", "not on its list of sites", then)
        return
    yield Check("TLS", "fine", "1.3, both certificates hold, this site is on the list")
    yield clock(answer)


def _proxy_step(text: str, server: str) -> str:
    if "407" in text:
        return "the proxy wants a login: --proxy http://USER:PASSWORD@HOST:PORT"
    if "403" in text:
        return f"the proxy forbids it: ask for CONNECT to {server} to be allowed"
    return f"the proxy cannot reach {server}: is the coordinator running?"


def _issuer(server: str, proxy: Proxy | None) -> str:
    """Who issued the certificate that was shown instead of the coordinator's; "" if unknown.

    Nothing is sent over this connection but the opening of TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = split_address(server)
    try:
        where = (host, port) if proxy is None else (proxy.host, proxy.port)
        with socket.create_connection(where, _SECONDS) as raw:
            if proxy is not None:
                raw.sendall(f"CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n\r\n".encode())
                if b" 200" not in raw.recv(4096).split(b"\r\n")[0]:
                    return ""
            with context.wrap_socket(raw, server_hostname=host) as tls:
                return issuer_of(tls.getpeercert(binary_form=True) or b"")
    except (OSError, IdentityError):
        return ""


def clock(answer: httpx.Response) -> Check:
    try:
        theirs = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError):
        return Check("clock", "warn", "the coordinator tells no time")
    off = (datetime.datetime.now(datetime.UTC) - theirs).total_seconds()
    if abs(off) < _DRIFT:
        return Check("clock", "fine", f"within {max(abs(off), 1):.0f} s of the coordinator's")
    return Check("clock", "FAULT", f"off by {off:.0f} s", "set this machine's clock (NTP)")


_NEXT: Final = {
    "expired": "the coordinator: tacit-server renew; then tacit-client join",
    "not known to the coordinator": "this bundle is of another federation: join the right one",
    "the coordinator's certificate is for another name": "--server: use a name of the bundle",
    "the coordinator's certificate is for another address": "--server: use a name of the bundle",
    "the coordinator's certificate has expired": "the coordinator: tacit-server renew --host",
    "the coordinator's certificate is not valid yet: is this clock right?": "set the clock",
    "the coordinator's certificate is of another authority": "something else answers there: stop",
    "what answers there does not speak TLS": "check the port",
}


def tls_reason(error: BaseException) -> str:
    """Which TLS fault lies behind an error, or "" where none does."""
    text = ""
    link: BaseException | None = error
    while link is not None:
        text += f" {link}"
        if isinstance(link, ssl.SSLCertVerificationError):
            text += f" {link.verify_message}"
        link = link.__cause__ or link.__context__
    lower = text.lower().replace("_", " ")
    for words, reason in _TLS_REASONS:
        if words in lower:
            return reason
    return ""


_TLS_REASONS: Final = (
    ("alert certificate expired", "expired"),
    ("alert unknown ca", "not known to the coordinator"),
    ("alert certificate revoked", "revoked"),
    ("hostname mismatch", "the coordinator's certificate is for another name"),
    ("ip address mismatch", "the coordinator's certificate is for another address"),
    ("certificate has expired", "the coordinator's certificate has expired"),
    ("not yet valid", "the coordinator's certificate is not valid yet: is this clock right?"),
    ("unable to get local issuer", "the coordinator's certificate is of another authority"),
    ("self-signed", "the coordinator's certificate is of another authority"),
    ("certificate verify failed", "the coordinator's certificate does not hold"),
    ("wrong version number", "what answers there does not speak TLS"),
)
