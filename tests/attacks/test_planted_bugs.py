"""The audit is itself tested: bugs planted in the running process are found, a correct one passes.

Plants sit where outside code can put them: at `privatise` and `batches` of
`privacy.mechanism.noise`, or at `p.grad` once Opacus' optimizer has prepared the step.
"""

import json
import time
from itertools import islice

import numpy as np
import pytest
import torch
import typer
from opacus.optimizers import DPOptimizerFastGradientClipping as Optimizer
from typer.testing import CliRunner

from client.audit import audit, conformance
from client.audit.audit import audit_installation, one_thread
from client.audit.plot import bounds_svg
from client.audit.probes import kinds
from client.commands import audit as command
from client.dpsgd.clipping import BookKeeping
from client.dpsgd.training import NoisyOptimizer
from privacy.mechanism import noise
from tests.support.patience import patience

privatise, poisson = noise.privatise, noise.poisson


def normal(shape, std):
    """What `privatise` makes of zeros: noise alone, on the grid."""
    noisy = np.zeros(shape, dtype=np.float32)
    privatise(noisy, std)
    return noisy


@pytest.fixture(autouse=True)
def _threads():
    with one_thread():
        yield


def at_noise(planted):
    """Let `planted()(shape, std)` draw the noise of a step."""

    def plant(patch):
        draw = planted()

        def planted_noise(sums, std, *, over=1.0, more=None):
            sums += draw(sums.shape, std) if more is None else draw(sums.shape, std) + more
            step = noise.grid(std)
            sums[:] = (np.rint(sums / step) * step if step else sums) / over

        patch.setattr(noise, "privatise", planted_noise)

    return plant


def at_poisson(planted):
    """Let `planted()(n, rate)` draw the batch of a step."""

    def plant(patch):
        draw = planted()
        every = lambda n, rate, steps: (draw(n, rate) for _ in range(steps))  # noqa: E731
        patch.setattr(noise, "batches", every)

    return plant


def after_pre_step(change):
    """Let `change(optimizer)` alter p.grad after the step has been prepared."""

    def plant(patch):
        prepare, accumulate = Optimizer.pre_step, NoisyOptimizer.accumulate

        def accumulating(self):
            accumulate(self)  # what is noised in place comes after
            self.clean_total = self._total.clone()
            self.clean_sums = {p: p.summed_grad.clone() for p in self.params}

        def pre_step(self, closure=None):
            going = prepare(self, closure)
            with torch.no_grad():
                change(self)
            return going

        patch.setattr(Optimizer, "pre_step", pre_step)
        patch.setattr(NoisyOptimizer, "accumulate", accumulating)

    return plant


def clean(optimizer, p):
    """The mean gradient as it would be released without noise."""
    return optimizer.clean_sums[p] / optimizer.expected_batch_size


def halve(optimizer):
    for p in optimizer.params:
        p.grad.add_(clean(optimizer, p)).div_(2)


def silence(optimizer):
    for p in optimizer.params:
        p.grad.copy_(clean(optimizer, p))


def silence_last(optimizer):
    optimizer.params[-1].grad.copy_(clean(optimizer, optimizer.params[-1]))


def silence_first(optimizer):
    optimizer.params[0].grad.copy_(clean(optimizer, optimizer.params[0]))


def silence_biases(optimizer):
    for p in optimizer.params:
        if p.dim() == 1:
            p.grad.copy_(clean(optimizer, p))


def same_noise(optimizer):
    std = optimizer.noise_multiplier * optimizer.max_grad_norm / optimizer.expected_batch_size
    source = torch.Generator().manual_seed(1234)
    for p in optimizer.params:
        p.grad.copy_(clean(optimizer, p) + std * torch.randn(p.shape, generator=source))


def wider_clip(optimizer):
    for p in optimizer.params:
        p.grad.add_(clean(optimizer, p), alpha=2)


def hidden_step(optimizer):
    optimizer.original_optimizer.step()


def averaged_noise(optimizer):
    first = [p.grad.clone() for p in optimizer.params]
    optimizer._total = optimizer.clean_total.clone()
    optimizer.add_noise()
    for p, g in zip(optimizer.params, first, strict=True):
        p.grad.div_(optimizer.expected_batch_size).add_(g).div_(2)


