"""One round of learning at a site: exactly the noisy steps that were paid for, on Opacus' parts.

A step draws every row with probability `rate`, sums the clipped gradients of the rows drawn, adds
noise from `privacy.mechanism.noise`, rounds to a public grid and divides by a public number
(DP-SGD: Abadi et al. 2016). An empty batch takes its noisy step too. What the inner optimizer does
with the noisy mean (weight decay, FedProx, momentum, Adam) depends on no row.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor, nn

from client.dpsgd.clipped_sum import BatchSum
from client.dpsgd.clipping import BookKeeping
from client.dpsgd.examination.made_up_rows import Domain
from client.dpsgd.examination.separation import examine
from client.dpsgd.gpu import repeated
from client.dpsgd.gpu.rows import batches_on
from client.dpsgd.gpu.stream import CudaStream, stream_on
from client.dpsgd.people import Group, People, of_views
from client.dpsgd.per_sample import ModelError
from client.dpsgd.trees import mapped
from client.dpsgd.weights import trained_of
from client.tasks.features.views import views
from client.tasks.losses import weighted
from client.tasks.rows import Rows
from client.tasks.task import Task, none_of
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.mechanism import noise
from privacy.mechanism.sensitivity import noise_std, slack


class TrainingError(ValueError):
    """A round that cannot be trained as asked."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What a round changed: new minus old trained weights by name, and the steps taken."""

    update: dict[str, NDArray[np.float32]]
    steps: int


class NoisyOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Opacus' optimizer of clipped sums, whose noise is `privatise`'s: secure, on a public grid.

    `sums` is where the model leaves its clipped sum. `begin` starts a step. With a `stream`, which
    was started, the noise is made on its device, and nothing waits for it. After `pre_step()` each
    `p.grad` is the noisy mean over `expected_batch_size`, which must be public; step hooks come
    next, then `base`.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        stream: CudaStream | None = None,
    ) -> None:
        super().__init__(
            base,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="sum",  # `privatise` divides: `scale_grad` need not
        )
        allowed = slack(expected_batch_size)
        self.sums = BatchSum(self.params, allowed)
        numbers = self.sums.gradient.numel()
        self._std = noise_std(noise_multiplier, max_grad_norm, numbers, allowed)
        self._stream = stream

    def begin(self, rows: int) -> None:
        """Start the sum of a step, in which so many rows are added."""
        self._store(dict.fromkeys(self.params))
        self.sums.begin(rows)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Forget the last sum; every `p.grad` stays a part of the vector that is noised."""
        self.begin(0)

    def accumulate(self) -> None:
        """Find the step's clipped sum: one vector, or two that the noise adds up.

        Every `p.summed_grad` is a part of one vector; None where there are two.
        """
        self._total, self._more = self.sums.summands(two=self._stream is not None)
        if self._more is None:
            self._store(self.sums.total()[1])

    def _store(self, sums: Mapping[Any, Tensor | None]) -> None:
        for p, total in sums.items():
            p.summed_grad = total

    def add_noise(self) -> None:
        """Make of the clipped sum a noisy mean, a sum on the public grid, in every `p.grad`."""
        total, more = self._total, self._more
        if self._stream is not None:
            noise.privatise_on(
                self._stream, total, self._std, over=self.expected_batch_size, more=more
            )
        else:
            total = total.cpu()  # on a CPU the very same memory
            second = None if more is None else more.numpy()
            noise.privatise(total.numpy(), self._std, over=self.expected_batch_size, more=second)
        if total is not self.sums.gradient:
            self.sums.gradient.copy_(total)


def train(
    model: nn.Module,
    rows: Rows,
    task: Task,
    plan: Plan,
    *,
    site: str,
    event: Event | None,
    round: int,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, NDArray[np.int64], Any], None] | None = None,
    start: Mapping[str, NDArray[np.float32]] | None = None,
) -> Trained:
    """Train `model` in place for one round (from 1) and return what changed.

    `event` is what was paid: its sigma, rate and steps are used, not the plan's; without an event
    the steps are plain. In the unit "subject" people are drawn, and `micro_batch` counts people.
    `on_step(step, units drawn, optimizer)` is called after every step, for tests and audits.
    `start` are the trained weights that the model has now, where somebody keeps them anyway: then
    no copy of them is made.
    """
    if event is not None and event.unit not in ("record", "subject"):
        raise TrainingError(f"event: expected the unit record or subject, got {event.unit}")
    people = _people(rows, plan) if event is not None and event.unit == "subject" else None
    rate = plan.rate if event is None else event.rate
    steps = plan.steps if event is None else event.steps * event.count
    model.to(device).train()
    x, y = mapped(lambda t: t.to(device), rows.x), rows.y.to(device)
    named = trained_of(model)
    if start is None:
        start = {name: p.detach().cpu().numpy().copy() for name, p in named.items()}
    trained = list(named.values())
    if not trained:
        raise TrainingError("model: expected parameters to train, got none")
    stream = None
    if event is not None:
        stream = stream_on(y.device, sum(p.numel() for p in trained))
    if stream is not None:
        noise.start_on(stream)
    optimizer = NoisyOptimizer(
        optimizer_of(trained, plan),
        noise_multiplier=0.0 if event is None else event.sigma,
        max_grad_norm=1.0 if plan.clip is None else plan.clip,
        expected_batch_size=rate * plan.units_of(site),
        stream=stream,
    )
    if plan.aggregation == "fedprox":
        pull = proximal(trained, plan.mu)
        optimizer.attach_step_hook(lambda _: pull())
    units = len(rows) if people is None else len(people)
    with _summed(model, Rows(x, y), task, plan, event, optimizer.sums) as add:
        plain = people is None and on_step is None and units > 0
        if stream is not None and plain and repeated.wanted(plan):
            loss = loss_of(task, plan)
            repeated.take_steps(add, optimizer, stream, (x, y, loss), rate, steps)
        else:
            ahead = stream if people is None else None
            for step, drawn in enumerate(_drawn(units, rate, steps, ahead)):
                for group in optimizer.param_groups:
                    group["lr"] = plan.lr_at((round - 1) * steps + step, plan.rounds * steps)
                optimizer.begin(0 if event is None else len(drawn))  # plain sums need no bound
                _add_units(add, drawn, x, y, task, plan, people)
                optimizer.step()
                if on_step is not None:
                    on_step(step, drawn.cpu().numpy(), optimizer)
    if stream is not None and stream.failed():
        raise noise.NoiseError("noise: more numbers are undecided on the device than there can be")
    changed = optimizer.sums.by_parameter(optimizer.sums.gradient)  # memory that is free now
    update = {}
    for name, p in named.items():
        update[name] = changed[p].copy_(p.detach()).cpu().numpy()
        update[name] -= start[name]
    return Trained(update, steps)


def _drawn(units: int, rate: float, steps: int, stream: CudaStream | None) -> Iterator[Tensor]:
    """The units that each step draws, where they are drawn."""
    if stream is not None:
        return batches_on(stream, units, rate, steps)
    return map(torch.from_numpy, noise.batches(units, rate, steps))


def clipped_sum(
    model: nn.Module,
    rows: Rows,
    task: Task,
    plan: Plan,
    *,
    event: Event,
    expected: float,
    device: torch.device | str = "cpu",
) -> dict[str, NDArray[np.float64]]:
    """One step's clipped sum by parameter, before any noise: for secure aggregation alone.

    The units are drawn with the event's rate. `expected`, a public number, is what the rounding of
    sums is bounded for. Nothing of it may leave but through `privacy.secagg.ring.Ring.share`.
    """
    people = _people(rows, plan) if event.unit == "subject" else None
    model.to(device).train()
    x, y = mapped(lambda t: t.to(device), rows.x), rows.y.to(device)
    named = trained_of(model)
    sums = BatchSum(list(named.values()), slack(expected))
    drawn = noise.poisson(len(rows) if people is None else len(people), event.rate)
    with _summed(model, Rows(x, y), task, plan, event, sums) as add:
        sums.begin(len(drawn))
        _add_units(add, torch.from_numpy(drawn), x, y, task, plan, people)
        _, parts = sums.total()
        return {n: parts[p].detach().cpu().double().numpy() for n, p in named.items()}


def _add_units(
    add: "Add",
    drawn: Tensor,
    x: Any,
    y: Tensor,
    task: Task,
    plan: Plan,
    people: People | None,
) -> None:
    """Add the contributions of the units drawn, at most `micro_batch` of them at a time."""
    batch = drawn.to(y.device)
    for part in torch.split(batch, plan.micro_batch) if plan.micro_batch else (batch,):
        at, group = (part, None) if people is None else people.take(part.cpu())
        at = at.to(y.device)
        some = mapped(partial(torch.index_select, dim=0, index=at), x)
        labels = y.index_select(0, at)
        if plan.augment is not None:
            some = views(some, plan.augment, torch.default_generator)
            labels = labels.repeat_interleave(plan.augment.views, 0)
            group = of_views(group, len(at), plan.augment.views)
        more = () if group is None else (group,)
        add(some, labels, loss_of(task, plan), *more)


def optimizer_of(trained: Sequence[Tensor], plan: Plan) -> torch.optim.Optimizer:
    """What the plan does with the noisy means."""
    if plan.optimizer == "adam":
        return _eager(torch.optim.Adam)(trained, lr=plan.learning_rate, weight_decay=plan.l2)
    momentum = plan.momentum if plan.optimizer == "momentum" else 0.0
    return _eager(torch.optim.SGD)(
        trained, lr=plan.learning_rate, momentum=momentum, weight_decay=plan.l2
    )


@cache
def _eager(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """`kind` that never meets torch.compile: its guards against it load torch's whole compiler.

    Nor torch's profiler and hooks around each step, which cost more than a small model's step.
    """
    step: Any = torch.no_grad()(inspect.unwrap(kind.step))
    step.hooked = True  # what torch would set once it had wrapped it
    methods = {"add_param_group": inspect.unwrap(kind.add_param_group), "step": step}
    return type(kind.__name__, (kind,), methods)


def proximal(trained: Sequence[Tensor], mu: float) -> Callable[[], None]:
    """FedProx (Li et al. 2020): the gradient of mu/2 |w - w_0|^2, which depends on no row."""
    start = [p.detach().clone() for p in trained]

    def pull() -> None:
        with torch.no_grad():
            for p, at in zip(trained, start, strict=True):
                p.grad.add_(p - at, alpha=mu)  # type: ignore[union-attr]

    return pull


def loss_of(task: Task, plan: Plan) -> Callable[[Any, Tensor], Tensor]:
    """The loss per row that is trained: the task's, times the plan's public weight of its class."""
    if not plan.class_weights:
        return task.loss
    return weighted(task.loss, tuple(plan.class_weights.get(name, 1.0) for name in task.classes))


def domain_of(task: Task, rows: Rows) -> Domain:
    """What made-up rows of a task have to look like; of its real rows only shapes and types."""
    classes, sample = len(getattr(task, "classes", ())) or 2, getattr(task, "sample", None)
    return Domain.of(rows.x, rows.y, classes=classes, sample=sample)


@lru_cache(maxsize=4)
def model_refusal(task: Task, seed: int) -> str:
    """Why a task's model cannot be trained example by example; "" if it can. No row is read."""
    model, rows = task.model(seed), none_of(task)
    try:
        book = BookKeeping(model, clip=1.0)
        examine(book, domain_of(task, rows), task.loss)
    except ModelError as error:
        return str(error)
    book.to_standard_module()
    return ""


