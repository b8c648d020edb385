"""Signatures over released models: who vouches for exactly these bytes as a round of a run.

A signature lies beside its file as `<file>.sig`, one line of JSON:
`{"v": 1, "sha256", "run", "round", "key", "signature"}`. The signed payload is `payload(..)` below;
`key` is the signer's Ed25519 public key (64 hexadecimal digits), which proves nothing by itself:
the reader decides which keys it knows.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from privacy.files import DocumentError, canonical_json, parse_json
from privacy.identity.keys import sign, signing_public, verify

_PREFIX: Final = b"tacit model\0"
_HEX: Final = {"sha256": 64, "key": 64, "signature": 128}
_LONGEST: Final = 4096


class SigningError(ValueError):
    """Bytes that are no signature of a model."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The holder of `key` says: the file with this SHA-256 is round `round` of run `run`."""

    sha256: str
    run: str
    round: int
    key: str
    signature: str

    def to_bytes(self) -> bytes:
        """The content of a `.sig` file."""
        return json.dumps({"v": 1, **asdict(self)}).encode() + b"\n"


def payload(sha256: str, run: str, round: int) -> bytes:
    """The bytes that are signed: a prefix, then the three values as sorted JSON."""
    values = {"round": round, "run": run, "sha256": sha256}
    return _PREFIX + canonical_json(values).encode()


def sign_model(content: bytes, run: str, round: int, key: Path | bytes) -> Signature:
    """Sign a model file's content with an Ed25519 private key (PEM, or the path of one)."""
    return sign_digest(hashlib.sha256(content).hexdigest(), run, round, key)


def sign_digest(sha256: str, run: str, round: int, key: Path | bytes) -> Signature:
    """`sign_model` of a content that has this SHA-256."""
    private = key.read_bytes() if isinstance(key, Path) else key
    signed = sign(private, payload(sha256, run, round))
    return Signature(sha256, run, round, signing_public(private), signed.hex())


def valid(signature: Signature) -> bool:
    """Whether the holder of the named key made this signature."""
    signed = payload(signature.sha256, signature.run, signature.round)
    return verify(signature.key, signed, bytes.fromhex(signature.signature))


def read_signature(content: bytes) -> Signature:
    """Read a `.sig` file; SigningError unless it has exactly its keys in their form."""
    if len(content) > _LONGEST:
        raise SigningError(f"expected at most {_LONGEST} bytes, got {len(content)}")
    try:
        values = parse_json(content)
    except DocumentError:
        raise SigningError("expected a signature in JSON, got another text") from None
    wanted = {"v", "sha256", "run", "round", "key", "signature"}
    if not isinstance(values, dict) or set(values) != wanted or values.pop("v") != 1:
        raise SigningError(f"expected the keys {', '.join(sorted(wanted))}, v being 1")
    for name, length in _HEX.items():
        value = values[name]
        if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{length}}}", value):
            raise SigningError(f"{name}: expected {length} hexadecimal digits")
    if not isinstance(values["run"], str) or type(values["round"]) is not int:
        raise SigningError("run, round: expected a text and a whole number")
    return Signature(**values)
