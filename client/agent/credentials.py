"""A site's folder as far as its identity goes: keys, request, certificate, coordinator."""

import datetime
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from client.agent.route import split_address
from privacy.files import PRIVATE, parse_json, read_bounded, read_json, write_atomic
from privacy.identity import keys
from privacy.identity.certificates import Certificate, issued_by, request, split
from privacy.identity.keys import IdentityError
from privacy.identity.rotation import announced

_LARGEST: Final = 1 << 20
_MOST_HOSTS: Final = 32


class EnrolmentError(ValueError):
    """A site's folder, or a bundle for it, that cannot be used: one line."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The files of a site, and what they say."""

    folder: Path

    @property
    def key(self) -> Path:
        return self.folder / "site.key"

    @property
    def signing_key(self) -> Path:
        return self.folder / "signing.key"

    @property
    def certificate(self) -> Path:
        return self.folder / "site.pem"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def about(self) -> Path:
        return self.folder / "site.json"

    @property
    def paused(self) -> Path:
        return self.folder / "paused"

    def facts(self) -> dict[str, Any]:
        """What enrol and join wrote: `site`, and after join `hosts` and `verify`."""
        try:
            facts: dict[str, Any] = read_json(self.about)
        except FileNotFoundError:
            raise EnrolmentError(
                f"--dir {self.folder}: no site here (make one: tacit-client enroll --site NAME)"
            ) from None
        except ValueError:
            raise EnrolmentError(f"{self.about}: expected JSON, it is damaged") from None
        if not isinstance(facts, dict):
            raise EnrolmentError(f"{self.about}: expected a JSON object, it is damaged")
        return facts

    @property
    def name(self) -> str:
        return str(self.facts()["site"])

    @property
    def hosts(self) -> list[str]:
        return [str(host) for host in self.facts().get("hosts", [])]

    @property
    def verify(self) -> str:
        """The coordinator's verifying key, or "" before join."""
        return str(self.facts().get("verify", ""))

    def joined(self) -> "Enrolled":
        """Itself, or EnrolmentError where no bundle was taken in yet."""
        if not self.verify or not self.certificate.is_file():
            raise EnrolmentError(
                f"--dir {self.folder}: not joined yet (tacit-client join {self.name}.bundle)"
            )
        return self

    def read_certificate(self) -> Certificate:
        """The site's certificate."""
        return Certificate.read(self.certificate.read_bytes())

    def tls(self) -> ssl.SSLContext:
        """TLS 1.3 alone, with our certificate, and the coordinator's checked by name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.certificate, self.key)
        return context


def enroll(folder: Path, site: str, *, new_keys: bool = False) -> tuple[Path, str]:
    """Make a site's keys and its request; the same again changes no key. Path and fingerprint.

    `new_keys` makes others beside the keys in use, which serve until `join` takes in a bundle for
    the new ones; nothing else of the folder changes.
    """
    keys.check_name(site)
    here = Enrolled(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if here.about.exists():
        if here.name != site:
            raise EnrolmentError(f"--dir {folder}: already the site {here.name}, expected another")
    else:
        there = [p.name for p in (here.key, here.signing_key, here.certificate) if p.exists()]
        if there:
            raise EnrolmentError(
                f"--dir {folder}: holds {', '.join(there)} without site.json, nothing was changed "
                "(restore a whole backup into an empty folder: tacit-client restore FILE)"
            )
        if new_keys:
            raise EnrolmentError(f"--dir {folder}: has no keys yet, expected no --new-keys")
        write_atomic(here.key, keys.new_key(), mode=PRIVATE)
        write_atomic(here.signing_key, keys.new_signing_key(), mode=PRIVATE)
        write_atomic(here.about, json.dumps({"v": 1, "site": site}).encode(), mode=PRIVATE)
    if new_keys:
        write_atomic(_next(here.key), keys.new_key(), mode=PRIVATE)
        write_atomic(_next(here.signing_key), keys.new_signing_key(), mode=PRIVATE)
    pair = [_next(p) if _next(p).is_file() else p for p in (here.key, here.signing_key)]
    key, signing = (path.read_bytes() for path in pair)
    path = folder / f"{site}.csr"
    write_atomic(path, request(site, key, signing), mode=PRIVATE)
    return path, keys.fingerprint(keys.public_of(key))


def _next(key: Path) -> Path:
    """Where the key lies that will take this one's place."""
    return key.with_name(f"{key.name}.next")


@dataclass(frozen=True, slots=True)
class Bundle:
    """The coordinator's answer to a request: a certificate, its authority, names and key.

    `following` is the authority that takes over, while one is announced, and `signature` the
    coordinator's under the announcement.
    """

    site: str
    pem: bytes
    ca: bytes
    hosts: tuple[str, ...]
    verify: str
    certificate: Certificate
    following: bytes = b""
    signature: str = ""


def read_bundle(content: bytes) -> Bundle:
    """Check a bundle's form, and that its authority issued its certificate; EnrolmentError."""
    try:
        fields = parse_json(content)
        pem, ca = str(fields["certificate"]).encode(), _authority(fields["ca"])
        hosts, verify = tuple(str(host) for host in fields["hosts"]), str(fields["verify"])
        bundle = Bundle(str(fields.get("site")), pem, ca, hosts, verify, Certificate.read(pem))
        if "next" in fields:
            following, signature = fields["next"]["ca"], str(fields["next"]["signature"])
            bundle = replace(bundle, following=_authority(following), signature=signature)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EnrolmentError("expected a bundle of tacit-server sign") from None
    if not issued_by(pem, ca + bundle.following):
        raise EnrolmentError("its certificate is not of its own authority")
    if len(verify) != 64:
        raise EnrolmentError("expected the coordinator's verifying key")
    return bundle


