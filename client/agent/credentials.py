"""A site's folder as far as its identity goes: keys, request, certificate, coordinator."""

import datetime
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy.files import PRIVATE, write_atomic
from privacy.identity import keys
from privacy.identity.certificates import Certificate, issued_by, request
from privacy.identity.keys import IdentityError


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
            found: dict[str, Any] = json.loads(self.about.read_text())
        except FileNotFoundError:
            raise EnrolmentError(
                f"--dir {self.folder}: no site here (make one: tacit-client enroll --site NAME)"
            ) from None
        except ValueError:
            raise EnrolmentError(f"{self.about}: expected JSON, it is damaged") from None
        return found

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


def enroll(folder: Path, site: str) -> tuple[Path, str]:
    """Make a site's keys and its request; the same again changes no key. Path and fingerprint."""
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
        write_atomic(here.key, keys.new_key(), mode=PRIVATE)
        write_atomic(here.signing_key, keys.new_signing_key(), mode=PRIVATE)
        write_atomic(here.about, json.dumps({"v": 1, "site": site}).encode(), mode=PRIVATE)
    key = here.key.read_bytes()
    path = folder / f"{site}.csr"
    write_atomic(path, request(site, key, here.signing_key.read_bytes()), mode=PRIVATE)
    return path, keys.fingerprint(keys.public_of(key))


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
        found = json.loads(bundle.read_bytes())
        pem, ca = str(found["certificate"]).encode(), str(found["ca"]).encode()
        hosts, verify = [str(host) for host in found["hosts"]], str(found["verify"])
        certificate = Certificate.read(pem)
    except OSError as error:
        raise EnrolmentError(f"{bundle}: {error.strerror}, expected a bundle") from None
    except (ValueError, KeyError, TypeError):
        raise EnrolmentError(f"{bundle}: expected a bundle of tacit-server sign") from None
    if certificate.name != site or found.get("site") != site:
        raise EnrolmentError(f"{bundle}: for the site {certificate.name}, expected {site}")
    if certificate.key != keys.public_of(here.key.read_bytes()):
        raise EnrolmentError(f"{bundle}: for another key, expected one for {site}.csr as it is now")
    if certificate.signing != keys.signing_public(here.signing_key.read_bytes()):
        raise EnrolmentError(f"{bundle}: for another signing key, expected this site's")
    if not issued_by(pem, ca):
        raise EnrolmentError(f"{bundle}: its certificate is not of its own authority")
    if certificate.age(now) == "expired":
        raise EnrolmentError(f"{bundle}: expired on {certificate.ends:%Y-%m-%d}")
    if len(verify) != 64:
        raise EnrolmentError(f"{bundle}: expected the coordinator's verifying key")
    shown = Certificate.read(ca).fingerprint
    if expect is not None and _plain(expect) not in (shown, verify):
        raise EnrolmentError(f"{bundle}: its authority is {shown}, expected {_plain(expect)}")
    write_atomic(here.ca, ca, mode=PRIVATE)
    write_atomic(here.certificate, pem, mode=PRIVATE)
    facts = {"v": 1, "site": site, "hosts": hosts, "verify": verify}
    write_atomic(here.about, json.dumps(facts, indent=1).encode(), mode=PRIVATE)
    return certificate


def _plain(text: str) -> str:
    """A fingerprint as people wrote it, without spaces and colons."""
    return text.replace(" ", "").replace(":", "").lower().removeprefix("sha256")


def authority(folder: Path) -> str:
    """The fingerprint of the coordinator's authority, to compare by another way."""
    try:
        return Certificate.read(Enrolled(folder).ca.read_bytes()).fingerprint
    except (OSError, IdentityError):
        return ""
