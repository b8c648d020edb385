"""A zoo of usual models: each trains as autograd does, example by example, or hears what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from client.dpsgd.clipping import BookKeeping
from client.dpsgd.examination.made_up_rows import Domain
from client.dpsgd.examination.separation import examine
from client.dpsgd.fused.twins import private_twins
from client.dpsgd.per_sample import ModelError
from client.dpsgd.trees import cut
from client.tasks.rows import Rows
from tests.support.small_models import TIME, WIDTH, WORDS, InEval, Made, cross_entropy, data, words

CLIP = 0.5
Loss = Callable[[Any, Tensor], Tensor]


def sums(model: nn.Module, rows: Rows, loss: Loss = cross_entropy) -> float:
    """The largest difference of the clipped sum from one-by-one autograd's, relative to it."""
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    expected = [torch.zeros_like(p) for p in weights]
    for i in range(len(rows)):
        part = slice(i, i + 1)
        lost = loss(model(cut(rows.x, part)), rows.y[part]).sum()
        one = torch.autograd.grad(lost, weights, allow_unused=True)
        each = [torch.zeros_like(p) if g is None else g for p, g in zip(weights, one, strict=True)]
        norm = float(torch.cat([g.flatten() for g in each]).norm())
        for total, g in zip(expected, each, strict=True):
            total += g * min(1.0, CLIP / max(norm, 1e-12))
    book = BookKeeping(model, clip=CLIP)
    try:
        examine(book, Domain.of(rows.x, rows.y), loss)
        book.accumulate(rows.x, rows.y, loss)
        found = torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in weights]
        )
    finally:
        book.to_standard_module()
    whole = torch.cat([g.flatten() for g in expected])
    return float((found - whole).norm() / whole.norm())


