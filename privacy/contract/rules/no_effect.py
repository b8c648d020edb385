"""What a plan says and does not do: it runs, but it does less than its words say."""

from privacy.contract.cadence import fewest_rounds
from privacy.contract.keys.contract import Contract


def optimizer_without_memory(plan: Contract) -> str | None:
    """A site's optimizer is new in each round: after one step it has used no memory."""
    if plan.steps > 1 or plan.optimizer == "sgd":
        return None
    acts = {
        "momentum": "plain SGD: set server_momentum for a momentum over rounds",
        "adam": "sign descent (each step is lr * sign of the noisy gradient): use sgd",
    }[plan.optimizer]
    return (
        f'optimizer = "{plan.optimizer}" starts anew in every round, '
        f"so with steps = 1 it is {acts}, or set steps > 1"
    )


def limit_never_binds(plan: Contract) -> str | None:
    """`epsilon` is a limit already."""
    if plan.limit is None or plan.epsilon is None or plan.limit <= plan.epsilon:
        return None
    return f"limit = {plan.limit:g} never binds: no site passes epsilon = {plan.epsilon:g}"


def metrics_noise_without_metrics(plan: Contract) -> str | None:
    """Noise for what is not asked."""
    if plan.metrics:
        return None
    if plan.metrics_every > 1:
        return "metrics_every has no effect: the plan asks for no metrics"
    if plan.metrics_sigma is None:
        return None
    return "metrics_sigma has no effect: the plan asks for no metrics"


def patience_beyond_the_rounds(plan: Contract) -> str | None:
    """A run that cannot stop by itself before its end."""
    patience = plan.operation.patience
    if patience is None or fewest_rounds(plan) < plan.rounds:
        return None
    return f"operation.patience = {patience} stops nothing: there are {plan.rounds} rounds"


def nothing_is_trimmed(plan: Contract) -> str | None:
    """A share of few sites may be less than one of them."""
    if plan.combine != "trimmed-mean" or plan.sites is None or plan.trim * plan.sites >= 1:
        return None
    return f"trim = {plan.trim:g} of {plan.sites} sites leaves out none of them"
