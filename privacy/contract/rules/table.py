"""What a plan's keys must say together: one named rule each, in one table.

A rule answers with one line where it is broken, else with None. Warnings are rules that a plan may
break: it runs, but it does less than its words say.
"""

from collections.abc import Callable
from typing import Final

from privacy.contract.keys.contract import Contract
from privacy.contract.learning_rate import has_a_rule
from privacy.contract.pilots import run_as_short_as_a_pilot, tuning_is_whole
from privacy.contract.rules import guarantee, no_effect, rounds, secure, statistics, training

Rule = Callable[[Contract], str | None]

RULES: Final[tuple[Rule, ...]] = (
    guarantee.no_privacy_keys_without_privacy,
    guarantee.privacy_has_clip_and_delta,
    guarantee.one_of_sigma_and_epsilon,
    guarantee.units_are_counted,
    guarantee.delta_below_one_over_units,
    guarantee.steps_can_be_accounted,
    rounds.sites_are_known,
    rounds.enough_sites_for_a_round,
    rounds.cohort_among_sites,
    rounds.mu_is_for_fedprox,
    guarantee.adaptive_clip_is_whole,
    guarantee.metrics_are_paid,
    training.precision_fits,
    guarantee.people_are_not_stacked,
    guarantee.rows_of_a_person,
    guarantee.clients_count_the_same,
    rounds.medians_count_sites_alike,
    rounds.one_memory_at_the_server,
    training.a_package_describes_its_own_rows,
    statistics.statistics_are_one_release,
    rounds.patience_has_its_metric,
    secure.secure_aggregation_is_whole,
    secure.one_secure_sum_a_round,
    training.views_are_clipped_at_the_site,
    training.class_weights_are_for_training,
    tuning_is_whole,
    has_a_rule,
)

WARNINGS: Final[tuple[Rule, ...]] = (
    no_effect.optimizer_without_memory,
    no_effect.limit_never_binds,
    no_effect.metrics_noise_without_metrics,
    no_effect.nothing_is_trimmed,
    no_effect.patience_beyond_the_rounds,
    run_as_short_as_a_pilot,
)


def broken(plan: Contract) -> str | None:
    """The first rule that a plan breaks, in one line; None where it keeps to all."""
    return next((text for rule in RULES if (text := rule(plan)) is not None), None)


def warnings(plan: Contract) -> tuple[str, ...]:
    """What a plan says and does not do, a line each."""
    return tuple(text for rule in WARNINGS if (text := rule(plan)) is not None)
