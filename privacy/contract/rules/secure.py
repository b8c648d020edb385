"""What a plan with secure aggregation must say, and what a masked sum cannot hold."""

from privacy.contract.keys.contract import Contract
from privacy.secagg.parties import Terms


def secure_aggregation_is_whole(plan: Contract) -> str | None:
    """The parties, and how many may be missing, are part of the contract; or none of it is."""
    if not plan.is_secure:
        if plan.secure is not None:
            return 'secure must be left out unless aggregation = "secure"'
        named = next((name for name, one in plan.site.items() if one.key is not None), None)
        if named is not None:
            return f'site.{named}.key must be left out unless aggregation = "secure"'
        return None
    if not plan.private:
        return 'aggregation must not be "secure" where unit = "none": no noise is shared'
    if plan.secure is None:
        return "secure is missing: it must be a table with dropouts and colluding"
    if plan.sites is None:
        return 'sites must be the number of parties where aggregation = "secure", got nothing'
    try:
        Terms(plan.sites, plan.secure.dropouts, plan.secure.colluding)
    except ValueError as error:
        return f"secure.{error}"
    keys = [one.key for one in plan.site.values() if one.key is not None]
    if keys and len(keys) != plan.sites:
        return f"site must name the keys of all {plan.sites} parties or of none, got {len(keys)}"
    if len(set(keys)) != len(keys):
        return "site must name a different key for each party"
    return None


def one_secure_sum_a_round(plan: Contract) -> str | None:
    """What a masked sum can hold: one clipped contribution of each unit, equally weighted."""
    if not plan.is_secure:
        return None
    if plan.per_example and plan.steps != 1:
        return (
            f'steps must be 1 where aggregation = "secure" and unit = "{plan.unit}": a second step '
            f"would use the noise of one site alone, got {plan.steps}"
        )
    if plan.per_example and plan.optimizer != "sgd":
        return (
            'optimizer must be "sgd" where aggregation = "secure": the step is taken after the '
            f'sum (server_momentum carries over rounds), got "{plan.optimizer}"'
        )
    if plan.per_example and plan.weights != "rows":
        return (
            'weights must be "rows" where aggregation = "secure": a sum of all sites has one '
            f'denominator, got "{plan.weights}"'
        )
    if plan.combine != "mean":
        return 'combine must be "mean" where aggregation = "secure": single updates are hidden'
    if plan.statistics is not None:
        return 'aggregation must not be "secure" for statistics'
    if plan.clip_quantile is not None:
        return (
            'clip_quantile must be left out where aggregation = "secure": single norms are hidden'
        )
    if plan.metrics:
        return 'metrics must be left out where aggregation = "secure": each site would release them'
    if plan.cohort is not None:
        return 'cohort must be left out where aggregation = "secure": every party is in the sum'
    if plan.wire != "float32":
        return f'wire must be float32 where aggregation = "secure", got {plan.wire}'
    if any(one.epsilon is not None for one in plan.site.values()):
        return 'site must set no epsilon where aggregation = "secure": the shares are equal'
    if plan.simulation.engine not in ("serial", "processes"):
        return (
            'simulation.engine must be serial or processes where aggregation = "secure", got '
            f"{plan.simulation.engine}"
        )
    return None
