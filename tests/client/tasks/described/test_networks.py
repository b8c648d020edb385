"""Models by name and by layers: each trains by example, and what does not fit is named."""

import pytest
import torch
from torch import Tensor

from client.dpsgd.clipping import BookKeeping
from client.dpsgd.examination.made_up_rows import Domain
from client.dpsgd.examination.separation import examine
from client.tasks.described.networks import Input, network
from client.tasks.losses import cross_entropy
from client.tasks.rows import TaskError
from privacy.contract.keys.tables import ModelPlan
from privacy.contract.keys.types import PlanError

PICTURE = {"pixels": Input((3, 12, 12))}
SERIES = {"window": Input((2, 16))}
WORDS = {"words": Input((9,), 50)}
BOTH = {"words": Input((4,), 20), "numbers": Input((3,))}

CASES = [
    (ModelPlan(name="linear"), PICTURE),
    (ModelPlan(name="mlp", width=8, depth=2), PICTURE),
    (ModelPlan(name="cnn", width=4, depth=2), PICTURE),
    (ModelPlan(name="cnn", width=4, depth=1), SERIES),
    (ModelPlan(name="resnet", width=4, depth=2), PICTURE),
    (ModelPlan(name="lstm", width=6), SERIES),
    (ModelPlan(name="lstm", width=6), WORDS),
    (ModelPlan(name="text-cnn", width=6), WORDS),
    (ModelPlan(name="bag", width=6), WORDS),
    (ModelPlan(name="transformer", width=8, heads=2, depth=2), WORDS),
    (ModelPlan(name="transformer", width=8, heads=2, depth=1, dropout=0.1), SERIES),
    (ModelPlan(name="mixed", width=6), BOTH),
    (
        ModelPlan(layers=("conv 8 3", "groupnorm 4", "relu", "maxpool 2", "flatten", "linear 3")),
        PICTURE,
    ),
    (ModelPlan(layers=("embedding 6", "lstm 5", "last", "dropout 0.1", "linear 3")), WORDS),
    (ModelPlan(layers=("swap", "layernorm", "linear 4", "gelu", "mean", "linear 3")), SERIES),
]


def rows(inputs: dict[str, Input], count: int = 12) -> tuple[object, Tensor]:
    draw = torch.Generator().manual_seed(3)
    made = {
        name: torch.randint(one.words, (count, *one.shape), generator=draw)
        if one.words
        else torch.randn((count, *one.shape), generator=draw)
        for name, one in inputs.items()
    }
    y = torch.randint(3, (count,), generator=draw)
    return (made if len(made) > 1 else next(iter(made.values()))), y


@pytest.mark.parametrize(
    ("plan", "inputs"), CASES, ids=lambda one: str(getattr(one, "name", "")) or "layers"
)
def test_a_described_model_is_clipped_by_example_and_sums_as_autograd(
    plan: ModelPlan, inputs: dict[str, Input]
) -> None:
    torch.manual_seed(0)
    model = network(plan, inputs, 3)
    x, y = rows(inputs)
    book = BookKeeping(model, clip=1e9)
    examine(book, Domain.of(x, y, classes=3), cross_entropy)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trained:
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    book.accumulate(x, y, cross_entropy)
    ours = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    book.to_standard_module()
    for p in trained:
        p.grad = None
    cross_entropy(model(x), y).sum().backward()
    theirs = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (("linear 3",), "must end in 3 numbers a row"),
        (("flatten", "linear 4"), "must end in 3 numbers a row, got"),
        (("conv 8",), "model.layers\\[0\\] 'conv 8': must fit rows of shape"),
        (("groupnorm 2", "flatten", "linear 3"), "must fit rows of shape"),
        (("batchnorm 8", "flatten", "linear 3"), "must be one of adaptivepool"),
        (("flatten", "linear 9999"), "must fit"),
        (("embedding 4", "flatten", "linear 3"), "must fit"),
        (("flatten", "dropout 1.5", "linear 3"), "must fit"),
    ],
)
def test_a_layer_that_does_not_fit_is_named(layers: tuple[str, ...], text: str) -> None:
    with pytest.raises(TaskError, match=text):
        network(ModelPlan(layers=layers), PICTURE, 3)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("bag", PICTURE),
        ("text-cnn", SERIES),
        ("cnn", WORDS),
        ("resnet", SERIES),
        ("lstm", PICTURE),
        ("linear", WORDS),
        ("cnn", BOTH),
    ],
)
def test_a_named_model_says_what_it_needs(name: str, inputs: dict[str, Input]) -> None:
    with pytest.raises(TaskError, match=r"model.name"):
        network(ModelPlan(name=name), inputs, 3)  # type: ignore[arg-type]


def test_size_is_bounded_before_anything_is_made() -> None:
    wide = ModelPlan(name="mlp", width=4096, depth=32)
    with pytest.raises(TaskError, match="at most 50000000 parameters"):
        network(wide, {"x": Input((4096,))}, 3)
    with pytest.raises(TaskError, match="heads must divide"):
        network(ModelPlan(name="transformer", width=10, heads=3), WORDS, 3)


def test_a_model_is_said_once_and_within_bounds() -> None:
    with pytest.raises(PlanError, match="exactly one of name and layers"):
        ModelPlan()
    with pytest.raises(PlanError, match="exactly one of name and layers"):
        ModelPlan(name="cnn", layers=("flatten",))
    with pytest.raises(PlanError, match=r"model.width must be left out"):
        ModelPlan(layers=("flatten", "linear 3"), width=3)
    with pytest.raises(PlanError, match=r"model.width must be"):
        ModelPlan(name="cnn", width=5000)
    with pytest.raises(PlanError, match=r"model.layers must be"):
        ModelPlan(layers=("import os",))
