"""What a model and its training must say: the reader, the precision, views, class weights."""

from privacy.contract.keys.contract import Contract


def a_package_describes_its_own_rows(plan: Contract) -> str | None:
    """A task package has its own reader, and nothing else has options."""
    if plan.code is None and plan.task_options:
        return "task_options must be left out unless code names a task package"
    if plan.code is not None and plan.schema is not None:
        return "schema must be left out where code names a task package"
    if plan.model is not None and plan.schema is None:
        return "model must be left out unless a schema describes the rows"
    return None


def precision_fits(plan: Contract) -> str | None:
    """Only DP-SGD has a path in bfloat16."""
    if plan.precision == "float32":
        return None
    if not plan.noised_at_site:
        return f'precision must be float32 where unit = "{plan.unit}", got {plan.precision}'
    if plan.simulation.engine == "vector":
        return f'precision must be float32 where engine = "vector", got {plan.precision}'
    return None


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
