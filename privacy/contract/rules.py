"""What a plan's keys must say together: one named rule each, in one table.

A rule answers with one line where it is broken, else with None. Warnings are rules that a plan may
break: it runs, but it does less than its words say.
"""

from collections.abc import Callable
from typing import Final

from privacy.contract.keys import PRIVACY_KEYS, Contract
from privacy.contract.training_rules import TRAINING_RULES
from privacy.secagg.parties import Terms

Rule = Callable[[Contract], str | None]
_MOST_STEPS: Final = 1_000_000_000


def no_privacy_keys_without_privacy(plan: Contract) -> str | None:
    """Unit "none" claims nothing, so no number may pretend otherwise."""
    if plan.private:
        return None
    given = [key for key in sorted(PRIVACY_KEYS) if getattr(plan, key) is not None]
    return f'{given[0]} must be left out where unit = "none"' if given else None


def privacy_has_clip_and_delta(plan: Contract) -> str | None:
    """No privacy without a bound on one contribution, and without a delta."""
    if not plan.private:
        return None
    if plan.clip is None:
        return 'clip is missing: it must be a number > 0 unless unit = "none"'
    if plan.delta is None:
        return 'delta is missing: it must be a number > 0 and < 1 unless unit = "none"'
    return None


def one_of_sigma_and_epsilon(plan: Contract) -> str | None:
    """The noise is given, or calibrated; never both."""
    if not plan.private or (plan.sigma is None) != (plan.epsilon is None):
        return None
    got = "both" if plan.sigma is not None else "neither"
    return f"exactly one of sigma and epsilon must be set, got {got}"


def units_are_counted(plan: Contract) -> str | None:
    """The denominator is a public number: of rows, or of people where the person is the unit."""
    key, other = plan.units_key, "rows" if plan.units_key == "subjects" else "subjects"
    if getattr(plan, key) is None:
        return f'{key} must be an integer >= 1 and <= 1e+09 or "actual", got nothing'
    named = [f"site.{name}." for name, one in plan.site.items() if getattr(one, other) is not None]
    if getattr(plan, other) is not None:
        named = ["", *named]
    if named:
        return f'{named[0]}{other} must be left out where unit = "{plan.unit}": it counts by {key}'
    return None


def delta_below_one_over_units(plan: Contract) -> str | None:
    """A delta of 1/rows allows to publish one record whole; 1/subjects one person."""
    if plan.delta is None:
        return None
    key = plan.units_key
    counts = [getattr(one, key) for one in plan.site.values()] + [plan.nominal_units]
    most = max((n for n in counts if isinstance(n, int)), default=1)
    if plan.delta >= 1 / most:
        return f"delta must be below 1/{key} = {1 / most:.3g}, got {plan.delta}"
    return None


def steps_can_be_accounted(plan: Contract) -> str | None:
    """So many releases have an epsilon that can be computed."""
    if plan.rounds * plan.steps > _MOST_STEPS:
        return f"rounds * steps must be at most {_MOST_STEPS}, got {plan.rounds * plan.steps}"
    return None


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


def adaptive_clip_is_whole(plan: Contract) -> str | None:
    """The quantile is followed, and that is paid for, or neither."""
    if (plan.clip_quantile is None) != (plan.clip_sigma is None):
        return "clip_quantile and clip_sigma must be set together, got one of them"
    if plan.clip_quantile is not None and plan.unit != "client":
        return f'clip_quantile must be left out unless unit = "client", got unit = "{plan.unit}"'
    return None


def metrics_are_paid(plan: Contract) -> str | None:
    """Metrics of private rows leave with noise of their own."""
    if plan.metrics and not plan.noised_at_site:
        return (
            'metrics must be left out unless unit = "record" or "subject", '
            f'got unit = "{plan.unit}"'
        )
    if plan.metrics and plan.metrics_sigma is None:
        return "metrics_sigma is missing: it must be the noise multiplier of the metrics"
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


def people_are_not_stacked(plan: Contract) -> str | None:
    """A person has rows of its own number; the vector engine has one row a unit."""
    if plan.unit == "subject" and plan.simulation.engine == "vector":
        return 'simulation.engine must be serial, processes or ray where unit = "subject"'
    return None


def rows_of_a_person(plan: Contract) -> str | None:
    """Where the unit is not the person, the data owner's policy caps a person's rows."""
    if plan.rows_per_subject is not None and plan.unit != "subject":
        return f'rows_per_subject must be left out unless unit = "subject", got "{plan.unit}"'
    return None


def clients_count_the_same(plan: Contract) -> str | None:
    """One clip and one sigma bind every client, so no client may weigh more."""
    if plan.unit != "client":
        return None
    if plan.weights != "equal":
        return f'weights must be "equal" where unit = "client", got "{plan.weights}"'
    if any(one.epsilon is not None for one in plan.site.values()):
        return 'site must set no epsilon where unit = "client"'
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