def _people(rows: Rows, plan: Plan) -> People:
    """Whose the rows are; TrainingError where nobody says so."""
    if rows.subject is None and len(rows):
        raise TrainingError('unit: expected rows with a subject where unit = "subject", got none')
    return People.of(rows.subject, plan.rows_per_subject, len(rows))


Add = Callable[..., None]


@contextmanager
def _summed(
    model: nn.Module, rows: Rows, task: Task, plan: Plan, event: Event | None, sums: BatchSum
) -> Iterator[Add]:
    """How a batch's gradient is added to `sums`: clipped by example; plainly without an event."""
    if event is None:
        yield partial(_plain, model)
        return
    if plan.clip is None:
        raise TrainingError("clip: expected a value in a private plan, got nothing")
    wrapped = BookKeeping(model, clip=plan.clip, precision=plan.precision, sums=sums)
    try:
        with _whole_products(convolutions=True):
            examine(wrapped, domain_of(task, rows), loss_of(task, plan))
        with _whole_products():
            yield wrapped.accumulate
    finally:
        wrapped.to_standard_module()


@contextmanager
def _whole_products(*, convolutions: bool = False) -> Iterator[None]:
    """While matrix products are of whole float32 numbers, whatever this process has asked torch.

    The rounding of sums is bounded for these (docs/randomness.md). A GPU's `convolutions`, which no
    sum is made by, may round to TF32, but not while a model's rows are compared.
    """
    precision, short = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    if convolutions:
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)
        if convolutions:
            torch.backends.cudnn.allow_tf32 = short


def _plain(
    model: nn.Module,
    x: Any,
    y: Tensor,
    loss: Callable[[Any, Tensor], Tensor],
    group: Group | None = None,
) -> None:
    for p in model.parameters():
        if p.requires_grad and p.grad is None:
            p.grad = torch.zeros_like(p)
    if len(y):
        losses = loss(model(x), y)
        if group is not None:
            losses = losses * group.weights.to(losses.device)
        torch.autograd.backward(losses.sum())
