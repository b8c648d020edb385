"""Honest models of many forms train as autograd does; what cannot be followed hears what to do."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from opacus.layers import DPLSTM, DPMultiheadAttention
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, rnn

from client.dpsgd.clipping import BookKeeping
from client.dpsgd.examination.made_up_rows import Domain, Examples
from client.dpsgd.examination.separation import examine
from client.dpsgd.per_sample import ModelError
from client.tasks.rows import Rows
from tests.support.small_models import (
    TIME,
    WIDTH,
    WORDS,
    InEval,
    Made,
    cross_entropy,
    data,
    head,
    trained,
    words,
)


def in_place(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h += x
    h = h.relu()
    return cast(Tensor, m.b(h))


def packed(m: Any, x: Tensor) -> Tensor:
    lengths = torch.arange(len(x)) % 3 + 2
    pack = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return cast(Tensor, m.h(m.l(pack)[1][0][-1]))


def packed_by_content(m: Any, x: Tensor) -> Tensor:
    """As a padded text is packed: up to where its rows end."""
    lengths = (x.abs().sum(2) > 0).sum(1).clamp(min=1)
    pack = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return cast(Tensor, m.h(m.l(pack)[1][0][-1]))


def turned(m: Any, x: Tensor) -> Tensor:
    t = x.transpose(0, 1)
    return cast(Tensor, m.h(m.m(t, t, t)[0].mean(0)))


class Keywords(nn.Module):
    """A layer that is called with keywords and answers with a tree."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(WIDTH, 2))

    def forward(self, *, x: Tensor, by: float) -> dict[str, Any]:
        return {"y": x @ self.w * by, "more": [x.sum(1) * self.w.sum(), "not a tensor"]}


def keyworded(m: Any, x: Tensor) -> Tensor:
    out = m.k(x=x, by=2.0)
    return cast(Tensor, out["y"] + out["more"][0][:, None])


def shared() -> nn.Module:
    table, out = nn.Embedding(WORDS, 5), nn.Linear(5, WORDS, bias=False)
    out.weight = table.weight
    return Made(lambda m, x: m.o(m.e(x)).mean(1), e=table, o=out)


HONEST: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "h += x": (
        lambda: Made(in_place, a=nn.Linear(WIDTH, WIDTH), b=nn.Linear(WIDTH, 2)),
        "flat",
    ),
    "positions of one row": (
        lambda: words(
            lambda m, x: m.h((m.e(x) + m.p(torch.arange(TIME)[None])).mean(1)),
            p=nn.Embedding(TIME, 5),
        ),
        "ids",
    ),
    "attention with the sequence first": (
        lambda: Made(turned, m=DPMultiheadAttention(WIDTH, 2), h=nn.Linear(WIDTH, 2)),
        "sequence",
    ),
    "attention with biases": (
        lambda: Made(
            lambda m, x: m.h(m.m(x, x, x)[0].mean(1)),
            m=DPMultiheadAttention(WIDTH, 2, add_bias_kv=True, batch_first=True),
            h=nn.Linear(WIDTH, 2),
        ),
        "sequence",
    ),
    "a recurrent network with the sequence first": (
        lambda: Made(
            lambda m, x: m.h(m.l(x.transpose(0, 1))[0][-1]), l=DPLSTM(WIDTH, 5), h=nn.Linear(5, 2)
        ),
        "sequence",
    ),
    "a parameter that is one number": (
        lambda: nn.Sequential(
            head(), Made(lambda m, x: x * m.t.exp() + m.t, t=nn.Parameter(torch.tensor(0.3)))
        ),
        "flat",
    ),
    "two inputs": (lambda: Made(lambda m, x: m.b(x, x.tanh()), b=nn.Bilinear(8, 8, 2)), "flat"),
    "a keyword": (lambda: Made(lambda m, x: m.b(input=x), b=nn.Linear(WIDTH, 2)), "flat"),
    "keywords and a tree": (lambda: Made(keyworded, k=Keywords()), "flat"),
    "weight norm": (
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(WIDTH, 4, bias=False)), nn.Linear(4, 2)
        ),
        "flat",
    ),
    "a parameter at the top": (
        lambda: Made(
            lambda m, x: m.h((x + m.p).mean(1)),
            p=nn.Parameter(torch.randn(1, TIME, WIDTH)),
            h=nn.Linear(WIDTH, 2),
        ),
        "sequence",
    ),
    "batch norm in eval": (lambda: InEval(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 2)), "flat"),
    "tied modules": (shared, "ids"),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_trains_as_autograd_does_example_by_example(name: str) -> None:
    torch.manual_seed(0)
    build, kind = HONEST[name]
    model, rows = build().train(), data(kind, TIME)  # as many rows as steps of time
    weights = [p for p in model.parameters() if p.requires_grad]
    expected = [torch.zeros_like(p) for p in weights]
    for i in range(len(rows)):
        loss = cross_entropy(model(rows.x[i : i + 1]), rows.y[i : i + 1]).sum()
        one = torch.autograd.grad(loss, weights)
        norm = float(torch.cat([g.flatten() for g in one]).norm())
        for total, g in zip(expected, one, strict=True):
            total += g * min(1.0, 0.5 / norm)
    book = BookKeeping(model, clip=0.5)
    examine(book, Domain.of(rows.x, rows.y), cross_entropy)
    book.accumulate(rows.x, rows.y, cross_entropy)
    for p, total in zip(weights, expected, strict=True):
        assert p.grad is not None
        assert torch.allclose(p.grad, total, rtol=1e-4, atol=1e-5)
    book.to_standard_module()