def a_package_describes_its_own_rows(plan: Contract) -> str | None:
    """A task package has its own reader, and nothing else has options."""
    if plan.code is None and plan.task_options:
        return "task_options must be left out unless code names a task package"
    if plan.code is not None and plan.schema is not None:
        return "schema must be left out where code names a task package"
    if plan.model is not None and plan.schema is None:
        return "model must be left out unless a schema describes the rows"
    return None


_ONE_RELEASE: Final = {"rounds": 1, "steps": 1, "rate": 1.0, "lr": 1.0, "clip": 1.0}
_NOT_COUNTED: Final = ("metrics", "model", "code", "task_options", "average", "cohort")


def statistics_are_one_release(plan: Contract) -> str | None:
    """Everything that is counted leaves in one vector, once, with one record's part at most 1."""
    if (plan.task == "statistics") != (plan.statistics is not None):
        return 'the table [statistics] and task = "statistics" must be given together, got one'
    if plan.statistics is None:
        return None
    if not plan.noised_at_site:
        return f'unit must be "record" or "subject" for statistics, got "{plan.unit}"'
    for key, value in _ONE_RELEASE.items():
        if getattr(plan, key) != value:
            return f"{key} must be {value:g}, or left out, for statistics, got {getattr(plan, key)}"
    for key in _NOT_COUNTED:
        if getattr(plan, key):
            return f"{key} must be left out for statistics, got {getattr(plan, key)}"
    if (plan.wire, plan.precision) != ("float32", "float32"):
        return "wire and precision must be float32 for statistics"
    if plan.simulation.engine == "vector":
        return "simulation.engine must be serial, processes or ray for statistics"
    if plan.aggregation != "fedavg":
        return f'aggregation must be "fedavg" for statistics, got "{plan.aggregation}"'
    if plan.combine != "mean":
        return f'combine must be "mean" for statistics, got "{plan.combine}"'
    if plan.statistics.of == "statistics":
        return 'statistics.of must be a task with rows, got "statistics"'
    return None


def patience_has_its_metric(plan: Contract) -> str | None:
    """What a site measures is paid for by the contract, and not by the way it is run."""
    operation = plan.operation
    metric = operation.stop_metric.removeprefix("site_")
    if operation.patience is None or metric == operation.stop_metric or metric in plan.metrics:
        return None
    return f'metrics must list "{metric}" where operation.stop_metric = "{operation.stop_metric}"'


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


RULES: Final[tuple[Rule, ...]] = (
    no_privacy_keys_without_privacy,
    privacy_has_clip_and_delta,
    one_of_sigma_and_epsilon,
    units_are_counted,
    delta_below_one_over_units,
    steps_can_be_accounted,
    sites_are_known,
    enough_sites_for_a_round,
    cohort_among_sites,
    mu_is_for_fedprox,
    adaptive_clip_is_whole,
    metrics_are_paid,
    precision_fits,
    people_are_not_stacked,
    rows_of_a_person,
    clients_count_the_same,
    medians_count_sites_alike,
    one_memory_at_the_server,
    a_package_describes_its_own_rows,
    statistics_are_one_release,
    patience_has_its_metric,
    secure_aggregation_is_whole,
    one_secure_sum_a_round,
    *TRAINING_RULES,
)


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
    if plan.metrics_sigma is None or plan.metrics:
        return None
    return "metrics_sigma has no effect: the plan asks for no metrics"


def patience_beyond_the_rounds(plan: Contract) -> str | None:
    """A run that cannot stop by itself before its end."""
    patience = plan.operation.patience
    if patience is None or patience < plan.rounds:
        return None
    return f"operation.patience = {patience} stops nothing: there are {plan.rounds} rounds"


def nothing_is_trimmed(plan: Contract) -> str | None:
    """A share of few sites may be less than one of them."""
    if plan.combine != "trimmed-mean" or plan.sites is None or plan.trim * plan.sites >= 1:
        return None
    return f"trim = {plan.trim:g} of {plan.sites} sites leaves out none of them"


WARNINGS: Final[tuple[Rule, ...]] = (
    optimizer_without_memory,
    limit_never_binds,
    metrics_noise_without_metrics,
    nothing_is_trimmed,
    patience_beyond_the_rounds,
)


def broken(plan: Contract) -> str | None:
    """The first rule that a plan breaks, in one line; None where it keeps to all."""
    return next((text for rule in RULES if (text := rule(plan)) is not None), None)


def warnings(plan: Contract) -> tuple[str, ...]:
    """What a plan says and does not do, a line each."""
    return tuple(text for rule in WARNINGS if (text := rule(plan)) is not None)
