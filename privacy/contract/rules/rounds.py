"""Which sites a round needs, and how their updates become one step."""

from privacy.contract.cadence import stop_metrics
from privacy.contract.keys.contract import Contract


def sites_are_known(plan: Contract) -> str | None:
    """Only natural sites have their number from the data."""
    if plan.sites is None and plan.split != "natural":
        return 'sites is missing: it must be an integer >= 1 unless split = "natural"'
    return None


def enough_sites_for_a_round(plan: Contract) -> str | None:
    """A round cannot need more sites than there are, or than it asks."""
    least = plan.operation.min_sites
    for name, most in (("sites", plan.sites), ("cohort", plan.cohort)):
        if most is not None and least > most:
            return f"min_sites must be at most {name} = {most}, got {least}"
    return None


def cohort_among_sites(plan: Contract) -> str | None:
    """A round cannot ask more sites than there are."""
    if plan.cohort is not None and plan.sites is not None and plan.cohort > plan.sites:
        return f"cohort must be at most sites = {plan.sites}, got {plan.cohort}"
    return None


def mu_is_for_fedprox(plan: Contract) -> str | None:
    """The proximal term is FedProx (Li et al. 2020)."""
    if plan.mu and plan.aggregation != "fedprox":
        return f'mu must be 0 unless aggregation = "fedprox", got {plan.mu}'
    return None


def medians_count_sites_alike(plan: Contract) -> str | None:
    """A median over sites has no weights, and its noise at the coordinator no bound."""
    if plan.combine == "mean":
        return None
    if plan.unit == "client":
        return f'combine must be "mean" where unit = "client", got "{plan.combine}"'
    if plan.weights != "equal":
        return f'weights must be "equal" where combine = "{plan.combine}", got "{plan.weights}"'
    return None


def one_memory_at_the_server(plan: Contract) -> str | None:
    """Adam, Yogi and RMSprop have memories of their own; a warm-up ends within the run."""
    if plan.server_optimizer != "sgd" and plan.server_momentum:
        return (
            'server_momentum must be 0 unless server_optimizer = "sgd", '
            f"got {plan.server_momentum:g}"
        )
    if plan.warmup >= plan.rounds:
        return f"warmup must be below rounds = {plan.rounds}, got {plan.warmup}"
    return None


def patience_has_its_metric(plan: Contract) -> str | None:
    """What a site measures is paid for by the contract, and not by the way it is run."""
    operation = plan.operation
    if operation.patience is None or not operation.stop_metric.startswith("site"):
        return None
    known = {f"site_{name}" for name in plan.metrics}
    if stop_metrics(plan) and known.issuperset(stop_metrics(plan)):
        return None
    names = operation.stop_metric.removeprefix("site_").replace("site", 'loss" or "accuracy')
    return f'metrics must list "{names}" where operation.stop_metric = "{operation.stop_metric}"'
