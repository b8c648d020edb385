"""The announcement of a new authority: the coordinator's verifying key signs who follows whom.

A site takes in a new authority only under the verifying key that it joined with: whoever holds the
old authority's key alone, which is why it may have to go, cannot name another.
"""

from pathlib import Path
from typing import Final

from privacy.identity.certificates import Certificate
from privacy.identity.keys import sign, verify

_ROTATE: Final = b"tacit authority\0"


def announce(key: Path | bytes, old: bytes, new: bytes) -> str:
    """The signature (hexadecimal) that the authority `new` (PEM) follows `old` (PEM)."""
    return sign(key, _payload(old, new)).hex()


def announced(verifying: str, old: bytes, new: bytes, signature: str) -> bool:
    """Whether the holder of the verifying key says that `new` follows `old`; IdentityError."""
    try:
        content = bytes.fromhex(signature)
    except ValueError:
        return False
    return verify(verifying, _payload(old, new), content)


def _payload(old: bytes, new: bytes) -> bytes:
    return _ROTATE + Certificate.read(old).fingerprint.encode() + b"\0" + new
