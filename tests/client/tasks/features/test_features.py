"""Public features: texts by hash, vocabulary and backbone; rows of one length; random features."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from client.inference.onnx_export import to_onnx
from client.inference.predictor import session
from client.models.loading import load
from client.models.provenance import Trust
from client.tasks.features.backbones import FILES, Backbone, digest_of
from client.tasks.features.public_layers import RandomFeatures, RowNorm
from client.tasks.features.sentence_encoder import SentenceEncoder
from client.tasks.features.text import Text
from client.tasks.registry import task, task_of
from client.tasks.rows import Rows, TaskError
from tests.support.models import plan_for, release

SCHEMA = """
label = "kind"
header = ["kind", "text"]
delimiter = "\\t"
quote = ""
{more}

[columns.text]
type = "text"
{how}

[columns.kind]
type = "category"
values = ["ham", "spam"]
"""
LINES = ["ham\tsee you at home", 'spam\t"WIN" a prize, call now', "ham\tok", 'ham\t"not closed', ""]


def test_a_text_is_the_same_vector_of_length_1_whatever_stands_beside_it() -> None:
    column = Text("text", hashed=64)
    alone = column.encode(pa.array(["free prize now"]))[0]
    among, wrong, gone = column.encode(pa.array(["hello", "free prize now", None, " "]))
    assert np.array_equal(alone[0], among[1])
    assert np.linalg.norm(alone) == pytest.approx(1, abs=1e-6)
    assert gone.tolist() == [False, False, True, True] and not wrong.any()
    assert not np.allclose(among[0], among[1])


def test_a_vocabulary_counts_its_own_words_alone() -> None:
    column = Text("text", vocabulary=("Win", "call"))
    rows = column.encode(pa.array(["win WIN! call", "nothing", "call me"]))[0]
    one, two = 1 + np.log(2), 1.0
    length = np.hypot(one, two)
    assert rows.tolist() == pytest.approx(
        np.array([[one / length, two / length], [0, 0], [0, 1]]), abs=1e-6
    )


def test_a_table_of_texts_needs_no_header_where_its_schema_says_the_columns(tmp_path: Path) -> None:
    file = tmp_path / "sms.tsv"
    file.write_text("\n".join(LINES))
    (tmp_path / "README.txt").write_text("about the file")
    learning = task("table", SCHEMA.format(how="hashed = 32", more="norm = 3.0"))
    rows = learning.load(tmp_path, "all")
    assert rows.y.tolist() == [0, 1, 0, 0] and rows.x.shape == (4, 32)
    model = learning.model(0)
    assert isinstance(model[0], RowNorm)
    assert model[0](rows.x).norm(dim=1).tolist() == pytest.approx([3.0] * 4, abs=1e-4)


@pytest.mark.parametrize(
    ("how", "more", "said"),
    [
        ("hashed = 1", "", "columns.text.hashed: expected 2 to"),
        ('hashed = 8\nvocabulary = ["a"]', "", "expected one of hashed, vocabulary and backbone"),
        ('vocabulary = ["a", "A"]', "", "columns.text.vocabulary: expected a list of different"),
        ('backbone = "x"', "", 'columns.text.digest: expected "sha256:"'),
        (f'backbone = "x"\ndigest = "sha256:{"0" * 64}"', "", "columns.text.vector: expected how"),
        (f'digest = "sha256:{"0" * 64}"', "", "columns.text.digest: expected a backbone beside"),
        ("", "norm = -1", "norm: expected a number from 0.001"),
        ("", "random = 1", "random: expected 2 to"),
        ("", 'header = ["a", "a"]', "header: expected the different names"),
        ("", 'quote = "ab"', "quote: expected one character"),
    ],
)
def test_what_a_schema_says_wrongly_of_texts_is_refused_by_its_key(
    how: str, more: str, said: str
) -> None:
    given = SCHEMA.format(how=how, more=more)
    if more.startswith(("header", "quote")):
        key = more.split(" ")[0]
        given = "\n".join(
            line for line in given.split("\n") if not line.startswith(key) or line == more
        )
    with pytest.raises(TaskError, match="schema: ") as refused:
        task("table", given)
    assert said in str(refused.value)


def test_random_features_approach_a_centred_gaussian_kernel_and_have_one_length() -> None:
    layer = RandomFeatures(40, 4096, 0.8, 1.0)
    draw = torch.Generator().manual_seed(0)
    x = nn.functional.normalize(torch.randn(3, 40, generator=draw))
    features = layer(x)
    assert features.norm(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    kernel = torch.exp(-0.32 * torch.cdist(x, x) ** 2)
    anywhere = torch.exp(torch.tensor(-0.64))  # two rows of length 1 in any directions
    expected = (kernel - anywhere) / (1 - anywhere)
    assert torch.allclose(features @ features.T, expected, atol=0.06)
    again = RandomFeatures(40, 4096, 0.8, 1.0)
    assert torch.equal(layer.projection, again.projection)
    assert not layer.state_dict()


def test_random_features_spend_none_of_their_length_on_a_constant() -> None:
    draw = torch.Generator().manual_seed(0)
    x = 0.5 * nn.functional.normalize(torch.randn(2000, 40, generator=draw))
    assert float(RandomFeatures(40, 256, 1.0, 1.0)(x).mean(0).norm()) < 0.05
    assert torch.equal(RandomFeatures(40, 256, 1.0, 1.0)(0 * x[:1]), torch.zeros(1, 256))


@pytest.mark.long
@pytest.mark.parametrize("first", [RowNorm(2.0), RandomFeatures(5, 16, 0.7, 2.0)])
def test_an_exported_graph_holds_the_first_layers(first: nn.Module) -> None:
    model = nn.Sequential(first, nn.Linear(5 if isinstance(first, RowNorm) else 16, 3)).eval()
    x = torch.randn(7, 5)
    scores = session(to_onnx(model, Rows(x, torch.zeros(7))).SerializeToString())(x).numpy()
    assert np.allclose(scores, model(x).detach().numpy(), atol=1e-5)


def tiny_backbone(folder: Path, width: int = 8) -> Backbone:
    """A sentence encoder of random weights, as a backbone's folder."""
    tokenizers = pytest.importorskip("tokenizers")
    folder.mkdir(parents=True)
    words = ["[UNK]", "free", "prize", "see", "you", "home", "ok", "call", "now"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }
    (folder / "config.json").write_text(json.dumps(facts))
    draw = torch.Generator().manual_seed(1)
    shapes = {
        "embeddings.word_embeddings.weight": (len(words), width),
        "embeddings.position_embeddings.weight": (16, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for name, (out, into) in {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (16, width),
        "output.dense": (width, 16),
    }.items():
        shapes[f"encoder.layer.0.{name}.weight"] = (out, into)
        shapes[f"encoder.layer.0.{name}.bias"] = (out,)
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes[f"encoder.layer.0.{name}.weight"] = (width,)
        shapes[f"encoder.layer.0.{name}.bias"] = (width,)
    weights = {n: torch.randn(shape, generator=draw) for n, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return Backbone(folder.name, digest_of(folder))


def test_a_backbone_sees_each_sentence_by_itself(tmp_path: Path) -> None:
    tiny_backbone(tmp_path / "tiny")
    texts = ["free prize", "see you home ok", "call", "free prize now now now"]
    together = SentenceEncoder(tmp_path / "tiny").vectors(texts)
    apart = np.concatenate([SentenceEncoder(tmp_path / "tiny").vectors([t]) for t in texts])
    assert np.allclose(together, apart, atol=1e-6)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    encoder = SentenceEncoder(tmp_path / "tiny")
    assert np.array_equal(encoder.vectors(texts), encoder.vectors(list(reversed(texts)))[::-1])


def test_a_backbone_of_other_bytes_or_of_another_width_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACIT_BACKBONES", str(tmp_path))
    backbone = tiny_backbone(tmp_path / "tiny")
    column = Text("text", backbone=backbone, vector=8)
    assert column.encode(pa.array(["free"]))[0].shape == (1, 8)
    with pytest.raises(TaskError, match="vector must be 8, got 9"):
        Text("text", backbone=backbone, vector=9).encode(pa.array(["free"]))
    with (tmp_path / "tiny" / FILES[0]).open("a") as file:
        file.write(" ")
    with pytest.raises(TaskError, match="backbone tiny: digest must be sha256:"):
        column.encode(pa.array(["free"]))
    with pytest.raises(TaskError, match="backbone other: must be installed, or be a folder"):
        Text("text", backbone=Backbone("other", backbone.digest), vector=8).encode(pa.array(["a"]))


def test_the_card_says_what_pretraining_no_guarantee_covers(tmp_path: Path) -> None:
    digest = f"sha256:{'0' * 64}"
    how = f'backbone = "tiny"\nvector = 8\ndigest = "{digest}"'
    plan = replace(plan_for("digits"), task="table", schema=SCHEMA.format(how=how, more=""))
    path = release(tmp_path / "run", plan=plan, network=task_of(plan).model(0))
    limits = load(path, Trust()).card.limits
    assert any("No guarantee covers" in one and digest in one for one in limits)
