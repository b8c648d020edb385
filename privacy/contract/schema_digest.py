"""What a table's schema says, as one digest: the owner's and a plan's are compared by it."""

import hashlib
import json

from privacy.contract.plan import PlanError
from privacy.files import DocumentError, parse_toml


def schema_digest(text: str) -> str:
    """SHA-256 of a schema's keys and values in their order; layout and comments do not count."""
    try:
        table = parse_toml(text)
    except DocumentError as error:
        raise PlanError(f"schema: {error}") from None
    return hashlib.sha256(json.dumps(table, default=str).encode()).hexdigest()
