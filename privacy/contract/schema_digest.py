"""What a table's schema says, as one digest: the owner's and a plan's are compared by it."""

import hashlib
import json
import tomllib

from privacy.contract.plan import PlanError


def schema_digest(text: str) -> str:
    """SHA-256 of a schema's keys and values in their order; layout and comments do not count."""
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"schema: must be TOML, {error}") from error
    return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()
