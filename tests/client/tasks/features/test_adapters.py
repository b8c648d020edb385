"""Adapters in the last layers of an encoder: at first nothing, then trained row by row."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from client.dpsgd.weights import base_digest, trained_of
from client.inference.onnx_export import to_onnx
from client.inference.predictor import session
from client.tasks import table
from client.tasks.features.adapters import AdaptedText, LowRank
from client.tasks.features.sentence_encoder import SentenceEncoder
from client.tasks.losses import cross_entropy
from client.tasks.rows import Rows, TaskError
from client.tasks.schema import schema
from tests.client.dpsgd.test_zoo import sums
from tests.client.tasks.features.test_features import tiny_backbone

TEXTS = ["free prize", "see you home ok", "call", "free prize now now now"]
TOKENS = 6
SCHEMA = """
label = "kind"
norm = 2.0
[columns.age]
type = "number"
min = 0
max = 100
[columns.text]
type = "text"
backbone = "tiny"
vector = 8
digest = "{digest}"
{more}
[columns.kind]
type = "category"
values = ["ham", "spam"]
"""


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TACIT_BACKBONES", str(tmp_path))
    digest = tiny_backbone(tmp_path / "tiny").digest
    return SCHEMA.format(digest=digest, more=f"adapted = 1\ntokens = {TOKENS}\nrank = 2")


def rows_of(text: str) -> Rows:
    ages = [10.0, 20.0, 50.0, 90.0]
    kinds = ["spam", "ham", "ham", "spam"]
    encoded = table.task(text).encode(pa.table({"age": ages, "text": TEXTS, "kind": kinds}))
    assert encoded.y is not None
    return Rows(encoded.x, encoded.y)


def test_untrained_adapters_give_the_frozen_models_vectors(described: str, tmp_path: Path) -> None:
    rows = rows_of(described)
    first = next(m for m in table.task(described).model(0).modules() if isinstance(m, AdaptedText))
    seen = first.eval()(rows.x)
    assert rows.x.shape == (4, 1 + TOKENS * 8) and seen.shape == (4, 9)
    assert torch.equal(seen[:, 0], rows.x[:, 0])
    expected = SentenceEncoder(tmp_path / "tiny").vectors(TEXTS)
    assert np.allclose(seen[:, 1:].detach().numpy(), expected, atol=1e-5)


def test_sites_exchange_adapters_and_the_head_alone(described: str) -> None:
    model = table.task(described).model(0)
    trained = trained_of(model)
    layer = "0.layers.0"
    thin = {f"{layer}.{name}.{one}.weight" for name in ("query", "value") for one in ("down", "up")}
    assert {name for name in trained if name.startswith("0.")} == thin
    assert sum(p.numel() for p in trained.values()) == 2 * (2 * 8 * 2) + 9 * 2 + 2
    assert base_digest(model) == "" and set(model.state_dict()) == set(trained)


def shaken(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


@pytest.mark.long
def test_adapters_are_clipped_example_by_example(described: str) -> None:
    model = shaken(table.task(described).model(0))
    assert sums(model, rows_of(described), cross_entropy) < 1e-4


def test_merged_adapters_score_as_trained_ones(described: str) -> None:
    model, rows = shaken(table.task(described).model(0)), rows_of(described)
    assert torch.allclose(model.train()(rows.x), model.eval()(rows.x), atol=1e-5)


@pytest.mark.slow
def test_an_export_holds_the_merged_model(described: str) -> None:
    model, rows = shaken(table.task(described).model(0)).eval(), rows_of(described)
    graph = to_onnx(model, rows)
    scores = session(graph.SerializeToString())(rows.x).numpy()
    assert np.allclose(scores, model(rows.x).detach().numpy(), atol=1e-5)


def test_a_low_rank_layer_is_its_weights_and_a_product() -> None:
    layer = LowRank(torch.randn(3, 5), torch.randn(3), 2)
    x = torch.randn(4, 5)
    plain = x @ layer.weight.T + layer.bias
    assert torch.allclose(layer(x), plain, atol=1e-6)
    nn.init.ones_(layer.up.weight)
    product = layer.up.weight @ layer.down.weight
    for mode in (True, False):
        assert torch.allclose(layer.train(mode)(x), plain + x @ product.T, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("adapted = 33", "columns.text.adapted: expected a whole number from 0 to 32"),
        ("tokens = 8", "columns.text.adapted: expected how many last layers"),
        ("adapted = 1\nrank = 0", "columns.text.rank: expected a whole number from 1 to 256"),
        ("adapted = 1\ntokens = 1", "columns.text.tokens: expected a whole number from 2"),
    ],
)
def test_a_schema_of_adapters_is_refused_in_one_line(more: str, expected: str) -> None:
    with pytest.raises(TaskError, match=expected):
        schema(SCHEMA.format(digest=f"sha256:{'0' * 64}", more=more))


def test_more_adapted_layers_than_the_backbone_has_are_refused(described: str) -> None:
    with pytest.raises(TaskError, match="adapted must be at most 1"):
        rows_of(described.replace("adapted = 1", "adapted = 2"))
    with pytest.raises(TaskError, match="adapted must be 1 to 1"):
        table.task(described.replace("adapted = 1", "adapted = 2")).model(0)
