"""What a report says of a plan's training: pretraining, class weights, views, early stopping."""

from collections.abc import Mapping
from typing import Final

from privacy.contract.cadence import often
from privacy.contract.plan import Plan
from privacy.files import DocumentError, parse_toml

Item = Mapping[str, str]
_MOST: Final = 20
"""Backbones that are named."""


def backbones(plan: Plan) -> list[str]:
    """The frozen models that a plan's schema names, each with its digest; none without a schema."""
    try:
        schema = parse_toml(plan.schema or "")
    except DocumentError:
        return []
    columns = schema.get("columns")
    tables = list(columns.values()) if isinstance(columns, Mapping) else []
    named = [t for t in (schema, *tables) if isinstance(t, Mapping) and "backbone" in t]
    words = [f"{table['backbone']} ({table.get('digest', 'no digest')})" for table in named]
    return list(dict.fromkeys(words))[:_MOST]


def pretraining(plan: Plan) -> list[Item]:
    """E: what was pretrained elsewhere, if anything was, and what no epsilon here says of it."""
    named = backbones(plan)
    if not named:
        return []
    return [
        _item(
            "Pretraining",
            "not covered",
            f"records are seen through frozen models made elsewhere: {', '.join(named)}. They "
            "learn nothing here, so they add nothing to ε. Nothing here covers the data that they "
            "were made from, or a person who is among them",
        ),
        _item(
            "Contamination of the quality figures",
            "not checked",
            "if records that quality is measured on were among the pretraining data, the figures "
            "are flattered; ε is not changed by it",
        ),
    ]


def class_weights(plan: Plan) -> Item:
    """E: whether a record's class decides what it counts."""
    if not plan.class_weights:
        return _item("Class weights", "not used", "every record weighs the same")
    given = ", ".join(f"{name} {weight:g}" for name, weight in sorted(plan.class_weights.items()))
    how = f"constants of the plan ({given}; others 1), applied before the bound, which stays"
    return _item("Class weights", "public", how)


def early_stopping(plan: Plan) -> Item:
    """E: whether a run may have ended by what it reached."""
    operation = plan.operation
    if operation.patience is None:
        return _item("Early stopping", "not used", "a run ends by its plan or by the budget")
    paid = operation.stop_metric.startswith("site")
    what = f"paid metrics, {often(plan)}" if paid else "public records, which is free"
    return _item(
        "Early stopping",
        "noised" if paid else "public",
        f"by {what}; the best round's model is released, at the ε of all rounds that were asked",
    )


def views(plan: Plan) -> dict[str, str]:
    """F: how the views of a record count, by their label; empty without."""
    if plan.augment is None:
        return {}
    what = f"the mean gradient of {plan.augment.views} random views of it, bounded once"
    return {"Contribution of a record": what}


def _item(quantity: str, status: str, how: str) -> Item:
    return {"quantity": quantity, "status": status, "how": how}
