"""The coordinator's folder: its authority, its own keys, and the sites that it knows.

`sites.json` is the one list of who may connect: a certificate that is not in it, or whose key is
revoked there, is refused however well it is signed. It is replaced in one step, so that a running
coordinator that looks again sees the old list or the new one.
"""

import datetime
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from privacy.files import PRIVATE, Limits, read_json, write_atomic
from privacy.identity.certificates import (
    CERTIFICATE_DAYS,
    Authority,
    Certificate,
    Request,
    issued_by,
    read_request,
)
from privacy.identity.keys import (
    IdentityError,
    new_key,
    new_signing_key,
    public_of,
    signing_public,
)
from privacy.identity.rotation import announce
from server.registry.hosts import joined_host, split_dialled

AUTHORITY_NAME: Final = "tacit federation"
_LISTED: Final = Limits(size=1 << 26, count=1 << 20)


class MembersError(ValueError):
    """A coordinator's folder, or a request to it, that cannot be used: one line."""


@dataclass(frozen=True, slots=True)
class Member:
    """One enrolled site: its certificate as last issued, and when it was revoked, if it was.

    `authority` is the fingerprint of the next authority, once the site has taken it in.
    """

    name: str
    pem: str
    revoked: str | None
    certificate: Certificate
    authority: str = ""
    relay: bool = False

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint


@dataclass(frozen=True, slots=True)
class Members:
    """The sites of a federation, by name; and the keys that never come back."""

    sites: Mapping[str, Member]
    revoked_keys: frozenset[str] = frozenset()
    _by_key: Mapping[str, Member] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        keys = {m.fingerprint: m for m in reversed(list(self.sites.values()))}
        object.__setattr__(self, "_by_key", keys)

    @property
    def enrolled(self) -> list[Member]:
        """Those that may connect: their keys are not revoked."""
        return [member for member in self.sites.values() if member.revoked is None]

    def find(self, key: str) -> Member | None:
        """The site whose current key has this fingerprint, revoked or not."""
        return self._by_key.get(key)