def _authority(pem: object) -> bytes:
    """The one certificate of a text: whatever else stood in it would be trusted, and not shown."""
    (one,) = split(str(pem).encode())
    return one


def join(
    folder: Path, bundle: Path, now: datetime.datetime, *, expect: str | None = None
) -> Certificate:
    """Take in the coordinator's answer: our certificate, its authority, its names and its key.

    `expect` is the fingerprint of the authority, or the verifying key, as the coordinator told it
    by another way.
    """
    here = Enrolled(folder)
    site = here.name
    try:
        contents = read_bundle(read_bounded(bundle, _LARGEST))
        _check(here, contents, site)
    except OSError as error:
        raise EnrolmentError(f"{bundle}: {error.strerror}, expected a bundle") from None
    except ValueError as error:
        raise EnrolmentError(f"{bundle}: {error}") from None
    certificate = contents.certificate
    if certificate.age(now) == "expired":
        raise EnrolmentError(f"{bundle}: expired on {certificate.ends:%Y-%m-%d}")
    shown = Certificate.read(contents.ca).fingerprint
    if expect is not None and _plain(expect) not in (shown, contents.verify):
        raise EnrolmentError(f"{bundle}: its authority is {shown}, expected {_plain(expect)}")
    for key, public in ((here.signing_key, _signing), (here.key, keys.public_of)):
        # A kill between the two leaves a pair that `join` completes when it is called again.
        if public(key.read_bytes()) not in (certificate.key, certificate.signing):
            _next(key).replace(key)
    write_atomic(here.ca, contents.ca, mode=PRIVATE)
    _write(here, contents)
    for key in (here.signing_key, here.key):
        _next(key).unlink(missing_ok=True)
    return certificate


def take_renewed(folder: Path, content: bytes, now: datetime.datetime) -> bool:
    """Take in a bundle that came over the connection; True where its certificate is another.

    It must be of the same authority and verifying key, for the keys in use: EnrolmentError.
    """
    here = Enrolled(folder)
    bundle = read_bundle(content)
    certificate = bundle.certificate
    if bundle.site != here.name or certificate.name != here.name:
        raise EnrolmentError("it is for another site")
    if certificate.key != keys.public_of(here.key.read_bytes()):
        raise EnrolmentError("it is for another key")
    if certificate.signing != _signing(here.signing_key.read_bytes()):
        raise EnrolmentError("it is for another signing key")
    if bundle.verify != here.verify:
        raise EnrolmentError("it is of another verifying key")
    trusted = _trusted_from_now(here, bundle)
    if not issued_by(bundle.pem, trusted):
        raise EnrolmentError("it is of another authority")
    if certificate.age(now) in ("expired", "early"):
        raise EnrolmentError(f"it is valid from {certificate.begins} to {certificate.ends}")
    if not 0 < len(bundle.hosts) <= _MOST_HOSTS:
        raise EnrolmentError(f"it must name 1 to {_MOST_HOSTS} addresses")
    for host in bundle.hosts:
        split_address(host)
    before = here.certificate.read_bytes()
    if trusted != here.ca.read_bytes():  # before the certificate: a kill leaves what connects
        write_atomic(here.ca, trusted, mode=PRIVATE)
    if (bundle.pem, list(bundle.hosts)) != (before, here.hosts):
        _write(here, bundle)
    return bundle.pem != before


def _trusted_from_now(here: Enrolled, bundle: Bundle) -> bytes:
    """Whom the site trusts once it has this bundle: EnrolmentError for another authority.

    The next one is added where the verifying key announces it, and stands alone as soon as the
    coordinator's bundles are its own.
    """
    trusted = split(here.ca.read_bytes())
    if bundle.ca not in trusted:
        raise EnrolmentError("it is of another authority")
    if bundle.following:
        if not announced(here.verify, bundle.ca, bundle.following, bundle.signature):
            raise EnrolmentError("its next authority is not announced by the verifying key")
        return bundle.ca + bundle.following
    return bundle.ca if bundle.ca == trusted[-1] else b"".join(trusted)


def _check(here: Enrolled, bundle: Bundle, site: str) -> None:
    """A bundle must be for this site and for its keys, those in use or those to come."""
    certificate = bundle.certificate
    if certificate.name != site or bundle.site != site:
        raise EnrolmentError(f"for the site {certificate.name}, expected {site}")
    if certificate.key not in _publics(here.key, keys.public_of):
        raise EnrolmentError(f"for another key, expected one for {site}.csr as it is now")
    if certificate.signing not in _publics(here.signing_key, _signing):
        raise EnrolmentError("for another signing key, expected this site's")
    if not issued_by(bundle.pem, bundle.ca):
        raise EnrolmentError("its certificate is not of its own authority")


def _publics(key: Path, public: Callable[[bytes], Any]) -> list[Any]:
    return [public(path.read_bytes()) for path in (key, _next(key)) if path.is_file()]


def _signing(key: bytes) -> str:
    return keys.signing_public(key)


def _write(here: Enrolled, bundle: Bundle) -> None:
    write_atomic(here.certificate, bundle.pem, mode=PRIVATE)
    facts = {"v": 1, "site": bundle.site, "hosts": list(bundle.hosts), "verify": bundle.verify}
    write_atomic(here.about, json.dumps(facts, indent=1).encode(), mode=PRIVATE)


def _plain(text: str) -> str:
    """A fingerprint as people wrote it, without spaces and colons."""
    return text.replace(" ", "").replace(":", "").lower().removeprefix("sha256")


def authority(folder: Path) -> str:
    """The fingerprint of the coordinator's authority, to compare by another way."""
    try:
        return Certificate.read(Enrolled(folder).ca.read_bytes()).fingerprint
    except (OSError, IdentityError):
        return ""
