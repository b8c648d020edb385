"""A model's card: what it is, what it was trained on, and what privacy it carries; pure values.

A card is read by people and by programs, and travels inside an exported file. Its epsilons are
those of the released rounds; whatever is done to a released model afterwards costs nothing more
(post-processing; Dwork & Roth 2014, Proposition 2.1), unless it looks at private rows again, as an
adaptation does: such a model is marked with its site's name and carries no guarantee outside it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.rounding import spent_text
from privacy.files import DocumentError, Limits, parse_json

LIMITS: Final = (
    "Its guarantee covers the rows of training, each site's against all others; it says nothing of "
    "the rows that it predicts.",
    "A prediction is no proof: measure it on rows of your own (evaluate), by group, before relying "
    "on it.",
    "Noise costs accuracy first where training rows were few.",
)
LIMITS_OF_CARDS: Final = Limits(size=2**25, digits=64, length=2**20, count=2**19)
POST_PROCESSING: Final = "post-processing of the released model: costs no privacy"


class CardError(ValueError):
    """A text that is no card."""


@dataclass(frozen=True, slots=True)
class Card:
    """One released model.

    `model` is the SHA-256 of the checkpoint it comes from, `sites` maps a site to its `epsilon`
    (None without privacy) and `delta`, for `unit`; `changes` is what was done since its release;
    `private_to` names the one site that may use it, or is None; `signer` is who vouched for it.
    """

    task: str
    kind: str
    classes: tuple[str, ...]
    inputs: tuple[str, ...]
    label: str
    shape: tuple[int, ...]
    schema: str | None
    run: str
    round: int
    plan: str
    purpose: str
    unit: str
    delta: float | None
    epsilon: float | None
    sites: Mapping[str, Mapping[str, float | None]]
    metrics: Mapping[str, float]
    model: str
    signer: str
    format: str = "checkpoint"
    changes: tuple[str, ...] = ()
    limits: tuple[str, ...] = LIMITS
    private_to: str | None = None
    insecure: bool = False

    @property
    def privacy(self) -> str:
        """The guarantee in one sentence; of an adapted model, that its site's rows have none."""
        if self.private_to is not None:
            return f"private to {self.private_to}: fitted to its own rows without any protection"
        if self.insecure:
            return "not private: its noise was reproducible"
        if self.unit == "none" or self.epsilon is None:
            return "trained without differential privacy"
        return (
            f"(epsilon {spent_text(self.epsilon)}, delta {self.delta:.3g}) for one {self.unit}, "
            f"the largest over {len(self.sites)} sites, after {self.round} rounds"
        )

    def changed(self, change: str, **values: Any) -> "Card":
        """The card after one more change to the model."""
        return replace(self, changes=(*self.changes, change), **values)

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON values, with the guarantee's sentence beside its numbers."""
        return {"v": 1, "privacy": self.privacy, **asdict(self)}

    def to_json(self) -> str:
        """The card as it stands in a file's metadata and in a side-car."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """Read a card; CardError unless every field is there and has the expected form."""
        try:
            values = parse_json(text, LIMITS_OF_CARDS)
        except DocumentError as error:
            raise CardError(f"expected a model card in JSON: {error}") from None
        names = {item.name for item in fields(cls)}
        if not isinstance(values, dict) or values.pop("v", None) != 1:
            raise CardError("expected a model card of version 1")
        values.pop("privacy", None)
        if set(values) != names:
            raise CardError(f"expected a card's keys, got {sorted(set(values) ^ names)} besides")
        for name in ("classes", "inputs", "changes", "limits", "shape"):
            kind = int if name == "shape" else str
            if not isinstance(values[name], list) or not all(
                isinstance(value, kind) for value in values[name]
            ):
                raise CardError(f"{name}: expected a list")
            values[name] = tuple(values[name])
        for name in ("task", "kind", "label", "run", "plan", "unit", "model", "signer", "format"):
            if not isinstance(values[name], str):
                raise CardError(f"{name}: expected a text")
        if not isinstance(values["round"], int) or not isinstance(values["sites"], dict):
            raise CardError("round, sites: expected a number and the sites' epsilons")
        return cls(**values)


def of_checkpoint(
    plan: Mapping[str, Any],
    history: Mapping[str, Any],
    metadata: Mapping[str, str],
    described: Mapping[str, Any],
    *,
    digest: str,
    signer: str,
) -> Card:
    """The card of a checkpoint, from its plan, its round's history line and its metadata.

    A site's line holds its epsilon, or the events from which it is computed. `described` holds what
    the task says of itself: kind, classes, inputs, label, shape.
    """
    sites = {
        name: {"epsilon": _epsilon(line), "delta": line.get("delta")}
        for name, line in _table(history, "sites").items()
        if isinstance(line, dict)
    }
    known = [figures["epsilon"] for figures in sites.values() if figures["epsilon"] is not None]
    epsilon = history.get("epsilon", max(known, default=None))
    unit = str(plan.get("unit", "none"))
    return Card(
        task=str(plan.get("task")),
        kind=str(described["kind"]),
        classes=tuple(described["classes"]),
        inputs=tuple(described["inputs"]),
        label=str(described["label"]),
        shape=tuple(described["shape"]),
        schema=plan.get("schema"),
        run=metadata["run"],
        round=int(metadata["round"]),
        plan=metadata["plan"],
        purpose=str(plan.get("purpose", "")),
        unit=unit,
        delta=plan.get("delta") if unit != "none" else None,
        epsilon=epsilon if unit != "none" else None,
        sites=sites,
        metrics=_table(history, "metrics"),
        model=digest,
        signer=signer,
        private_to=metadata.get("private_to"),
        changes=_changes(metadata.get("changes", "[]")),
        insecure=metadata.get("insecure") == "true",
    )


def _table(history: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = history.get(name) or {}
    if not isinstance(table, dict):
        raise CardError(f"history: expected a table of {name}")
    return table


def _epsilon(line: Mapping[str, Any]) -> float | None:
    """A site's epsilon as its line states it, or as its events make it."""
    if "events" not in line:
        stated: float | None = line.get("epsilon")
        return stated
    try:
        return spent([Event.from_dict(event) for event in line["events"]], line["delta"])
    except (TypeError, KeyError, ValueError) as error:
        raise CardError("history: expected a site's events and delta") from error


def _changes(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(change) for change in parse_json(text))
    except (ValueError, TypeError) as error:
        raise CardError("changes: expected a list in JSON") from error
