"""Bugs that show under one setting alone are found, since every audit visits every setting."""

import numpy as np
import pytest
import torch

from client.audit import setting_checks
from client.audit.audit import one_thread, settings_of
from client.dpsgd import training
from client.dpsgd.clipping import BookKeeping
from privacy.mechanism import noise
from tests.attacks.test_planted_bugs import (
    after_pre_step,
    at_noise,
    at_poisson,
    normal,
    poisson,
    silence,
    unclipped,
    wider_clip,
)


@pytest.fixture(autouse=True)
def _threads():
    with one_thread():
        yield


def where(condition, plant):
    """The plant in those rounds alone whose `condition(plan, model, rows, round)` holds."""

    def conditional(patch):
        train = training.train

        def planted(model, rows, task, plan, **words):
            if not condition(plan, model, rows, words["round"]):
                return train(model, rows, task, plan, **words)
            with pytest.MonkeyPatch.context() as inner:
                plant(inner)
                return train(model, rows, task, plan, **words)

        patch.setattr(training, "train", planted)

    return conditional


def size(model):
    return sum(p.numel() for p in model.parameters())


def has(kind):
    return lambda plan, model, rows, number: any(isinstance(m, kind) for m in model.modules())


no_noise = at_noise(lambda: lambda shape, std: normal(shape, 0.0))
a_tenth = at_noise(lambda: lambda shape, std: normal(shape, std / 10))
no_clip = unclipped(batch=False)


def last_step_is_silent(patch):
    steps = {"of": 0, "at": 0}
    train = training.train

    def counted(model, rows, task, plan, **words):
        steps.update(of=words["event"].steps * words["event"].count, at=0)
        return train(model, rows, task, plan, **words)

    def change(optimizer):
        steps["at"] += 1
        if 1 < steps["of"] == steps["at"]:
            silence(optimizer)

    after_pre_step(change)(patch)
    patch.setattr(training, "train", counted)


def off_the_grid(patch):
    privatise = noise.privatise

    def shaken(sums, std, **words):
        privatise(sums, std, **words)
        sums *= np.float32(1 + 1e-3) ** np.random.default_rng().random(sums.shape).astype("f4")

    patch.setattr(noise, "privatise", shaken)


def halves_repeat(patch):
    """The second half of a long vector has the first half's noise: an echo far away."""

    def draw(shape, std):
        drawn = normal(shape, std)
        if drawn.size > 2**16:
            drawn[drawn.size // 2 :][: drawn.size // 2] = drawn[: drawn.size // 2]
        return drawn

    at_noise(lambda: draw)(patch)


def first_part_alone(patch):
    """Only the first micro-batch of a step is clipped."""
    accumulate, begin = BookKeeping.accumulate, training.NoisyOptimizer.begin
    state = {"parts": 0}

    def counted(self, x, y, loss):
        state["parts"] += 1
        clip = self.clip
        self.clip = clip if state["parts"] == 1 else 1e30
        try:
            accumulate(self, x, y, loss)
        finally:
            self.clip = clip

    def begun(self, rows):
        state["parts"] = 0
        begin(self, rows)

    patch.setattr(BookKeeping, "accumulate", counted)
    patch.setattr(training.NoisyOptimizer, "begin", begun)


NOISE, ADAM, BOUND, SUMS, GRID = (check.__name__ for check in setting_checks.SETTING_CHECKS)
PLANTS = {
    "momentum without noise": (where(lambda p, *_: p.optimizer == "momentum", no_noise), NOISE),
    "Adam without noise": (where(lambda p, *_: p.optimizer == "adam", no_noise), ADAM),
    "Adam with a tenth of the noise": (where(lambda p, *_: p.optimizer == "adam", a_tenth), ADAM),
    "FedProx without noise": (where(lambda p, *_: p.mu > 0, no_noise), NOISE),
    "weight decay without noise": (where(lambda p, *_: p.l2 > 0, no_noise), NOISE),
    "cosine schedules without noise": (
        where(lambda p, *_: p.schedule == "cosine", no_noise),
        NOISE,
    ),
    "bfloat16 without noise": (where(lambda p, *_: p.precision == "bfloat16", no_noise), NOISE),
    "micro-batches without noise": (where(lambda p, *_: p.micro_batch, no_noise), NOISE),
    "late rounds without noise": (where(lambda p, m, r, number: number > 1000, no_noise), NOISE),
    "two threads with a tenth of the noise": (
        where(lambda *_: torch.get_num_threads() > 1, a_tenth),
        NOISE,
    ),
    "large models with a tenth of the noise": (
        where(lambda p, model, *_: size(model) > 100_000, a_tenth),
        NOISE,
    ),
    "small clips with the noise of 1": (
        where(
            lambda p, *_: p.clip < 1, at_noise(lambda: lambda shape, std: normal(shape, std * 1.05))
        ),
        NOISE,
    ),
    "the last of several steps without noise": (last_step_is_silent, NOISE),
    "noise that repeats far away": (halves_repeat, NOISE),
    "micro-batches without clipping": (where(lambda p, *_: p.micro_batch, no_clip), BOUND),
    "the first micro-batch alone clipped": (first_part_alone, SUMS),
    "bfloat16 without clipping": (where(lambda p, *_: p.precision == "bfloat16", no_clip), BOUND),
    "one-dimensional convolutions without clipping": (
        where(has(torch.nn.Conv1d), no_clip),
        BOUND,
    ),
    "large clips doubled": (
        where(lambda p, *_: p.clip > 2, after_pre_step(wider_clip)),
        BOUND,
    ),
    "many rows, half of them": (
        where(
            lambda p, m, rows, _: len(rows) > 500,
            at_poisson(lambda: lambda n, rate: poisson(n, rate / 2)),
        ),
        SUMS,
    ),
    "no public grid": (off_the_grid, GRID),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTS)
def test_a_bug_under_one_setting_is_found(name, monkeypatch):
    plant, check = PLANTS[name]
    plant(monkeypatch)
    found = getattr(setting_checks, check)(settings_of(len(name)), "cpu")
    assert not found.passed, found


@pytest.mark.slow
@pytest.mark.parametrize("check", setting_checks.SETTING_CHECKS)
def test_a_sound_trainer_passes_under_drawn_settings(check):
    found = check(settings_of(11)[:6], "cpu")
    assert found.passed, found


def test_releases_of_a_sound_trainer_are_on_the_grid():
    found = setting_checks.releases_are_on_the_grid(settings_of(11)[:2], "cpu")
    assert found.passed, found