def unclipped(batch):
    """Recompute the sum from the batch: not clipped at all, or clipped as a whole."""

    def plant(patch):
        accumulate, seen = BookKeeping.accumulate, {}

        def watched(self, x, y, loss):
            seen.update(x=x, y=y, loss=loss, model=self._module)
            accumulate(self, x, y, loss)

        def change(optimizer):
            if not len(seen["x"]):
                return
            with torch.enable_grad():
                losses = seen["loss"](seen["model"](seen["x"]), seen["y"])
                raw = torch.autograd.grad(losses.sum(), optimizer.params, allow_unused=True)
            raw = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(optimizer.params, raw, strict=True)
            ]
            length = float(torch.cat([g.reshape(-1) for g in raw]).norm())
            most = optimizer.max_grad_norm * len(seen["x"])
            factor = min(1.0, most / max(length, 1e-12)) if batch else 1.0
            for p, g in zip(optimizer.params, raw, strict=True):
                p.grad.sub_(clean(optimizer, p)).add_(factor * g / optimizer.expected_batch_size)

        patch.setattr(BookKeeping, "accumulate", watched)
        after_pre_step(change)(patch)

    return plant


def every_tenth_step_twice():
    calls = [0]

    def change(optimizer):
        calls[0] += 1
        if calls[0] % 10 == 0:
            optimizer.original_optimizer.step()

    return change


def seeded_once():
    source = np.random.default_rng(42)
    return lambda shape, std: source.normal(0, std, shape).astype(np.float32)


def kept_noise():
    kept = {}

    def planted(shape, std):
        if shape not in kept:
            kept[shape] = normal(shape, 1.0)
        return (kept[shape] * std).astype(np.float32)

    return planted


def shuffled():
    order = []

    def planted(n, rate):
        size = max(1, round(n * rate))
        if len(order) < size or max(order) >= n:
            order[:] = list(np.random.default_rng().permutation(n))
        batch, order[:size] = np.array(order[:size]), []
        return np.sort(batch)

    return planted


def fixed_size():
    return lambda n, rate: np.sort(
        np.random.default_rng().choice(n, max(1, round(n * rate)), replace=False)
    )


def rotating():
    at = [0]

    def planted(n, rate):
        size = max(1, round(n * rate))
        at[0] += size
        return np.sort((at[0] + np.arange(size)) % n)

    return planted


def constant_sample():
    return lambda n, rate: np.flatnonzero(np.random.default_rng(7).random(n) < rate)


def replacing():
    return lambda n, rate: np.sort(np.random.default_rng().integers(0, n, int(n * rate)))


PLANTS = {
    "halved noise": (at_noise(lambda: lambda s, std: normal(s, std / 2)), "noise_without_records"),
    "no noise": (at_noise(lambda: lambda s, std: normal(s, 0.0)), "noise_without_records"),
    "a constant seed a draw": (
        at_noise(lambda: lambda s, std: np.random.default_rng(7).normal(0, std, s).astype("f4")),
        "noise_of_many_steps",
    ),
    "a constant seed a process": (at_noise(seeded_once), "processes_differ"),
    "the global seeded generator": (
        at_noise(lambda: lambda s, std: (torch.randn(s) * std).numpy()),
        "noise_is_fresh",
    ),
    "noise drawn once and kept": (at_noise(kept_noise), "noise_is_fresh"),
    "one number for a whole tensor": (
        at_noise(lambda: lambda s, std: np.full(s, normal((1,), std)[0], np.float32)),
        "noise_is_normal",
    ),
    "uniform noise": (
        at_noise(lambda: lambda s, std: ((noise.uniform(s) - 0.5) * 12**0.5 * std).astype("f4")),
        "noise_is_normal",
    ),
    "noise cut short of four deviations": (
        at_noise(lambda: lambda s, std: np.clip(normal(s, std), -3.9 * std, 3.9 * std)),
        "noise_is_normal",
    ),
    "biases without noise": (after_pre_step(silence_biases), "noise_without_records"),
    "shuffling": (at_poisson(shuffled), "draws_are_independent"),
    "samples of a fixed size": (at_poisson(fixed_size), "samples_are_poisson"),
    "rotating samples": (at_poisson(rotating), "draws_are_independent"),
    "one sample for all steps": (at_poisson(constant_sample), "draws_are_independent"),
    "drawing with replacement": (at_poisson(replacing), "samples_are_poisson"),
    "twice the rate": (
        at_poisson(lambda: lambda n, rate: poisson(n, min(1.0, 2 * rate))),
        "samples_are_poisson",
    ),
    "noise halved in the gradient": (after_pre_step(halve), "noise_beside_records"),
    "noise removed from the gradient": (after_pre_step(silence), "noise_beside_records"),
    "the last tensor without noise": (after_pre_step(silence_last), "noise_beside_records"),
    "the first tensor without noise": (after_pre_step(silence_first), "noise_without_records"),
    "the same noise in every gradient": (after_pre_step(same_noise), "noise_is_fresh"),
    "two noises averaged": (after_pre_step(averaged_noise), "noise_without_records"),
    "a wider clip": (after_pre_step(wider_clip), "a_record_is_bounded"),
    "skipped clipping": (unclipped(batch=False), "a_record_is_bounded"),
    "batch clipping": (unclipped(batch=True), "a_record_is_bounded"),
    "a hidden second step": (after_pre_step(hidden_step), "steps_are_counted"),
    "every tenth step twice": (
        lambda patch: after_pre_step(every_tenth_step_twice())(patch),
        "steps_are_counted",
    ),
}


