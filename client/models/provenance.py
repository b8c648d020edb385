"""Who vouches for a model file: asked about its exact bytes, before anything is read from them.

A coordinator that this site knows, the site itself, or a key of the file's own, which proves that
the file is whole and nothing about where it comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from privacy.identity.model_signature import Signature, SigningError, read_signature, valid

SELF_SIGNED: Final = "self-signed: origin unknown"
UNSIGNED: Final = "unsigned: integrity and origin unknown"
OWN: Final = "signed by this site"
MADE_HERE: Final = "made and signed by this site"
RECEIVED: Final = "received by this site from its coordinator, and signed by this site"
RUN_KEY: Final = "signing.pub"
"""The public key of a run folder that signs its own checkpoints."""


class OriginError(ValueError):
    """A model that nobody whom this site knows vouches for, or that was changed since."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys that a site knows, in hex, each with the words for its owner.

    `strict` is a site with a coordinator: it accepts no key that it does not know, but that of a
    run folder. Without a site, any whole file is accepted and said to be of unknown origin.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a file's origin, in words; `known` if the words name someone."""

    words: str
    known: bool
    signature: Signature | None = None


def origin_of(origin: Origin, metadata: Mapping[str, str]) -> Origin:
    """What a site's own signature means: it made the file, or only received its weights.

    The site writes both kinds itself; one that it made says what was changed, or carries its card.
    """
    if origin.words != OWN:
        return origin
    is_made_here = "card" in metadata or "changes" in metadata
    return replace(origin, words=MADE_HERE if is_made_here else RECEIVED)


def signature_path(path: Path) -> Path:
    """Where the signature of a file lies: beside it."""
    return path.with_name(path.name + ".sig")


def vouch(path: Path, digest: str, trust: Trust) -> Origin:
    """The origin of a file with that SHA-256; OriginError, one line, if it may not be used."""
    beside = signature_path(path)
    run = _run_folder(path)
    run_key = _own_key(run)
    if not beside.is_file():
        if trust.strict or run is None or run_key is not None:
            raise OriginError(f"{path}: expected its signature ({beside.name}), found none")
        return Origin(UNSIGNED, known=False)
    try:
        signature = read_signature(beside.read_bytes())
    except (OSError, SigningError) as error:
        raise OriginError(f"{beside}: {error}") from error
    if signature.sha256 != digest:
        raise OriginError(f"{path}: expected the file that was signed, got a changed one")
    if not valid(signature):
        raise OriginError(f"{beside}: expected a valid signature, got a false one")
    if signature.key in trust.keys:
        return Origin(trust.keys[signature.key], known=True, signature=signature)
    if run_key is not None and run_key != signature.key:
        raise OriginError(f"{path}: expected the run folder's own signature, got another key's")
    if trust.strict and run_key is None:
        raise OriginError(
            f"{path}: expected a signature by this site's coordinator, got one by an unknown "
            f"key ({signature.key[:16]})"
        )
    return Origin(SELF_SIGNED, known=False, signature=signature)


def _run_folder(path: Path) -> Path | None:
    """The run folder that a checkpoint lies in."""
    parent = path.absolute().parent
    inside = parent.name == "checkpoints" and (parent.parent / "plan.toml").is_file()
    return parent.parent if inside else None


def _own_key(run: Path | None) -> str | None:
    if run is None or not (run / RUN_KEY).is_file():
        return None
    try:
        return (run / RUN_KEY).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OriginError(f"{run / RUN_KEY}: expected a public key in hex") from error
