"""Who is who: the keys of sites and coordinators, and what they sign; bytes in, bytes out.

A site makes two keys and keeps them. One EC P-384 key serves TLS and Flower's node authentication;
one Ed25519 key signs ledger heads and reports. `privacy/identity/certificates.py` binds both to a
name.
"""

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?\Z")


class IdentityError(ValueError):
    """A key, a request, a certificate or a name that cannot be accepted."""


def check_name(name: str) -> str:
    """A site's name: letters, digits, `_`, `-`, `.`; it becomes file names and log lines."""
    if not _NAME.match(name):
        raise IdentityError(
            f"site: expected 1 to 64 of letters, digits, '_', '-' and '.', got {name!r:.80}"
        )
    return name


def fingerprint(der: bytes) -> str:
    """SHA-256 of a public key's DER, in hexadecimal."""
    return hashlib.sha256(der).hexdigest()


def new_key() -> bytes:
    """A new EC P-384 private key, as PEM."""
    return _private_pem(ec.generate_private_key(ec.SECP384R1()))


def new_signing_key() -> bytes:
    """A new Ed25519 private key, as PEM."""
    return _private_pem(ed25519.Ed25519PrivateKey.generate())


def signing_public(private: bytes) -> str:
    """The public half of a signing key: 64 hexadecimal digits."""
    return _raw(_signing_key(private).public_key()).hex()


def sign(key: Path | bytes, payload: bytes) -> bytes:
    """The Ed25519 signature (64 bytes) of a payload, by the key or the key in that file."""
    return _signing_key(key.read_bytes() if isinstance(key, Path) else key).sign(payload)


def verify(public: str, payload: bytes, signature: bytes) -> bool:
    """Whether the holder of `public` (64 hexadecimal digits) signed exactly this payload."""
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(signature, payload)
    except (InvalidSignature, ValueError):
        return False
    return True


def verify_ec(public: bytes, payload: bytes, signature: bytes) -> bool:
    """Whether the holder of an EC key (SubjectPublicKeyInfo, DER) signed this, ECDSA, SHA-256."""
    try:
        key = serialization.load_der_public_key(public)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True


def public_of(key: bytes) -> bytes:
    """The public key (SubjectPublicKeyInfo, DER) of a private P-384 key in PEM."""
    return spki(private_key(key).public_key())


def private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The P-384 key in a PEM; IdentityError for anything else."""
    key = _load(pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError("key: expected a P-384 private key in PEM")
    return key


@lru_cache(maxsize=4)
def _signing_key(pem: bytes) -> ed25519.Ed25519PrivateKey:
    key = _load(pem)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise IdentityError("key: expected an Ed25519 private key in PEM")
    return key


def _load(pem: bytes) -> object:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError("key: expected an unencrypted private key in PEM") from None


def _private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def spki(public: ec.EllipticCurvePublicKey) -> bytes:
    """The public key as SubjectPublicKeyInfo, DER."""
    return public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _raw(public: ed25519.Ed25519PublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
