"""Sentences as vectors by a frozen encoder of BERT's form (Devlin et al. 2019; Reimers & Gurevych
2019): the mean of the last layer's tokens, brought to length 1.

It is written out, so that it needs torch, safetensors and a tokenizer alone. Each sentence is
computed in a batch of its own length: no other sentence changes its numbers by padding.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from client.tasks.rows import TaskError

TOKENS: Final = 128
"""Tokens of a sentence that are read; the rest is left out."""
_BATCH: Final = 32
_KEPT: Final = 20_000


class SentenceEncoder:
    """`vectors(texts)` are [n, width], each of length 1."""

    def __init__(self, folder: Path) -> None:
        """Read a backbone's folder; TaskError where it is none of BERT's form."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise TaskError("backbone: needs tokenizers (pip install 'tacit[text]')") from None
        from safetensors.torch import load_file

        try:
            facts: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
            if facts.get("model_type") != "bert" or facts.get("hidden_act", "gelu") != "gelu":
                raise TaskError(f"{folder}: expected a model of BERT's form")
            self.width = int(facts["hidden_size"])
            self.layers = int(facts["num_hidden_layers"])
            self.heads = int(facts["num_attention_heads"])
            self.eps = float(facts.get("layer_norm_eps", 1e-12))
            self.tokens = min(TOKENS, int(facts.get("max_position_embeddings", TOKENS)))
            read = load_file(folder / "model.safetensors")
            self.weights = {n.removeprefix("bert."): t.float() for n, t in read.items()}
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, TaskError):
                raise
            raise TaskError(f"{folder}: expected a whole backbone, got a damaged one") from None
        self.tokenizer.enable_truncation(self.tokens)
        self.tokenizer.no_padding()
        self._last: dict[str, NDArray[np.float32]] = {}

    def vectors(self, texts: list[str]) -> NDArray[np.float32]:
        """Each text's vector, [n, width]; the last thousands of texts are computed once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._last]
        known = {text: self._last[text] for text in texts if text in self._last}
        known |= dict(zip(new, self._vectors(new), strict=True))
        self._last = dict(list((self._last | known).items())[-_KEPT:])
        if not texts:
            return np.zeros((0, self.width), np.float32)
        return np.stack([known[text] for text in texts])

    @torch.inference_mode()
    def tokens_of(self, texts: list[str], layers: int, most: int) -> NDArray[np.float32]:
        """Each text's tokens after so many layers, [n, most, width]; rows of zeros fill them up."""
        out = np.zeros((len(texts), most, self.width), np.float32)
        for some, ids in self._alike(
            [one.ids[:most] for one in self.tokenizer.encode_batch(texts)]
        ):
            out[some, : ids.shape[1]] = self._through(ids, layers).numpy()
        return out

    def layer(self, number: int) -> dict[str, Tensor]:
        """The weights of a layer by their names within it."""
        first = f"encoder.layer.{number}."
        return {n.removeprefix(first): t for n, t in self.weights.items() if n.startswith(first)}

    @torch.inference_mode()
    def _vectors(self, texts: list[str]) -> NDArray[np.float32]:
        out = np.zeros((len(texts), self.width), np.float32)
        for some, ids in self._alike([one.ids for one in self.tokenizer.encode_batch(texts)]):
            tokens = self._through(ids, self.layers)
            out[some] = functional.normalize(tokens.mean(1), dim=1).numpy()
        return out

    def _alike(self, ids: list[list[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of texts of one length: their places, and their ids [b, length]."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        start = 0
        while start < len(order):
            length = len(ids[order[start]])
            batch = [i for i in order[start : start + _BATCH] if len(ids[i]) == length]
            yield batch, torch.tensor([ids[i] for i in batch])
            start += len(batch)

    def _through(self, ids: Tensor, layers: int) -> Tensor:
        length = ids.shape[1]
        words = self.weights["embeddings.word_embeddings.weight"][ids]
        places = self.weights["embeddings.position_embeddings.weight"][:length]
        kind = self.weights["embeddings.token_type_embeddings.weight"][0]
        weight, bias = (self.weights[f"embeddings.LayerNorm.{n}"] for n in ("weight", "bias"))
        summed = words + places + kind
        h = functional.layer_norm(summed, (self.width,), weight, bias, self.eps)
        for number in range(layers):
            h = encoder_layer(h, self.layer(number), heads=self.heads, eps=self.eps)
        return h


Project = Callable[[Tensor], Tensor]


def encoder_layer(
    h: Tensor,
    weights: Mapping[str, Tensor],
    *,
    heads: int,
    eps: float,
    mask: Tensor | None = None,
    query: Project | None = None,
    value: Project | None = None,
) -> Tensor:
    """One layer of BERT's form over [B, T, width]: attention and a small network, each normalised.

    `mask` [B, 1, 1, T] is true of the tokens that are seen; `query` and `value` take the place of
    these two projections.
    """
    rows, length, width = h.shape

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.layer_norm(x, (width,), weight, bias, eps)

    projected = (
        query(h) if query is not None else linear(h, "attention.self.query"),
        linear(h, "attention.self.key"),
        value(h) if value is not None else linear(h, "attention.self.value"),
    )
    q, k, v = (one.view(rows, length, heads, width // heads).transpose(1, 2) for one in projected)
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    seen = linear(mixed.reshape(rows, length, width), "attention.output.dense")
    h = norm(seen + h, "attention.output.LayerNorm")
    wide = functional.gelu(linear(h, "intermediate.dense"))
    return norm(linear(wide, "output.dense") + h, "output.LayerNorm")


@lru_cache(maxsize=1)
def sentence_encoder(folder: Path, digest: str) -> SentenceEncoder:
    """The encoder of a folder whose digest was seen to be the wanted one."""
    return SentenceEncoder(folder)
