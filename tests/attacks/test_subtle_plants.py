"""Bugs of further kinds, each as somebody might write it in good faith, are found by the audit."""

import numpy as np
import pytest
import torch

from client.audit import conformance
from client.audit.audit import one_thread
from client.dpsgd import clipping
from client.dpsgd.training import NoisyOptimizer
from tests.attacks.test_planted_bugs import after_pre_step, at_noise, at_poisson, clean, normal


@pytest.fixture(autouse=True)
def _threads():
    with one_thread():
        yield


def skip_empty(optimizer):
    if not optimizer.clean_total.any():
        for p in optimizer.params:
            p.grad.zero_()


def only_where_there_are_gradients(optimizer):
    for p in optimizer.params:
        p.grad.masked_fill_(optimizer.clean_sums[p] == 0, 0)


def across_the_sum(optimizer):
    """Noise in every direction but the one of the sum, which tells most of a record."""
    sums = torch.cat([clean(optimizer, p).reshape(-1) for p in optimizer.params])
    noises = torch.cat([p.grad.reshape(-1) for p in optimizer.params]) - sums
    along = (noises @ sums) / (sums @ sums).clamp(min=1e-30)
    for p in optimizer.params:
        p.grad.sub_(clean(optimizer, p), alpha=float(along))


def cancelled_in_the_next_step():
    last = []

    def planted(shape, std):
        if last and last[0].shape == shape:
            return -last.pop()
        last[:] = [normal(shape, std)]
        return last[0]

    return planted


def mean_of_the_true_batch(patch):
    """The sum is divided by the number of records that were drawn."""
    begin = NoisyOptimizer.begin

    def begun(self, rows):
        self.rows = rows
        begin(self, rows)

    def change(optimizer):
        for p in optimizer.params:
            p.grad.mul_(optimizer.expected_batch_size / max(optimizer.rows, 1))

    patch.setattr(NoisyOptimizer, "begin", begun)
    after_pre_step(change)(patch)


def norms_averaged_over_layers(patch):
    squares = clipping._squares
    patch.setattr(clipping, "_squares", lambda every: squares(every) / len(every))


def unequal_rates():
    def planted(n, rate):
        own = rate * np.where(np.arange(n) % 2, 0.5, 1.5)
        return np.flatnonzero(np.random.default_rng().random(n) < own)

    return planted


PLANTS = {
    "an empty sample without noise": (after_pre_step(skip_empty), "noise_without_records"),
    "noise only where there are gradients": (
        after_pre_step(only_where_there_are_gradients),
        "noise_without_records",
    ),
    "noise across the sum alone": (after_pre_step(across_the_sum), "noise_beside_records"),
    "noise that the next step takes back": (
        at_noise(cancelled_in_the_next_step),
        "noise_of_many_steps",
    ),
    "noise by the sum of four uniforms": (
        at_noise(
            lambda: (
                lambda s, std: std * (np.random.default_rng().random((4, *s)).sum(0) - 2) * 3**0.5
            )
        ),
        "noise_is_normal",
    ),
    "the mean of the true batch": (mean_of_the_true_batch, "sums_are_exact"),
    "norms averaged over layers": (norms_averaged_over_layers, "a_record_is_bounded"),
    "odd records a third as often": (at_poisson(unequal_rates), "draws_are_independent"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_fails_the_check_that_is_made_for_it(name, monkeypatch):
    plant, check = PLANTS[name]
    plant(monkeypatch)
    assert not getattr(conformance, check)("cpu").passed