# One of each check, on one kind of layer; all others, and these on every kind, are slow.
FAST = (
    *("a constant seed a process", "the global seeded generator", "uniform noise"),
    *("samples of a fixed size", "rotating samples", "noise removed from the gradient"),
    *("skipped clipping", "a hidden second step"),
)


def one_kind(patch):
    """Checks that try every kind of layer try the first alone."""
    patch.setattr(conformance, "kinds", lambda *words: kinds(*words)[:1])


@pytest.mark.parametrize(
    ("name", "narrow"),
    [
        *((name, one_kind) for name in FAST),
        *(pytest.param(name, lambda patch: None, marks=pytest.mark.slow) for name in PLANTS),
    ],
)
def test_a_planted_bug_fails_the_check_that_is_made_for_it(name, narrow, monkeypatch):
    narrow(monkeypatch)
    plant, check = PLANTS[name]
    plant(monkeypatch)
    assert not getattr(conformance, check)("cpu").passed


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTS)
def test_the_whole_audit_finds_a_planted_bug_in_time(name, monkeypatch):
    PLANTS[name][0](monkeypatch)
    began = time.monotonic()
    found = audit_installation(4.0)
    print(name, [c["name"] for c in found["checks"] if not c["passed"]], found["seconds"])
    assert found["verdict"] == "violation found"
    assert time.monotonic() - began < patience(60)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0])
def test_twenty_audits_of_a_correct_installation_pass(epsilon):
    for _ in range(20):
        found = audit_installation(epsilon)
        failed = [c for c in found["checks"] if not c["passed"]]
        assert found["verdict"] == "no violation found", failed
        best = max(bound["epsilon"] for bound in found["bounds"])
        assert 0.4 * epsilon < best < epsilon


def run(*arguments):
    app = typer.Typer()
    command.register(app)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["audit", *arguments])


@pytest.mark.slow
def test_the_command_passes_a_correct_installation_and_leaves_audit_json(tmp_path):
    ran = run("--json", "--dir", str(tmp_path), "--seconds", "10")
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.output)
    assert found == json.loads((tmp_path / "audit.json").read_text())
    assert found["verdict"] == "no violation found"
    by_name = {bound["name"]: bound["epsilon"] for bound in found["bounds"]}
    assert 2.5 <= max(by_name.values()) < 4
    plain, private = found["membership"]["without_privacy"], found["membership"]["private"]
    assert plain["auc"] > 0.95 > 0.8 > private["auc"]
    assert (tmp_path / "audit.svg").read_text() == bounds_svg(found)


def first_check(patch):
    """The audit's first check alone, and few canaries."""
    one_kind(patch)
    patch.setattr(audit, "conform", lambda *words: islice(conformance.conform(*words), 1))
    patch.setattr(audit, "_LEAST", 1000)
    patch.setattr(audit, "_MOST", 1000)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_command_leaves_with_5_where_noise_is_missing(monkeypatch, whole):
    if not whole:
        first_check(monkeypatch)
    PLANTS["no noise"][0](monkeypatch)
    ran = run("--seconds", "5")
    assert ran.exit_code == 5
    assert "violation found" in ran.output


@pytest.mark.parametrize(
    "arguments", [["--epsilon", "0"], ["--dir", "missing"], ["--seconds", "x"]]
)
def test_the_command_refuses_nonsense(arguments):
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_trainer_that_breaks_down_under_the_audit_fails_it(monkeypatch, tmp_path, whole):
    if not whole:
        first_check(monkeypatch)
    at_poisson(lambda: lambda n, rate: np.array([n + 1]))(monkeypatch)
    ran = run("--seconds", "5", "--json", "--out", str(tmp_path / "found.json"))
    assert ran.exit_code == 5
    assert "could not be carried out" in ran.output
