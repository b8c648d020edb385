"""Recurrent layers in one pass over time give what Opacus' cells give call by call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from opacus.layers import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn

from client.dpsgd.clipping import BookKeeping
from client.dpsgd.fused import cells
from client.dpsgd.people import Group


class Network(nn.Module):
    """Every time's output, the last states and the cell's state are all used."""

    def __init__(self, kind: Callable[..., nn.Module], **words: Any) -> None:
        super().__init__()
        self.layers = kind(3, 5, batch_first=True, **words)
        self.head = nn.Linear(5 * (1 + words.get("bidirectional", False)), 2)

    def forward(self, x: Tensor) -> Tensor:
        out, last = self.layers(x)
        states = last if isinstance(last, tuple) else (last,)
        return self.head(out.square().mean(1)) + sum(s.sum((0, 2)) for s in states)[:, None]


def squares(out: Tensor, y: Tensor) -> Tensor:
    return (out - y[:, None]).square().sum(1)


def sums(model: nn.Module, fast: bool, **words: Any) -> tuple[list[Tensor], int]:
    """The clipped sums of six examples, and how many layers ran in one pass."""
    x, y = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(1)), torch.ones(6)
    group, precision = words.get("group"), words.get("precision", "float32")
    known, ran = cells.suits, []

    def suits(*args: Any, **named: Any) -> bool:
        ran.append(fast and known(*args, **named))
        return ran[-1]

    for p in model.parameters():
        p.grad = None
    book = BookKeeping(model, clip=0.3, precision=precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "suits", suits)
        book.accumulate(x, y, squares, group)
    book.to_standard_module()
    assert "forward_layer" not in vars(model.layers)
    return [p.grad.clone() for p in model.parameters()], sum(ran)


KINDS = [DPLSTM, DPGRU, DPRNN]
WAYS: list[dict[str, Any]] = [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}]


@pytest.mark.parametrize("words", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_gives_the_clipped_sums_of_many_calls(
    kind: Callable[..., nn.Module], words: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = Network(kind, **words)
    fast, layers = sums(model, True)
    slow, none = sums(model, False)
    assert (layers, none) == (4 if words.get("num_layers") else 1, 0)
    for one, other in zip(fast, slow, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
        assert other.any()


@pytest.mark.parametrize("kind", KINDS)
def test_people_and_bfloat16_take_the_same_pass(kind: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    model = Network(kind)
    at = torch.tensor([[0, 1, 0], [2, 2, 2], [3, 4, 5]])
    real = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    group = Group(at, real, torch.tensor([1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3]))
    for words, close in (({"group": group}, 1e-4), ({"precision": "bfloat16"}, 0.1)):
        fast, layers = sums(model, True, **words)
        slow, _ = sums(model, False, **words)
        assert layers == 1
        for one, other in zip(fast, slow, strict=True):
            assert torch.allclose(one, other, rtol=close, atol=close / 100)


def test_an_lstm_by_hand_has_the_gradients_of_autograd() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 3, 20).double().requires_grad_(), torch.randn(20, 5).double()
    h, c = (torch.randn(3, 5).double().requires_grad_() for _ in range(2))
    run = lambda *given: cells._Lstm.apply(given[0], weight, *given[1:])  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, h, c))


def test_dropout_packing_and_other_cells_are_left_to_opacus() -> None:
    lstm = DPLSTM(3, 5, num_layers=2, dropout=0.5, batch_first=True)
    assert not cells.suits(lstm, lstm.l0, packed=False)
    plain = DPLSTM(3, 5, batch_first=True)
    assert cells.suits(plain, plain.l0, packed=False)
    assert not cells.suits(plain, plain.l0, packed=True)

    class Own(type(plain.l0)):  # type: ignore[misc]
        pass

    assert not cells.suits(plain, Own(3, 5, True), packed=False)
    nn.utils.parametrizations.weight_norm(plain.l0.hh)
    assert not cells.suits(plain, plain.l0, packed=False)