def test_outputs_of_any_tree_and_inputs_of_any_tree_are_followed() -> None:
    model = Made(lambda m, x: {"out": m.a(x["a"]), "more": (m.b(x["b"]),)},
                 a=nn.Linear(4, 2), b=nn.Linear(3, 1))  # fmt: skip
    x = {"a": torch.randn(5, 4), "b": torch.randn(5, 3)}
    y = torch.randint(0, 2, (5,))

    def loss(out: Any, y: Tensor) -> Tensor:
        return cross_entropy(out["out"], y) + out["more"][0][:, 0] ** 2

    book = BookKeeping(model, clip=1e6)
    examine(book, Domain.of(x, y), loss)
    book.accumulate(x, y, loss)
    sums = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    book.to_standard_module()
    model.zero_grad()
    loss(model(x), y).sum().backward()
    for ours, p in zip(sums, model.parameters(), strict=True):
        assert p.grad is not None
        assert torch.allclose(ours, p.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "kind", "said"),
    [
        (
            Made(packed, l=DPLSTM(WIDTH, 5, batch_first=True), h=nn.Linear(5, 2)),
            "sequence",
            r"l\.l0\.ih \(RNNLinear\): .*pad sequences",
        ),
        (
            Made(packed_by_content, l=DPLSTM(WIDTH, 5, batch_first=True), h=nn.Linear(5, 2)),
            "sequence",
            r"l\.l0\.ih \(RNNLinear\): .*pad sequences",
        ),
        (
            words(
                lambda m, x: m.h((m.e(x) + m.p(torch.arange(TIME))).mean(1)), p=nn.Embedding(6, 5)
            ),
            "ids",
            r"p \(Embedding\): .*positions as \[1, T\]",
        ),
        (
            Made(lambda m, x: m.h(m.l(x)[0][:, -1]), l=nn.LSTM(WIDTH, 5), h=nn.Linear(5, 2)),
            "sequence",
            r"l \(LSTM\).*private_twins",
        ),
        (
            nn.Sequential(
                nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True),
                nn.Flatten(),
                nn.Linear(TIME * WIDTH, 2),
            ),
            "sequence",
            r"0\.self_attn \(MultiheadAttention\).*private_twins",
        ),
        (
            Made(
                lambda m, x: m.h(m.d(x + m.p).mean(1)),
                p=nn.Parameter(torch.zeros(1, TIME, WIDTH)),
                d=nn.Dropout(0.1),
                h=nn.Linear(WIDTH, 2),
            ),
            "sequence",
            r"Made: expected no Dropout.*a module of their own",
        ),
        (Made(lambda m, x: m.a(x).relu_() + x, a=nn.Linear(WIDTH, 2)), "flat", "RuntimeError"),
        (Made(lambda m, x: m.a(x)["y"], a=nn.Linear(WIDTH, 2)), "flat", "IndexError|TypeError"),
        (Made(lambda m, x: m.a(x.missing), a=nn.Linear(WIDTH, 2)), "flat", "AttributeError"),
        (nn.Flatten(), "flat", "expected parameters to train"),
        (Made(lambda m, x: m.a(x).detach(), a=nn.Linear(WIDTH, 2)), "flat", "none"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line_with_place_and_remedy(
    model: nn.Module, kind: str, said: str
) -> None:
    with pytest.raises((ModelError, ValueError), match=said) as refused:
        trained(model, data(kind))
    assert "\n" not in str(refused.value)


def test_floats_that_carry_ids_are_made_up_inside_the_vocabulary() -> None:
    model = words(lambda m, x: m.h(m.e(x.long()).mean(1)))
    rows = data("ids")
    trained(model, Rows(rows.x.float(), rows.y))


def test_a_task_says_which_rows_its_model_is_made_for() -> None:
    model = Made(lambda m, x: m.a(functional.one_hot(x.long() - 40, 3).flatten(1).float()),
                 a=nn.Linear(6, 2))  # fmt: skip
    x, y = torch.randint(40, 43, (9, 2)).float(), torch.randint(0, 2, (9,))
    with pytest.raises(ModelError, match="made-up rows"):
        examine(BookKeeping(model, clip=1.0), Domain.of(x, y), cross_entropy)

    def sample(count: int, draw: torch.Generator) -> Examples:
        ids = torch.randint(40, 43, (count, 2), generator=draw)
        return Examples(ids.float(), torch.randint(0, 2, (count,), generator=draw))

    book = BookKeeping(model, clip=1.0)
    examine(book, Domain.of(x, y, sample=sample), cross_entropy)
    book.accumulate(x, y, cross_entropy)


def test_dropout_trains_and_the_generators_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    state = torch.get_rng_state()
    rows = data()
    state = torch.get_rng_state()
    book = BookKeeping(model, clip=1.0)
    examine(book, Domain.of(rows.x, rows.y), cross_entropy)
    assert torch.equal(state, torch.get_rng_state())
    assert model[1].p == 0.5
    sums = []
    for _ in range(2):
        model.zero_grad()
        book.accumulate(rows.x, rows.y, cross_entropy)
        sums.append(model[2].weight.grad.clone())
    assert not torch.equal(*sums)
