"""Whether an example's results depend on it alone, while a model runs on made-up rows.

The same rows are run in unlike company: a few beside rows of their own scale, the same beside
others, monsters among them, or in the middle of a large batch. A model that keeps examples apart
gives a row the same losses, inputs and output gradients in each. Where two of these differ (models
that draw random numbers, kernels that round by the number of rows), rows are replaced one at a
time in batches that are otherwise the same, which takes many times as long; that also says what
is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from client.dpsgd.calls import check_halves, half_of, of_packed
from client.dpsgd.clipping import BookKeeping, Loss
from client.dpsgd.examination.made_up_rows import Examples, MadeUp
from client.dpsgd.examination.traces import Trace, seeded
from client.dpsgd.per_sample import ModelError

SCALES: Final = (1.0, 1e-2, 30.0, 1e3)
FAULTS: Final = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
)
"""What a model's own code raises on rows that it was not written for."""
_GROUP: Final = 4
_EQUAL: Final = 3
_MORE: Final = 7
_MANY: Final = 64


def check_apart(book: BookKeeping, source: MadeUp, loss: Loss, *, outliers: bool) -> bool:
    """Refuse what makes of an example something else when the others are others, or any state.

    With `outliers` rows of every scale are also in the large batch, which goes forward and back;
    without, it is of one scale and goes forward alone. Returns whether any gradient was seen.
    """
    seen = _in_company(book, source, loss, outliers=outliers)
    for turn, scale in enumerate((*SCALES, 1.0)):
        if scale in seen.doubtful:
            seen.alive |= _check_one_by_one(book, source, loss, turn, scale)
    if seen.equal_doubtful:
        alike = source.rows(_MORE, 1.0).alike()
        _check_replaced(book, source, alike, (1, 4), loss, Trace.of(book, alike, loss))
    return seen.alive


@dataclass(slots=True)
class _Seen:
    """At which scales rows were not the same in all company; whether there was any gradient."""

    alive: bool = False
    doubtful: set[float] = field(default_factory=set)
    equal_doubtful: bool = False


def _in_company(book: BookKeeping, source: MadeUp, loss: Loss, *, outliers: bool) -> _Seen:
    """Run a group of rows of each scale in unlike company."""
    seen = _Seen()
    groups = {scale: source.rows(_GROUP, scale, seed=2) for scale in SCALES}
    guests = groups if outliers else {1.0: groups[1.0]}
    crowd = _among_many(book, source, loss, list(guests.values()), backward=outliers)
    elsewhere = {scale: (crowd, at * _GROUP) for at, scale in enumerate(guests)}
    compared = list(range(_GROUP))
    if not outliers:
        compared = [2, 1]
        mixed = _trace(book, Examples.joined([g.take(compared) for g in groups.values()]), loss)
        elsewhere |= {s: (mixed, at * 2) for at, s in enumerate(groups) if s not in guests}
    for scale, group in groups.items():
        alone = _trace(book, group, loss)
        seen.alive |= alone is not None and alone.alive()
        other, first = elsewhere[scale]
        rows = list(range(_GROUP)) if scale in guests else compared
        if not _same(alone, rows, other, range(first, first + len(rows))):
            seen.doubtful.add(scale)
        if scale == 1.0:
            equal = _trace(book, group.take([0] * _EQUAL), loss)
            seen.equal_doubtful = not _same(equal, range(_EQUAL), alone, [0] * _EQUAL)
    return seen


def _same(one: Trace | None, rows: Sequence[int], other: Trace | None, at: Sequence[int]) -> bool:
    if one is None or other is None:
        return False
    one, other = one.take(rows), other.take(at)
    if len(other.names) < len(one.names):  # which went forward alone
        one = one.forward()
    return not one.differs(other)


def _trace(
    book: BookKeeping, rows: Examples, loss: Loss, only: Tensor | None = None
) -> Trace | None:
    """None where the model, or what is known of it, refuses the rows."""
    try:
        return Trace.of(book, rows, loss, only)
    except FAULTS:  # ModelError among them: one by one it is said again
        return None


def _among_many(
    book: BookKeeping, source: MadeUp, loss: Loss, guests: Sequence[Examples], *, backward: bool
) -> Trace | None:
    """What becomes of the guests' rows in a large batch.

    Gradients are those of half of the losses, the guests' among them. Those of the other half must
    be zero.
    """
    rows, chosen = source.rows(_MANY, 1.0), half_of(_MANY)
    places = chosen.nonzero().flatten().flip(0)
    guest = Examples.joined(guests)
    spread = torch.linspace(0, len(places) - 2, len(guest.y)).long()
    places = places[spread]
    crowd = _trace(book, rows.put(places, guest), loss, chosen & backward)
    return None if crowd is None else crowd.take(places.tolist())


def _check_one_by_one(
    book: BookKeeping, source: MadeUp, loss: Loss, turn: int, scale: float
) -> bool:
    """Replace examples one at a time: nothing of the others may change, nor any state."""
    count = _MANY if turn == len(SCALES) else _MORE
    base = source.rows(count, scale)
    before = Trace.of(book, base, loss)
    _check_replaced(book, source, base, (turn % count, (turn + 3) % count), loss, before)
    if scale != 1.0:
        return before.alive()
    again = Trace.of(book, base, loss)
    if changed := before.differs(again):
        raise ModelError(
            f"{changed} changes when the same rows come again; expected nothing to be kept "
            "from one batch to the next, and random numbers from torch's own generator"
        )
    fewer = Trace.of(book, base.first(count - 1), loss)
    if changed := before.shortened(fewer):
        raise ModelError(
            f"{changed} changes with the number of examples in the batch; expected a sum that "
            "every example enters by itself"
        )
    _check_half(book, base, loss)
    return before.alive()


def _check_replaced(
    book: BookKeeping,
    source: MadeUp,
    rows: Examples,
    places: tuple[int, int],
    loss: Loss,
    before: Trace,
) -> None:
    """Put a monstrous example into one place, a small one into another: no other row may change."""
    for k, scale in zip(places, (SCALES[-1], 1e-2), strict=True):
        after = Trace.of(book, source.with_another(rows, k, scale), loss)
        if mixed := before.differs(after, torch.arange(len(rows.y)) != k):
            raise ModelError(
                f"{mixed} changes for an example when another example is replaced; expected "
                "examples that are kept apart, got a model or a loss that mixes them"
                + of_packed(book.layers, mixed)
            )


def _check_half(book: BookKeeping, rows: Examples, loss: Loss) -> None:
    count = len(rows.y)
    with book.recording(count), seeded():
        losses = book.losses(rows.x, rows.y, loss)
        chosen = half_of(count).to(losses.device)
        gradients = book.gradients_of(losses, chosen.to(losses.dtype))
        check_halves(book.tape, gradients, ~chosen)
