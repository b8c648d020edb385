"""Flower's node authentication, held to the very key of the TLS certificate."""

import base64
import binascii
import datetime
from functools import lru_cache
from typing import Final

from privacy.identity.keys import verify_ec
from server.registry.sites import Member

_CLOCK_SECONDS: Final = 305.0


class Denied(Exception):
    """A request of a known site that it may not make."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def authenticate(member: Member, public: bytes, signature: bytes, stamp: bytes) -> None:
    """Check the three headers (base64, base64, ISO time) of one request; Denied."""
    try:
        key = base64.b64decode(public, validate=True)
        signed = base64.b64decode(signature, validate=True)
        when = datetime.datetime.fromisoformat(stamp.decode("ascii"))
        age = (datetime.datetime.now(datetime.UTC) - when).total_seconds()
    except (ValueError, TypeError, binascii.Error):
        raise Denied(401, "no node authentication") from None
    if key != member.certificate.public_pem:
        raise Denied(401, "another site's key")
    if abs(age) > _CLOCK_SECONDS:
        raise Denied(401, f"its clock is off by {age:.0f} s")
    if not _holds(member.certificate.key, stamp, signed):
        raise Denied(401, "node authentication does not hold")


@lru_cache(maxsize=4096)
def _holds(key: bytes, stamp: bytes, signature: bytes) -> bool:
    """A site signs the time once a minute, not at each request; so it is verified once."""
    return verify_ec(key, stamp, signature)
