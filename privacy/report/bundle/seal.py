"""The seal of a filed report: digests of every file that it rests on, and one signature over them.

`report.sig` is one JSON object: `{"v", "what", "filing", "files", "lines", "key", "certificate",
"signature"}`. Signed is the canonical JSON of all but the signature, after a prefix. `lines` holds
a digest a line of each history, so that a change can be named by its line.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from privacy.files import DocumentError, read_json
from privacy.identity.certificates import Certificate, issued_by
from privacy.identity.keys import IdentityError, sign, signing_public, verify
from privacy.report.report import canonical
from privacy.report.sources import LIMITS, Problem

NAME: Final = "report.sig"
SELF_SIGNED: Final = "self-signed: integrity only, origin unknown"
_PREFIX: Final = b"tacit report\0"
_WHAT: Final = "tacit privacy report, signed"
_SHORT: Final = 16


@dataclass(frozen=True, slots=True)
class Seal:
    """Who filed what: `key` is an Ed25519 public key, which `certificate` binds to a name."""

    filing: Mapping[str, Any]
    files: Mapping[str, str]
    lines: Mapping[str, list[str]]
    key: str
    certificate: str | None
    signature: str

    def to_json(self) -> str:
        """The content of `report.sig`."""
        return canonical({"v": 1, "what": _WHAT, **asdict(self)})

    def payload(self) -> bytes:
        """The bytes that are signed."""
        values = asdict(self)
        del values["signature"]
        return _PREFIX + canonical(values).encode()


def seal(
    folder: Path, filing: Mapping[str, Any], key: bytes, certificate: bytes | None = None
) -> Seal:
    """Digest every file under `folder` but the seal itself, and sign; `key` is an Ed25519 PEM."""
    files, lines = digests(folder)
    text = certificate.decode() if certificate is not None else None
    unsigned = Seal(filing, files, lines, signing_public(key), text, "")
    signature = sign(key, unsigned.payload()).hex()
    return Seal(filing, files, lines, unsigned.key, text, signature)


def digests(folder: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """SHA-256 of every file by its path, and of every line of the histories and heads."""
    files: dict[str, str] = {}
    lines: dict[str, list[str]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / NAME):
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        files[name] = hashlib.sha256(data).hexdigest()
        if name.endswith(".jsonl"):
            lines[name] = [hashlib.sha256(line).hexdigest()[:_SHORT] for line in data.splitlines()]
    return files, lines


def read_seal(path: Path) -> Seal:
    """The seal in a file; ValueError for anything that is none."""
    try:
        values = read_json(path, LIMITS)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except DocumentError:
        raise ValueError("expected one JSON object") from None
    keys = {"v", "what", "filing", "files", "lines", "key", "certificate", "signature"}
    if not isinstance(values, dict) or set(values) != keys or values.pop("v") != 1:
        raise ValueError(f"expected the keys {', '.join(sorted(keys))}, v being 1")
    if values.pop("what") != _WHAT:
        raise ValueError(f"what: expected {_WHAT!r}")
    maps = (values["filing"], values["files"], values["lines"])
    if not all(isinstance(value, dict) for value in maps):
        raise ValueError("filing, files, lines: expected objects")
    texts = (*values["files"].values(), *_texts(values["filing"].get("sources", [])))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("filing, files: expected texts")
    if not isinstance(values["certificate"], str | None):
        raise ValueError("certificate: expected a text, or null")
    for digests_of_lines in values["lines"].values():
        _texts(digests_of_lines)
    for name, length in (("key", 64), ("signature", 128)):
        if not re.fullmatch(f"[0-9a-f]{{{length}}}", str(values[name])):
            raise ValueError(f"{name}: expected {length} hexadecimal digits")
    return Seal(**values)


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("filing, lines: expected lists of texts")
    return value


def changed(folder: Path, sealed: Seal) -> list[Problem]:
    """Every file that is not what was signed, with its line where lines were signed."""
    files, lines = digests(folder)
    problems: list[Problem] = []
    for name in sorted({*files, *sealed.files}):
        if name not in files:
            problems.append(Problem("file-missing", name, "was signed and is not there"))
        elif name not in sealed.files:
            problems.append(Problem("file-added", name, "was not there when the report was signed"))
        elif files[name] != sealed.files[name]:
            where = _line(lines.get(name, []), list(sealed.lines.get(name, [])))
            message = "is not what was signed"
            problems.append(Problem("file-changed", f"{name}{where}", message))
    return problems


def _line(now: list[str], then: list[str]) -> str:
    for number, (one, other) in enumerate(zip(now, then, strict=False), start=1):
        if one != other:
            return f" line {number}"
    return f" line {min(len(now), len(then)) + 1}" if len(now) != len(then) else ""


def origin(sealed: Seal, authority: bytes | None) -> tuple[str, list[Problem]]:
    """Who signed, as far as it can be known, and what is wrong with the signature."""
    if not verify(sealed.key, sealed.payload(), bytes.fromhex(sealed.signature)):
        return "signature does not hold", [
            Problem("signature-invalid", NAME, "the signature does not hold for what it signs")
        ]
    if authority is None:
        return SELF_SIGNED, []
    try:
        name = _named(sealed, authority)
    except (IdentityError, ValueError) as error:
        return "signed by somebody else", [Problem("origin-unknown", NAME, str(error))]
    return f"signed by {name}, whom the given authority knows", []


def _named(sealed: Seal, authority: bytes) -> str:
    if sealed.certificate is None:
        raise ValueError("the signer brings no certificate of any authority")
    certificate = Certificate.read(sealed.certificate.encode())
    if not issued_by(sealed.certificate.encode(), authority):
        raise ValueError(f"the certificate of {certificate.name} is not of the given authority")
    if certificate.signing != sealed.key:
        raise ValueError(f"the certificate of {certificate.name} is for another signing key")
    at = datetime.fromisoformat(str(sealed.filing.get("at")))
    if certificate.age(at) in ("early", "expired"):
        raise ValueError(f"the certificate of {certificate.name} was not valid at {at}")
    return certificate.name