class Residual(nn.Module):
    """The two forms of a block's end: torchvision writes into the sum."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.b, self.m = nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.head, self.in_place = nn.Linear(4, 2), in_place

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.n(self.a(x)), inplace=self.in_place)
        out = self.m(self.b(h))
        if self.in_place:
            out += h
        else:
            out = out + h
        pooled: Tensor = self.head(functional.relu(out).mean((2, 3)))
        return pooled


def convolutions(norm: nn.Module) -> nn.Module:
    parts = [nn.Conv2d(3, 4, 3), norm, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(16, 2))


def frozen(norm: nn.Module) -> nn.Module:
    model = nn.Sequential(norm, nn.Linear(WIDTH, 2))
    norm.requires_grad_(False)
    return model


def encoder(**more: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True, **more)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Made(lambda m, x: m.h(m.t(x).mean(1)), t=stack, h=nn.Linear(WIDTH, 2))


def recurrent(kind: type[nn.Module], **more: Any) -> nn.Module:
    size = 5 * (2 if more.get("bidirectional") else 1)
    return Made(
        lambda m, x: m.h(m.l(x)[0][:, -1]),
        l=kind(WIDTH, 5, batch_first=True, **more),
        h=nn.Linear(size, 2),
    )


def attention() -> nn.Module:
    return Made(
        lambda m, x: m.h(m.m(x, x, x)[0].mean(1)),
        m=nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        h=nn.Linear(WIDTH, 2),
    )


def tied() -> nn.Module:
    table, out = nn.Embedding(WORDS, 5), nn.Linear(5, WORDS, bias=False)
    out.weight = table.weight
    return Made(lambda m, x: m.o(m.e(x)).mean(1), e=table, o=out)


TRAINS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "CNN, GroupNorm, ReLU in place": (lambda: convolutions(nn.GroupNorm(2, 4)), "images"),
    "CNN, affine InstanceNorm": (lambda: convolutions(nn.InstanceNorm2d(4, affine=True)), "images"),
    "ResNet, relu(f(x) + x)": (lambda: Residual(in_place=False), "images"),
    "ResNet, h += x": (lambda: Residual(in_place=True), "images"),
    "frozen BatchNorm in eval": (lambda: InEval(*frozen(nn.BatchNorm1d(WIDTH))), "flat"),
    "frozen GroupNorm": (lambda: frozen(nn.GroupNorm(2, WIDTH)), "flat"),
    "PReLU": (lambda: nn.Sequential(nn.Linear(WIDTH, 4), nn.PReLU(4), nn.Linear(4, 2)), "flat"),
    "RMSNorm": (lambda: nn.Sequential(nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 2)), "flat"),
    "LayerNorm": (lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)), "flat"),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(WIDTH, 4)), nn.Linear(4, 2)),
        "flat",
    ),
    "ConvTranspose2d": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 2, 3), nn.Flatten(), nn.Linear(288, 2)),
        "images",
    ),
    "Conv3d": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(128, 2)
        ),
        "images",
    ),
    "a temperature": (
        lambda: Made(lambda m, x: m.h(x) * m.t, t=nn.Parameter(torch.tensor(2.0)),
                     h=nn.Linear(WIDTH, 2)), "flat"),
    "Bilinear": (lambda: Made(lambda m, x: m.b(x, x), b=nn.Bilinear(8, 8, 2)), "flat"),
    "positions [1, T]": (
        lambda: words(lambda m, x: m.h((m.e(x) + m.p(torch.arange(TIME)[None])).mean(1)),
                      p=nn.Embedding(TIME, 5)), "ids"),
    "a tied head": (tied, "ids"),
    "LSTM, twin": (lambda: private_twins(recurrent(nn.LSTM)), "sequence"),
    "LSTM of two layers both ways, twin": (
        lambda: private_twins(recurrent(nn.LSTM, num_layers=2, bidirectional=True)), "sequence"),
    "GRU, twin": (lambda: private_twins(recurrent(nn.GRU)), "sequence"),
    "RNN, twin": (lambda: private_twins(recurrent(nn.RNN)), "sequence"),
    "attention, twin": (lambda: private_twins(attention()), "sequence"),
    "TransformerEncoder, twin": (lambda: private_twins(encoder()), "sequence"),
    "TransformerEncoder, norm first, twin": (
        lambda: private_twins(encoder(norm_first=True, activation="gelu")), "sequence"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINS)
def test_a_model_of_the_zoo_trains_as_autograd_does(name: str) -> None:
    torch.manual_seed(0)
    build, kind = TRAINS[name]
    assert sums(build(), data(kind, 7)) < 1e-5


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "BatchNorm": (
        lambda: convolutions(nn.BatchNorm2d(4)), "images", r"1 \(BatchNorm2d\).*GroupNorm"),
    "frozen BatchNorm": (lambda: frozen(nn.BatchNorm1d(WIDTH)), "flat", r"0 \(BatchNorm1d\).*eval"),
    "BatchNorm without weights": (
        lambda: frozen(nn.BatchNorm1d(WIDTH, affine=False)), "flat", r"0 \(BatchNorm1d\)"),
    "LSTM": (lambda: recurrent(nn.LSTM), "sequence", r"l \(LSTM\).*private_twins"),
    "GRU": (lambda: recurrent(nn.GRU), "sequence", r"l \(GRU\).*private_twins"),
    "attention": (attention, "sequence", r"m \(MultiheadAttention\).*private_twins"),
    "TransformerEncoder": (
        encoder, "sequence", r"t\.layers\.0\.self_attn \(MultiheadAttention\).*private_twins"),
    "EmbeddingBag": (
        lambda: nn.Sequential(nn.EmbeddingBag(WORDS, 5), nn.Linear(5, 2)), "ids", "EmbeddingBag"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_any_other_is_refused_in_one_line_with_its_module_and_what_to_do(name: str) -> None:
    torch.manual_seed(0)
    build, kind, expected = REFUSED[name]
    rows, model = data(kind, 7), build().train()
    with pytest.raises(ModelError, match=expected) as refused:
        book = BookKeeping(model, clip=CLIP)
        examine(book, Domain.of(rows.x, rows.y), cross_entropy)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        lambda: recurrent(nn.GRU),
        attention,
        encoder,
    ],
    ids=["LSTM", "GRU", "attention", "encoder"],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_twin_keeps_the_weights(build: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    model, x = build().train(training), data("sequence", 5).x
    with torch.no_grad():
        before = model(x)
        after = private_twins(model)(x)
    assert torch.allclose(before, after, atol=1e-5)


def test_a_twin_of_attention_takes_torchs_masks() -> None:
    torch.manual_seed(0)
    source = nn.MultiheadAttention(WIDTH, 2, batch_first=True).eval()
    x, other = torch.randn(3, TIME, WIDTH), torch.randn(3, 4, WIDTH)
    padding = torch.arange(4)[None] >= torch.tensor([4, 2, 3])[:, None]
    causal = nn.Transformer.generate_square_subsequent_mask(TIME)
    twin = private_twins(source)
    for arguments, more in (
        ((x, x, x), {"attn_mask": causal, "is_causal": True}),
        ((x, x, x), {"attn_mask": causal < 0, "need_weights": False}),
        ((x, other, other), {"key_padding_mask": padding}),
        ((x, other, other), {"key_padding_mask": padding, "average_attn_weights": False}),
    ):
        expected, found = source(*arguments, **more), twin(*arguments, **more)
        assert torch.allclose(expected[0], found[0], atol=1e-5)
        assert (expected[1] is None) is (found[1] is None)
        if expected[1] is not None:
            assert torch.allclose(expected[1], found[1], atol=1e-5)
    with pytest.raises(ModelError, match="add_bias_kv"):
        private_twins(nn.Sequential(nn.MultiheadAttention(WIDTH, 2, add_bias_kv=True)))


SIZES = {"vocab_size": WORDS, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}


def hugging_face(name: str, lora: bool) -> nn.Module:
    """A tiny model of random weights, by its configuration alone."""
    transformers = pytest.importorskip("transformers")
    if name == "bert":
        size = {**SIZES, "num_attention_heads": 2, "max_position_embeddings": 16}
        config = transformers.BertConfig(**size, num_labels=2, hidden_dropout_prob=0.0,
                                         attention_probs_dropout_prob=0.0)  # fmt: skip
        model, targets = transformers.BertForSequenceClassification(config), ["query", "value"]
    elif name == "gpt2":
        config = transformers.GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=2, n_head=2,
                                         n_positions=16, num_labels=2, pad_token_id=0,
                                         resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)  # fmt: skip
        model, targets = transformers.GPT2ForSequenceClassification(config), ["c_attn"]
    else:
        config = transformers.LlamaConfig(**SIZES, num_attention_heads=2, num_labels=2,
                                          pad_token_id=0)  # fmt: skip
        model, targets = transformers.LlamaForSequenceClassification(config), ["q_proj", "v_proj"]
    if lora:
        peft = pytest.importorskip("peft")
        wanted = peft.LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS")
        model = peft.get_peft_model(model, wanted)
    return Made(lambda m, x: m.net(x).logits, net=model)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_models_of_hugging_face_train(name: str, lora: bool) -> None:
    torch.manual_seed(0)
    assert sums(hugging_face(name, lora), data("ids", 5)) < 1e-5


def test_dictionaries_and_several_heads_train() -> None:
    torch.manual_seed(0)
    model = Made(
        lambda m, x: {"a": m.a(m.e(x["ids"]).mean(1)), "b": m.b(x["numbers"])},
        e=nn.Embedding(WORDS, 5), a=nn.Linear(5, 2), b=nn.Linear(WIDTH, 1),
    )  # fmt: skip
    x = {"ids": data("ids", 7).x, "numbers": data("flat", 7).x}

    def loss(out: Any, y: Tensor) -> Tensor:
        return cross_entropy(out["a"], y) + (out["b"][:, 0] - y) ** 2

    assert sums(model, Rows(x, torch.randint(0, 2, (7,))), loss) < 1e-5
