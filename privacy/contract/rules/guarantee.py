"""What is released, how much noise covers it, and by which number it is divided."""

from typing import Final

from privacy.contract.keys.contract import PRIVACY_KEYS, Contract
from privacy.contract.pilots import pilot_rounds

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
    run = plan.rounds - pilot_rounds(plan)
    if plan.metrics and plan.metrics_every > run >= 1:
        return f"metrics_every must be at most the run's rounds, {run}, got {plan.metrics_every}"
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
