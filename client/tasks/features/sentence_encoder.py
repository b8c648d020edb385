"""Sentences as vectors by a frozen encoder of BERT's form (Devlin et al. 2019; Reimers & Gurevych
2019): the mean of the last layer's tokens, brought to length 1.

It is written out, so that it needs torch, safetensors and a tokenizer alone. Each sentence is
computed in a batch of its own length: no other sentence changes its numbers by padding.
"""

import json
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
    def _vectors(self, texts: list[str]) -> NDArray[np.float32]:
        out = np.zeros((len(texts), self.width), np.float32)
        ids = [one.ids for one in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        start = 0
        while start < len(order):
            length = len(ids[order[start]])
            batch = [i for i in order[start : start + _BATCH] if len(ids[i]) == length]
            out[batch] = self._batch(torch.tensor([ids[i] for i in batch])).numpy()
            start += len(batch)
        return out

    def _batch(self, ids: Tensor) -> Tensor:
        rows, length = ids.shape
        words = self.weights["embeddings.word_embeddings.weight"][ids]
        places = self.weights["embeddings.position_embeddings.weight"][:length]
        kind = self.weights["embeddings.token_type_embeddings.weight"][0]
        h = self._norm(words + places + kind, "embeddings.LayerNorm")
        for number in range(self.layers):
            layer = f"encoder.layer.{number}"
            q, k, v = (
                self._linear(h, f"{layer}.attention.self.{name}")
                .view(rows, length, self.heads, -1)
                .transpose(1, 2)
                for name in ("query", "key", "value")
            )
            mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            seen = self._linear(mixed.reshape(rows, length, -1), f"{layer}.attention.output.dense")
            h = self._norm(seen + h, f"{layer}.attention.output.LayerNorm")
            wide = functional.gelu(self._linear(h, f"{layer}.intermediate.dense"))
            back = self._linear(wide, f"{layer}.output.dense")
            h = self._norm(back + h, f"{layer}.output.LayerNorm")
        return functional.normalize(h.mean(1), dim=1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.linear(x, weight, bias)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(x, (self.width,), weight, bias, self.eps)


@lru_cache(maxsize=1)
def sentence_encoder(folder: Path, digest: str) -> SentenceEncoder:
    """The encoder of a folder whose digest was seen to be the wanted one."""
    return SentenceEncoder(folder)
