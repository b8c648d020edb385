"""Rules of the keys that shape one record's contribution: its views, the weight of its class."""

from collections.abc import Callable
from typing import Final

from privacy.contract.keys import Contract
from privacy.contract.pilots import tuning_is_whole


def views_are_clipped_at_the_site(plan: Contract) -> str | None:
    """Views are averaged before the clip, so they need the path that clips record by record."""
    if plan.augment is None:
        return None
    if plan.statistics is not None:
        return "augment must be left out for statistics"
    if plan.simulation.engine == "vector":
        return "simulation.engine must be serial, processes or ray where augment is set"
    return None


def class_weights_are_for_training(plan: Contract) -> str | None:
    """What a row counts by its class has no meaning where rows are counted."""
    if plan.class_weights and plan.statistics is not None:
        return "class_weights must be left out for statistics"
    return None


TRAINING_RULES: Final[tuple[Callable[[Contract], str | None], ...]] = (
    views_are_clipped_at_the_site,
    class_weights_are_for_training,
    tuning_is_whole,
)