@dataclass(frozen=True, slots=True)
class Home:
    """The files of a coordinator."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca.key"

    @property
    def next_ca(self) -> Path:
        """The authority that takes over, while a rotation is under way."""
        return self.folder / "ca.next.pem"

    @property
    def next_ca_key(self) -> Path:
        return self.folder / "ca.next.key"

    @property
    def certificate(self) -> Path:
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        return self.folder / "server.key"

    @property
    def signing_key(self) -> Path:
        return self.folder / "signing.key"

    @property
    def federation(self) -> Path:
        return self.folder / "federation.json"

    @property
    def sites(self) -> Path:
        return self.folder / "sites.json"

    @property
    def tasks(self) -> Path:
        """The task packages that its plans may name, each by its own digest."""
        return self.folder / "tasks"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def present(self) -> list[str]:
        """Which of a coordinator's files are there: none of them may ever be overwritten."""
        files = (self.ca, self.ca_key, self.certificate, self.key, self.signing_key)
        others = (self.federation, self.sites, self.runs, self.folder / "heads", self.next_ca_key)
        return [path.name for path in (*files, *others) if path.exists()]

    def check(self) -> "Home":
        """Itself, or MembersError where there is no coordinator."""
        if not self.federation.is_file():
            raise MembersError(
                f"--dir {self.folder}: no coordinator here (make one: tacit-server init)"
            )
        return self

    def hosts(self) -> list[str]:
        """The names and addresses, with their ports, under which the coordinator is reached."""
        return [str(host) for host in read_json(self.federation)["hosts"]]

    def authorities(self) -> bytes:
        """The certificates (PEM) of whoever may sign: of two, while a rotation is under way."""
        following = self.next_ca.read_bytes() if self.next_ca.is_file() else b""
        return self.ca.read_bytes() + following

    def members(self) -> Members:
        """The list of sites; its file is read again where it was replaced. MembersError."""
        stat = self.sites.stat()
        return _members(self.sites, (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=8)
def _members(path: Path, stamp: tuple[int, ...]) -> Members:
    """The list in a file that is at this `stamp`; it is a value, which its askers share."""
    try:
        content = read_json(path, _LISTED)
        sites = {
            name: Member(
                name,
                entry["certificate"],
                entry["revoked"],
                Certificate.read(entry["certificate"].encode()),
                str(entry.get("authority", "")),
                entry.get("relay") is True,
            )
            for name, entry in content["sites"].items()
        }
        return Members(sites, frozenset(content["revoked_keys"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"[:120]
        raise MembersError(f"{path}: must be a list of sites ({problem})") from None


def create(folder: Path, hosts: Sequence[str], now: datetime.datetime) -> bool:
    """Make a coordinator's folder; False, and nothing changed, where one is already."""
    home = Home(folder)
    named = [split_dialled(host) for host in hosts]
    if home.federation.exists():
        if hosts and [joined_host(pair) for pair in named] != home.hosts():
            raise MembersError(
                f"--dir {folder}: already a coordinator for {', '.join(home.hosts())}"
                " (its names change with: tacit-server renew --host ...)"
            )
        return False
    if not named:
        raise MembersError("--host: expected at least one name or address of this coordinator")
    if there := home.present():
        raise MembersError(
            f"--dir {folder}: holds {', '.join(there)} but no federation.json, nothing was changed "
            "(restore a whole backup into an empty folder: tacit-server restore FILE)"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority = Authority.create(AUTHORITY_NAME, now)
    key = new_key()
    names = list(dict.fromkeys(name for name, _ in named))
    write_atomic(home.certificate, authority.issue_server(key, names, now), mode=PRIVATE)
    write_atomic(home.key, key, mode=PRIVATE)
    write_atomic(home.ca, authority.certificate, mode=PRIVATE)
    write_atomic(home.ca_key, authority.key, mode=PRIVATE)
    write_atomic(home.signing_key, new_signing_key(), mode=PRIVATE)
    write_atomic(home.sites, as_json({"v": 1, "sites": {}, "revoked_keys": []}), mode=PRIVATE)
    write_atomic(
        home.federation,
        as_json({"v": 1, "hosts": [joined_host(pair) for pair in named]}),
        mode=PRIVATE,
    )
    return True


def sign(
    folder: Path,
    csr: Path,
    now: datetime.datetime,
    *,
    expect: str | None = None,
    days: float = CERTIFICATE_DAYS,
    replace_key: bool = False,
    relay: bool = False,
) -> tuple[Request, Path]:
    """Enrol the site (or relay) of a request; writes and returns the bundle beside it.

    `replace_key` strikes off the key that the site was enrolled with, for good.
    """
    home = Home(folder).check()
    try:
        wish = read_request(csr.read_bytes())
    except OSError as error:
        raise MembersError(f"{csr}: {error.strerror}, expected a request") from None
    except IdentityError as error:
        raise MembersError(f"{csr}: {error}") from None
    if expect is not None and plain(expect) != wish.fingerprint:
        raise MembersError(
            f"{csr}: its key is {spaced(wish.fingerprint)}, expected {spaced(plain(expect))}"
        )
    with changing(home) as content:
        members = home.members()
        before = members.sites.get(wish.site)
        if before is None and (
            alike := [name for name in members.sites if name.lower() == wish.site.lower()]
        ):
            raise MembersError(f"{csr}: its name {wish.site} differs from {alike[0]} by case alone")
        if wish.fingerprint in members.revoked_keys:
            raise MembersError(f"{csr}: this key was revoked, expected a new one")
        if before is not None and not before.revoked and before.relay != relay:
            was = "a relay" if before.relay else "a site"
            raise MembersError(f"{csr}: {wish.site} is enrolled as {was} (revoke it first)")
        if before is not None and before.revoked is None and before.fingerprint != wish.fingerprint:
            if not replace_key:
                raise MembersError(
                    f"{csr}: {wish.site} is enrolled with another key (--replace strikes it off)"
                )
            content["revoked_keys"] = sorted({*content["revoked_keys"], before.fingerprint})
        pem = signing_authority(home).issue(wish, now, days).decode()
        entry: dict[str, Any] = {"certificate": pem, "revoked": None}
        content["sites"][wish.site] = entry | ({"relay": True} if relay else {})
    bundle = csr.with_name(f"{wish.site}.bundle")
    write_atomic(bundle, _bundle(home, wish.site, pem), mode=PRIVATE)
    return wish, bundle


def revoke(folder: Path, site: str, now: datetime.datetime) -> Member:
    """Strike a site's key off, for good."""
    home = Home(folder).check()
    with changing(home) as content:
        member = known(home, site)
        when = member.revoked or now.isoformat(timespec="seconds")
        content["sites"][site]["revoked"] = when
        content["revoked_keys"] = sorted({*content["revoked_keys"], member.fingerprint})
    return replace(member, revoked=when)


def renew(
    folder: Path, site: str, now: datetime.datetime, where: Path, *, days: float | None = None
) -> Path:
    """A new certificate for the same keys of a site; writes and returns its bundle in `where`.

    It holds `days`, or as long as the one before.
    """
    home = Home(folder).check()
    with changing(home) as content:
        pem = _renewed(home, content, site, now, days)
    bundle = where / f"{site}.bundle"
    write_atomic(bundle, _bundle(home, site, pem), mode=PRIVATE)
    return bundle


def bundle_now(folder: Path, site: str, now: datetime.datetime) -> tuple[bytes, bool]:
    """A connected site's bundle as it is now; its certificate renewed if that is due: True then.

    However often a site asks, the authority signs once in two thirds of a certificate's life, and
    the next authority once when it is announced.
    """
    home, renewed = Home(folder).check(), False
    pem = known(home, site).pem
    following = home.next_ca.is_file()
    passed_on = not following or issued_by(pem.encode(), home.next_ca.read_bytes())
    if now >= Certificate.read(pem.encode()).renewal or not passed_on:
        with changing(home) as content:
            pem, renewed = _renewed(home, content, site, now, None, following=following), True
    return _bundle(home, site, pem, following=following), renewed


def _renewed(
    home: Home,
    content: dict[str, Any],
    site: str,
    now: datetime.datetime,
    days: float | None,
    *,
    following: bool = False,
) -> str:
    member = known(home, site)
    if member.revoked is not None:
        raise MembersError(f"{site}: revoked {member.revoked}, expected a new request")
    wish = Request(site, member.certificate.key, member.certificate.signing)
    signer = signing_authority(home, following=following)
    pem = signer.issue(wish, now, days or member.certificate.days).decode()
    content["sites"][site]["certificate"] = pem
    return pem


def spaced(key: str) -> str:
    """A fingerprint in groups of four, for people."""
    return " ".join(key[i : i + 4] for i in range(0, len(key), 4))


def plain(text: str) -> str:
    """A fingerprint as people wrote it, without spaces and colons."""
    return text.replace(" ", "").replace(":", "").lower().removeprefix("sha256")


def _bundle(home: Home, site: str, pem: str, *, following: bool = False) -> bytes:
    bundle: dict[str, object] = {
        "v": 1,
        "site": site,
        "certificate": pem,
        "ca": home.ca.read_text(),
        "hosts": home.hosts(),
        "verify": signing_public(home.signing_key.read_bytes()),
    }
    if following:
        new = home.next_ca.read_bytes()
        signature = announce(home.signing_key, home.ca.read_bytes(), new)
        bundle["next"] = {"ca": new.decode(), "signature": signature}
    return as_json(bundle)


def known(home: Home, site: str) -> Member:
    """The site of this name, revoked or not; MembersError."""
    members = home.members()
    member = members.sites.get(site)
    if member is None:
        names = ", ".join(sorted(members.sites)) or "none"
        raise MembersError(f"{site}: not enrolled here, expected one of: {names}")
    return member


def signing_authority(home: Home, *, following: bool = False) -> Authority:
    """The authority that signs, or the one that takes over; MembersError where they do not fit."""
    pair = (home.next_ca, home.next_ca_key) if following else (home.ca, home.ca_key)
    certificate, key = (path.read_bytes() for path in pair)
    if Certificate.read(certificate).key != public_of(key):
        then = "tacit-server authority finish" if home.next_ca.is_file() else "tacit-server restore"
        raise MembersError(f"{pair[1]}: must be the key of {pair[0].name} ({then})")
    return Authority(certificate, key)


@contextmanager
def changing(home: Home) -> Iterator[dict[str, Any]]:
    """The list of sites, to be changed: under a lock, written in one step if nothing failed."""
    with (home.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = read_json(home.sites, _LISTED)
        before = json.dumps(content)
        yield content
        if json.dumps(content) != before:
            write_atomic(home.sites, as_json(content), mode=PRIVATE)


def as_json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
