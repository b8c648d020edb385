"""The authority signs for the coordinator itself, and is followed by another: its rotation.

While a rotation is under way both authorities are good: sites take in the next one over their
connection, with certificates of it; then it takes over, and the old one opens nothing any more.
Every step can be taken again after a kill.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from privacy.files import PRIVATE, write_atomic
from privacy.identity.certificates import (
    CERTIFICATE_DAYS,
    Authority,
    Certificate,
    issued_by,
    split,
)
from server.registry.hosts import joined_host, split_dialled, split_host
from server.registry.sites import (
    AUTHORITY_NAME,
    Home,
    MembersError,
    as_json,
    changing,
    signing_authority,
)

RETIRED = "ca.retired.pem"
"""Certificates of the authorities of before: signatures under old reports are checked with them."""


def renew_server(
    folder: Path,
    hosts: Sequence[str],
    now: datetime.datetime,
    *,
    days: float | None = None,
) -> Certificate:
    """A new certificate for the coordinator itself, for the same names or for others.

    It holds `days`, or as long as the one before.
    """
    home = Home(folder).check()
    with changing(home):
        addresses = [joined_host(split_dialled(host)) for host in hosts] or home.hosts()
        names = list(dict.fromkeys(split_host(host)[0] for host in addresses))
        if days is None and home.certificate.is_file():
            days = Certificate.read(home.certificate.read_bytes()).days
        key = home.key.read_bytes()
        pem = signing_authority(home).issue_server(key, names, now, days or CERTIFICATE_DAYS)
        write_atomic(home.certificate, pem, mode=PRIVATE)
        write_atomic(home.federation, as_json({"v": 1, "hosts": addresses}), mode=PRIVATE)
    return Certificate.read(pem)


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation under way: the next authority's fingerprint, and which sites have taken it in."""

    fingerprint: str
    taken: tuple[str, ...]
    missing: tuple[str, ...]


def rotation(home: Home) -> Rotation | None:
    """The rotation that is under way, if there is one."""
    if not home.next_ca.is_file():
        return None
    following = home.next_ca.read_bytes()
    fingerprint = Certificate.read(following).fingerprint
    members = home.members().enrolled
    taken = {
        one.name
        for one in members
        if one.authority == fingerprint and issued_by(one.pem.encode(), following)
    }
    missing = tuple(sorted({one.name for one in members} - taken))
    return Rotation(fingerprint, tuple(sorted(taken)), missing)


def rotate(folder: Path, now: datetime.datetime) -> Rotation:
    """Make the next authority and announce it; MembersError where one is announced already."""
    home = Home(folder).check()
    with changing(home):
        if home.next_ca.is_file():
            raise MembersError(
                f"--dir {folder}: a rotation is under way (tacit-server authority finish)"
            )
        signing_authority(home)
        following = Authority.create(AUTHORITY_NAME, now)
        write_atomic(home.next_ca_key, following.key, mode=PRIVATE)
        write_atomic(home.next_ca, following.certificate, mode=PRIVATE)
    return rotation(home) or Rotation("", (), ())


def take(home: Home, site: str, shown: bytes) -> bool:
    """Note that a site showed a certificate (DER) of the next authority; True the first time."""
    if not home.next_ca.is_file():
        return False
    following = home.next_ca.read_bytes()
    fingerprint = Certificate.read(following).fingerprint
    member = home.members().sites.get(site)
    if member is None or member.authority == fingerprint or not issued_by(shown, following):
        return False
    with changing(home) as content:
        content["sites"][site]["authority"] = fingerprint
    return True


def finish(folder: Path, now: datetime.datetime, *, without: bool = False) -> Rotation:
    """Let the next authority take over, and the old one open nothing any more; what was.

    MembersError where there is none, or, unless `without` them, where sites have not taken it in.
    """
    home = Home(folder).check()
    state = rotation(home)
    if state is None:
        raise MembersError(
            f"--dir {folder}: no rotation is under way (tacit-server authority rotate)"
        )
    if state.missing and not without:
        raise MembersError(
            f"--dir {folder}: {', '.join(state.missing)} have not taken in the next authority"
            " (wait until they were connected; or --without-missing, and send them new bundles:"
            " tacit-server renew SITE)"
        )
    with changing(home) as content:
        old, new = home.ca.read_bytes(), home.next_ca.read_bytes()
        if old != new:
            _retire(home, old)
            key = home.next_ca_key.read_bytes()
            names = list(dict.fromkeys(split_host(host)[0] for host in home.hosts()))
            days = Certificate.read(home.certificate.read_bytes()).days
            following = Authority(new, key)
            pem = following.issue_server(home.key.read_bytes(), names, now, days)
            write_atomic(home.certificate, pem, mode=PRIVATE)
            write_atomic(home.ca_key, key, mode=PRIVATE)
            write_atomic(home.ca, new, mode=PRIVATE)
        home.next_ca_key.unlink(missing_ok=True)
        home.next_ca.unlink()
        for entry in content["sites"].values():
            entry.pop("authority", None)
    return state


def _retire(home: Home, old: bytes) -> None:
    path = home.folder / RETIRED
    before = path.read_bytes() if path.is_file() else b""
    if old not in before:
        write_atomic(path, b"".join([*split(before), old]) if before else old, mode=PRIVATE)
