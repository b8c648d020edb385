"""One finding of the doctor."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: `state` is "fine", "warn" or "FAULT"; `finding` says what was seen."""

    what: str
    state: str
    finding: str
    next_step: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
