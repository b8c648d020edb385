"""Requests and certificates: the federation's authority binds a name to a site's two keys.

A request proves that its sender holds both keys; the certificate carries the TLS key as its own
and the signing key in an extension. Time is an input.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privacy.identity.keys import (
    IdentityError,
    check_name,
    fingerprint,
    new_key,
    private_key,
    sign,
    signing_public,
    spki,
    verify,
)

WARN: Final = datetime.timedelta(days=30)
AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 397
_SKEW: Final = datetime.timedelta(minutes=5)
_SIGNING: Final = x509.ObjectIdentifier("2.25.141129483820473059152461305")
_ENROL: Final = b"tacit enrolment\0"
_AUTHORITIES_MAX: Final = 8
_MALFORMED: Final = (
    *(ValueError, TypeError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)
"""What the library raises for bytes that are no certificate and no request."""


@dataclass(frozen=True, slots=True)
class Request:
    """A site's wish for a certificate: its name and its two public keys, both proven."""

    site: str
    key: bytes  # SubjectPublicKeyInfo, DER
    signing: str

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)


def request(site: str, key: bytes, signing: bytes) -> bytes:
    """A certificate request in PEM, signed by both of the site's private keys."""
    check_name(site)
    private = private_key(key)
    der = spki(private.public_key())
    proof = sign(signing, _ENROL + site.encode() + b"\0" + der)
    value = bytes.fromhex(signing_public(signing)) + proof
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(site))
    builder = builder.add_extension(x509.UnrecognizedExtension(_SIGNING, value), critical=False)
    return builder.sign(private, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes) -> Request:
    """Check a request: its form, its name, and that its sender holds both keys."""
    try:
        csr = x509.load_pem_x509_csr(pem)
        signed, public = csr.is_signature_valid, csr.public_key()
        value = _extension(csr.extensions)
    except _MALFORMED:
        raise IdentityError("request: expected a certificate request in PEM") from None
    if not signed or not isinstance(public, ec.EllipticCurvePublicKey):
        raise IdentityError("request: its signature does not hold")
    if not isinstance(public.curve, ec.SECP384R1):
        raise IdentityError(f"request: expected a P-384 key, got {public.curve.name}")
    site = check_name(_common_name(csr.subject))
    der = spki(public)
    proof = _ENROL + site.encode() + b"\0" + der
    if len(value) != 96 or not verify(value[:32].hex(), proof, value[32:]):
        raise IdentityError("request: the proof of the signing key does not hold")
    return Request(site, der, value[:32].hex())


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says."""

    name: str
    key: bytes  # SubjectPublicKeyInfo, DER
    signing: str  # empty for an authority or a server
    begins: datetime.datetime
    ends: datetime.datetime
    hosts: tuple[str, ...]

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read PEM or DER; IdentityError for anything else."""
        try:
            certificate = _load(data)
            public = certificate.public_key()
            value = _extension(certificate.extensions)
            return cls(
                name=_common_name(certificate.subject),
                key=public.public_bytes(
                    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
                ),
                signing=value.hex(),
                begins=certificate.not_valid_before_utc,
                ends=certificate.not_valid_after_utc,
                hosts=_hosts(certificate),
            )
        except _MALFORMED:
            raise IdentityError("certificate: expected a certificate in PEM or DER") from None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)

    @property
    def public_pem(self) -> bytes:
        """The public key in the form in which Flower registers a node."""
        return _public_pem(self.key)

    def age(self, now: datetime.datetime) -> str:
        """ "good", "soon" (fewer than 30 days left), "early" or "expired"."""
        if now < self.begins:
            return "early"
        if now >= self.ends:
            return "expired"
        return "soon" if self.ends - now < WARN else "good"

    @property
    def days(self) -> float:
        """For how many days it was issued."""
        return (self.ends - self.begins - _SKEW) / datetime.timedelta(days=1)

    @property
    def renewal(self) -> datetime.datetime:
        """When two thirds of its life are over: from then on it is to be renewed."""
        return self.begins + (self.ends - self.begins) * 2 / 3


