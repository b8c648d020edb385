"""Everything that keeps a client from running, told apart, each with its next step."""

import datetime
import os
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import httpx

from client.agent import populations
from client.agent.connection import tls_reason
from client.agent.credentials import Enrolled, EnrolmentError
from client.data.site_rows import Source
from privacy.contract.policy import load_policy
from privacy.identity.keys import IdentityError

FLOWER: Final = "1.41.0"
_SECONDS: Final = 5.0
_DRIFT: Final = 60.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: `state` is "fine", "warn" or "FAULT"; `then` is the next step."""

    what: str
    state: str
    said: str
    then: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(directory: Path, server: str | None, data: str, policy: Path | None) -> list[Check]:
    """All checks in the order in which they build on each other."""
    site = Enrolled(directory)
    found = [_flower(), *_identity(site)]
    if not any(one.state == "FAULT" for one in found[1:]):
        found += _connection(site, server or site.hosts[0])
    found.append(_policy(directory, policy, data))
    found += _data(directory, data)
    free = shutil.disk_usage(directory if directory.is_dir() else Path()).free
    state = "fine" if free > 1 << 28 else "FAULT"
    found.append(Check("disk", state, f"{free >> 20} MiB free", "" if state == "fine" else "free"))
    return found


def _flower() -> Check:
    installed = version("flwr")
    if installed == FLOWER:
        return Check("Flower", "fine", installed)
    return Check("Flower", "FAULT", f"{installed}, expected {FLOWER}", "install tacit again")


def _identity(site: Enrolled) -> Iterator[Check]:
    try:
        name = site.joined().name
        certificate = site.read_certificate()
    except (EnrolmentError, IdentityError, OSError) as error:
        yield Check("identity", "FAULT", str(error), "tacit-client enroll, then join")
        return
    loose = [p.name for p in (site.key, site.signing_key) if p.stat().st_mode & 0o077]
    if loose:
        yield Check("keys", "FAULT", f"{', '.join(loose)}: others can read it", "chmod 600")
    age = certificate.age(datetime.datetime.now(datetime.UTC))
    ends = f"{name}, valid to {certificate.ends:%Y-%m-%d}"
    renew = f"the coordinator: tacit-server renew {name}; then tacit-client join"
    said = {"good": ("fine", ""), "soon": ("warn", renew), "expired": ("FAULT", renew)}
    state, then = said.get(age, ("FAULT", "not valid yet: set this machine's clock"))
    yield Check("certificate", state, f"{ends} ({age})", then)


def _connection(site: Enrolled, server: str) -> Iterator[Check]:
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    try:
        address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][4][0]
    except (OSError, ValueError) as error:
        yield Check("name", "FAULT", f"{server}: {error}", "check --server and the resolver")
        return
    yield Check("name", "fine", f"{host} is {address}")
    try:
        with socket.create_connection((host, int(port)), _SECONDS):
            pass
    except OSError as error:
        then = "is the coordinator running? does a firewall allow outbound TCP to it?"
        yield Check("TCP", "FAULT", f"{server}: {error.strerror or error}", then)
        return
    yield Check("TCP", "fine", server)
    try:
        with httpx.Client(verify=site.tls(), timeout=_SECONDS) as client:
            answer = client.post(f"https://{server}/v1/fleet/activate-node", content=b"")
    except (httpx.HTTPError, ssl.SSLError, OSError) as error:
        reason = tls_reason(error)
        then = _NEXT.get(reason, "ask the coordinator for its log")
        yield Check("TLS", "FAULT", reason or f"refused ({type(error).__name__})", then)
        return
    if answer.status_code == 410:
        yield Check("identity", "FAULT", "revoked", "enrol again with new keys in another folder")
        return
    if answer.status_code == 404:
        yield Check("identity", "FAULT", "not on its list of sites", "tacit-client join again")
        return
    yield Check("TLS", "fine", "1.3, both certificates hold, this site is on the list")
    yield _clock(answer)


def _clock(answer: httpx.Response) -> Check:
    try:
        theirs = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError):
        return Check("clock", "warn", "the coordinator tells no time")
    off = (datetime.datetime.now(datetime.UTC) - theirs).total_seconds()
    if abs(off) < _DRIFT:
        return Check("clock", "fine", f"within {max(abs(off), 1):.0f} s of the coordinator's")
    return Check("clock", "FAULT", f"off by {off:.0f} s", "set this machine's clock (NTP)")


def _policy(directory: Path, policy: Path | None, data: str) -> Check:
    path = policy or directory / "policy.toml"
    if not path.is_file() and data.startswith("builtin:"):
        return Check("policy", "warn", "none: the built-in one serves embedded data")
    try:
        load_policy(path)
    except (ValueError, OSError) as error:
        return Check("policy", "FAULT", str(error), "tacit-client policy new")
    return Check("policy", "fine", str(path))


def _data(directory: Path, data: str) -> Iterator[Check]:
    if data:
        yield _tried("data", data, lambda: Source.parse(data), "check --data")
        source = Path(data)
        if source.exists() and not os.access(source, os.R_OK):
            yield Check("data", "FAULT", f"{data}: not readable", "check its owner and mode")
    for one in populations.known(directory):
        yield _tried(
            "ledger",
            one.ledger,
            partial(_trusted, one),
            "tacit-client ledger recover, or acknowledge; read docs/ledger.md first",
        )


def _trusted(one: populations.Population) -> None:
    if not populations.open_ledger(one).trusted():
        raise EnrolmentError(f"{one.ledger}: its log remembers more than it holds")


def _tried(what: str, said: str, check: Callable[[], object], then: str) -> Check:
    try:
        check()
    except (ValueError, OSError) as error:
        return Check(what, "FAULT", str(error), then)
    return Check(what, "fine", said)


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
