"""Everything that keeps a coordinator from running, told apart, each with its next step."""

import datetime
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from privacy.audit_trail import FILE, read
from privacy.commands.checks import Check, flower
from privacy.http.http_listener import ListenError, listen
from privacy.identity.certificates import Certificate, issued_by
from privacy.identity.keys import IdentityError
from privacy.ledger.chain import LedgerError
from server.registry.authority import rotation
from server.registry.hosts import HostError, split_host
from server.registry.sites import Home, MembersError


def examine(directory: Path, where: str) -> list[Check]:
    """All checks; those of the folder only where there is one."""
    checks = [flower()]
    home = Home(directory)
    try:
        home.check()
        checks += _folder(home)
        checks += _names(home)
        checks.append(_trail(home))
    except (MembersError, IdentityError, OSError, ValueError, KeyError) as error:
        there = home.present()
        derived = [p.name for p in (home.ca, home.certificate) if not p.is_file()]
        then = "tacit-server restore FILE --dir EMPTY_FOLDER" if there else "tacit-server init"
        if derived and home.federation.is_file():
            then = "tacit-server repair"
        checks.append(Check("folder", "FAULT", str(error), then))
    if where:
        checks.append(_port(where))
    free = shutil.disk_usage(directory if directory.is_dir() else Path()).free
    state = "fine" if free > 1 << 28 else "FAULT"
    checks.append(Check("disk", state, f"{free >> 20} MiB free", "" if state == "fine" else "free"))
    return checks


def _folder(home: Home) -> Iterator[Check]:
    private = (home.ca_key, home.key, home.signing_key)
    loose = [path.name for path in private if path.stat().st_mode & 0o077]
    if loose:
        yield Check("keys", "FAULT", f"{', '.join(loose)}: others can read it", "chmod 600")
    else:
        yield Check("keys", "fine", "readable by their owner alone")
    pem = home.certificate.read_bytes()
    if not issued_by(pem, home.ca.read_bytes()):
        yield Check("certificate", "FAULT", "of another authority", "tacit-server renew")
    now = datetime.datetime.now(datetime.UTC)
    steps = {home.ca: "tacit-server authority rotate", home.certificate: "tacit-server renew"}
    for path, then in steps.items():
        yield _age(path.name, Certificate.read(path.read_bytes()), now, then)
    yield from _rotation(home)
    for site, member in sorted(home.members().sites.items()):
        if not member.revoked:
            then = f"tacit-server renew {site}, and send the bundle"
            yield _age(f"site {site}", member.certificate, now, then)


def _rotation(home: Home) -> Iterator[Check]:
    state = rotation(home)
    if state is not None and state.missing:
        text = f"is being replaced; not yet taken in by {', '.join(state.missing)}"
        yield Check("authority", "warn", text, "wait until they were connected")
    elif state is not None:
        text = "is being replaced; every site has the next one"
        yield Check("authority", "warn", text, "tacit-server authority finish")


def _trail(home: Home) -> Check:
    try:
        read(home.folder)
    except LedgerError as error:
        then = "keep the file and ask who changed it; restore it from a backup"
        return Check("audit log", "FAULT", str(error), then)
    return Check("audit log", "fine", FILE)


def _age(what: str, certificate: Certificate, now: datetime.datetime, then: str) -> Check:
    age = certificate.age(now)
    text = f"valid to {certificate.ends:%Y-%m-%d} ({age})"
    if age == "early":
        return Check(what, "FAULT", text, "not valid yet: set this machine's clock")
    return Check(
        what,
        {"good": "fine", "soon": "warn"}.get(age, "FAULT"),
        text,
        "" if age == "good" else then,
    )


def _names(home: Home) -> Iterator[Check]:
    for host in home.hosts():
        name, port = split_host(host)
        try:
            socket.getaddrinfo(name, port)
        except OSError as error:
            yield Check("name", "warn", f"{name}: {error}", "sites must resolve it: check DNS")
        else:
            yield Check("name", "fine", host)


def _port(where: str) -> Check:
    try:
        listen(*split_host(where)).close()
    except (ListenError, HostError) as error:
        return Check("port", "FAULT", str(error), "is another coordinator running?")
    return Check("port", "fine", f"{where} is free")