@dataclass(frozen=True, slots=True)
class Authority:
    """The federation's certificate authority: its certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    @classmethod
    def create(cls, name: str, now: datetime.datetime) -> Self:
        """A new self-signed authority that may sign end entities alone."""
        return cls.with_key(name, new_key(), now)

    @classmethod
    def with_key(cls, name: str, key: bytes, now: datetime.datetime) -> Self:
        """The authority of an existing key: its certificate, made again.

        What the key signed before holds under it too: name and key identifier are the same.
        """
        private = private_key(key)
        subject = _name(name)
        builder = _builder(subject, subject, private.public_key(), now, AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_usage(authority=True), True)
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(private.public_key()), False
        )
        certificate = builder.sign(private, hashes.SHA384())
        return cls(certificate.public_bytes(serialization.Encoding.PEM), key)

    def issue(self, wish: Request, now: datetime.datetime, days: float = CERTIFICATE_DAYS) -> bytes:
        """A site's certificate in PEM, for the client side of TLS only."""
        public = serialization.load_der_public_key(wish.key)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise IdentityError("request: expected an EC key")
        builder = self._builder(wish.site, public, now, days)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        extra = x509.UnrecognizedExtension(_SIGNING, bytes.fromhex(wish.signing))
        return self._sign(builder.add_extension(usage, True).add_extension(extra, False))

    def issue_server(
        self,
        key: bytes,
        hosts: Sequence[str],
        now: datetime.datetime,
        days: float = CERTIFICATE_DAYS,
    ) -> bytes:
        """The coordinator's own certificate in PEM, for the names and addresses in `hosts`."""
        builder = self._builder("coordinator", private_key(key).public_key(), now, days)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        return self._sign(builder.add_extension(usage, True).add_extension(names, False))

    def _builder(
        self, name: str, public: ec.EllipticCurvePublicKey, now: datetime.datetime, days: float
    ) -> x509.CertificateBuilder:
        authority = x509.load_pem_x509_certificate(self.certificate)
        builder = _builder(_name(name), authority.subject, public, now, days)
        identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(_usage(authority=False), True)
        return builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False
        )

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        signed = builder.sign(private_key(self.key), hashes.SHA384())
        return signed.public_bytes(serialization.Encoding.PEM)


def issuer_of(certificate: bytes) -> str:
    """The issuer's name of any certificate (DER), as it says itself; IdentityError."""
    try:
        return x509.load_der_x509_certificate(certificate).issuer.rfc4514_string()[:200]
    except _MALFORMED:
        raise IdentityError("certificate: must be X.509") from None


def issued_by(certificate: bytes, authorities: bytes) -> bool:
    """Whether one of the authorities (PEM, one or several) signed this certificate (PEM or DER)."""
    try:
        leaf = _load(certificate)
        listed = x509.load_pem_x509_certificates(authorities)[:_AUTHORITIES_MAX]
    except _MALFORMED:
        return False
    return any(_signed_by(leaf, one) for one in listed)


def split(authorities: bytes) -> list[bytes]:
    """The certificates of a PEM text, each by itself and in one spelling; IdentityError."""
    try:
        listed = x509.load_pem_x509_certificates(authorities)
    except _MALFORMED:
        raise IdentityError("authority: must be a certificate in PEM") from None
    if len(listed) > _AUTHORITIES_MAX:
        raise IdentityError(f"authority: must be at most {_AUTHORITIES_MAX} certificates")
    return [one.public_bytes(serialization.Encoding.PEM) for one in listed]


def _load(data: bytes) -> x509.Certificate:
    pem = data.lstrip().startswith(b"-----")
    return x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)


def _signed_by(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (InvalidSignature, *_MALFORMED):
        return False
    return True


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _common_name(name: x509.Name) -> str:
    attributes = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(attributes) != 1 or not isinstance(attributes[0].value, str):
        raise IdentityError("name: expected exactly one common name")
    return attributes[0].value


@lru_cache(maxsize=4096)
def _public_pem(key: bytes) -> bytes:
    return serialization.load_der_public_key(key).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _extension(extensions: x509.Extensions) -> bytes:
    try:
        value = extensions.get_extension_for_oid(_SIGNING).value
    except x509.ExtensionNotFound:
        return b""
    return value.value if isinstance(value, x509.UnrecognizedExtension) else b""


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise IdentityError(f"host: expected a name or an address, got {host!r:.80}") from None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
