"""The keys that a site knows, and the key with which it signs what it makes of a model itself."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from client.models.loading import ModelError
from client.models.provenance import OWN, Trust, signature_path
from client.models.store import folder, keep, pack
from privacy.contract.plan import Plan
from privacy.files import PRIVATE, write_atomic
from privacy.identity.keys import IdentityError, new_signing_key, signing_public
from privacy.identity.model_signature import sign_model

if TYPE_CHECKING:  # what dials a coordinator is not loaded to predict
    from client.agent.credentials import Enrolled

COORDINATOR: Final = "signed by this site's coordinator"
_KEY: Final = re.compile(r"[0-9a-f]{64}")


def known_keys(directory: Path | None, further: Iterable[str] = ()) -> Trust:
    """Whom a site knows: its coordinator, itself, and the keys given (hex, or a file with it)."""
    keys = {_public(key): "signed by a key given by --key" for key in further}
    if directory is None:
        return Trust(keys, strict=bool(keys))
    if not directory.is_dir():
        raise ModelError(f"{directory}: expected the folder of a site, found none")
    key_path = _own_path(directory)
    if key_path.is_file():
        keys[_signing_public(key_path)] = OWN
    site = _enrolled(directory)
    if site.about.is_file() and site.verify:
        keys[site.verify] = COORDINATOR
    return Trust(keys, strict=True)


def own_signing_key(directory: Path) -> bytes:
    """The private key of the site's own models, made when first needed, readable by its owner."""
    path = _own_path(directory)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, new_signing_key(), mode=PRIVATE)
    return path.read_bytes()


def sign_beside(path: Path, content: bytes, run: str, round: int, directory: Path | None) -> None:
    """Sign a file that this machine made: as the site, or by a key that nobody keeps.

    The latter proves that the file is whole and says nothing of its origin.
    """
    key = new_signing_key() if directory is None else own_signing_key(directory)
    write_atomic(signature_path(path), sign_model(content, run, round, key).to_bytes())


def receive(
    directory: Path,
    plan: Plan,
    run: str,
    round: int,
    weights: Mapping[str, NDArray[np.float32]],
    history: Mapping[str, Any],
) -> Path:
    """Keep a released model that came from the coordinator over its own authenticated connection.

    The site signs it itself, since the connection proves who sent it. `history` is what the site
    knows of that round: `{"epsilon", "sites": {name: {"epsilon", "delta"}}, "metrics"}`.
    """
    metadata = {
        "run": run,
        "round": str(round),
        "plan": plan.digest,
        "plan_json": plan.to_json(),
        "task": plan.task,
        "history": json.dumps(dict(history)),
    }
    content = pack(weights, metadata)
    signature = sign_model(content, run, round, own_signing_key(directory)).to_bytes()
    return keep(directory, content, signature, run=run, round=round)


def site_name(directory: Path | None) -> str:
    """The name of the site whose folder this is."""
    if directory is None:
        return "this site"
    site = _enrolled(directory)
    return site.name if site.about.is_file() else directory.absolute().name


def _enrolled(directory: Path) -> "Enrolled":
    from client.agent.credentials import Enrolled

    return Enrolled(directory)


def _own_path(directory: Path) -> Path:
    """An enrolled site's own signing key, else one for its models alone."""
    enrolled = _enrolled(directory).signing_key
    return enrolled if enrolled.is_file() else folder(directory) / "signing.pem"


def _signing_public(path: Path) -> str:
    try:
        return signing_public(path.read_bytes())
    except (OSError, IdentityError) as error:
        raise ModelError(f"{path}: {error}") from error


def _public(text: str) -> str:
    """A public key: 64 hexadecimal digits, or a file that holds them."""
    if not _KEY.fullmatch(text):
        try:
            text = Path(text).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ModelError("key: expected 64 hexadecimal digits, or a file with them") from error
    if not _KEY.fullmatch(text):
        raise ModelError("key: expected 64 hexadecimal digits, or a file with them")
    return text
