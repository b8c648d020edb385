"""Signed checkpoints: each round's file gets its signature beside it, once it is complete."""

import hashlib
from pathlib import Path
from typing import Final

from privacy.files import PRIVATE, write_atomic
from privacy.identity.keys import new_signing_key, signing_public
from privacy.identity.model_signature import sign_digest
from server.rounds.checkpoint import Sign, read_metadata

KEY: Final = "signing.key"
PUBLIC: Final = "signing.pub"


def signer(key: Path | bytes, *, durable: bool = True) -> Sign:
    """A function that signs a checkpoint with a key: the coordinator's, or a run's own."""

    def sign(path: Path, sha256: str | None = None) -> None:
        metadata = read_metadata(path)
        if sha256 is None:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        signature = sign_digest(sha256, metadata["run"], int(metadata["round"]), key)
        beside = path.with_name(path.name + ".sig")
        write_atomic(beside, signature.to_bytes(), durable=durable)

    return sign


def own_key(run: Path) -> Path:
    """The key of a run that no coordinator vouches for (a simulation), made when first needed.

    It proves that a checkpoint is whole and of this run, and nothing about who made the run.
    """
    path = run / KEY
    if not path.is_file():
        key = new_signing_key()
        write_atomic(path, key, mode=PRIVATE)
        write_atomic(run / PUBLIC, signing_public(key).encode() + b"\n")
    return path
