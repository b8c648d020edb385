"""Where the local service listens and what it lets in, read from the command line."""

import ipaddress
import sys
from dataclasses import dataclass
from pathlib import Path

from client.models.loading import ModelError


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest request: bytes of its body, and rows in it."""

    body: int
    rows: int


@dataclass(frozen=True, slots=True)
class Listening:
    """Where to listen, whether only this machine can reach it, and the token to ask for."""

    host: str
    port: int
    loopback: bool
    token: bytes | None


def listening(where: str, token_file: Path | None) -> Listening:
    """Read HOST:PORT and the token file; off this machine's loopback a token is a must."""
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ModelError(f"listen: expected HOST:PORT, got {where!r}")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    token = None
    if token_file is not None:
        try:
            token = token_file.read_bytes().strip()
        except OSError as error:
            raise ModelError(f"{token_file}: expected a token, got {error.strerror}") from error
        if not 16 <= len(token) <= 1024 or b"\n" in token:
            raise ModelError(f"{token_file}: expected one line of 16 to 1024 bytes as token")
    if not loopback and token is None:
        raise ModelError(f"listen: {host} can be reached from outside: expected --token-file")
    return Listening(host, int(port), loopback, token)


def say(text: str) -> None:
    """A line for the operator."""
    sys.stderr.write(f"tacit-client: {text}\n")
    sys.stderr.flush()
