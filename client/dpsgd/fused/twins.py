"""Private twins of torch's fused layers: recurrent networks and attention, in parts.

Their weights are kept and their results are the same; only the names of weights differ, so that a
state_dict of the one does not fit the other.
"""

from typing import Any, Final

import torch
from opacus.layers import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd.per_sample import ModelError

_RECURRENT: Final[dict[type[nn.Module], type[nn.Module]]] = {
    nn.LSTM: DPLSTM,
    nn.GRU: DPGRU,
    nn.RNN: DPRNN,
}


def private_twins(model: nn.Module) -> nn.Module:
    """The model with a twin in the place of every LSTM, GRU, RNN and attention, weights kept.

    Parts are replaced inside the model that is given. ModelError names a part that has no twin.
    """
    twins: dict[nn.Module, nn.Module] = {}
    for path, part in list(model.named_modules(remove_duplicate=False)):
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = part.enable_nested_tensor = False  # torch's fused way in eval
        twin = twins.get(part) or _twin(path, part)
        if twin is None:
            continue
        twins[part] = twin.train(part.training)
        if not path:
            return twin
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, twin)
    return model


def _twin(path: str, part: nn.Module) -> nn.Module | None:
    kind = next((k for k in _RECURRENT if type(part) is k), None)
    if kind is not None:
        return _recurrent(path, part, _RECURRENT[kind])
    if type(part) is nn.MultiheadAttention:
        if part.bias_k is not None or part.add_zero_attn:
            raise ModelError(f"{path}: add_bias_kv and add_zero_attn must be left out for a twin")
        twin = Attention(part)
        for parameter, source in zip(twin.parameters(), part.parameters(), strict=False):
            parameter.requires_grad_(source.requires_grad)
        return twin
    return None


def _recurrent(path: str, part: Any, kind: Any) -> nn.Module:
    if getattr(part, "proj_size", 0):
        raise ModelError(f"{path}: proj_size must be 0 for a twin, got {part.proj_size}")
    more = {"nonlinearity": part.nonlinearity} if type(part) is nn.RNN else {}
    twin: nn.Module = kind(
        part.input_size,
        part.hidden_size,
        num_layers=part.num_layers,
        bias=part.bias,
        batch_first=part.batch_first,
        dropout=part.dropout,
        bidirectional=part.bidirectional,
        **more,
    )
    twin.load_state_dict(part.state_dict())
    trained = any(p.requires_grad for p in part.parameters())
    return twin.requires_grad_(trained)


class Attention(nn.Module):
    """`nn.MultiheadAttention` as four linear layers and torch's own product of attention."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = source.embed_dim, source.num_heads
        self.dropout, self.batch_first = source.dropout, source.batch_first
        # What torch's encoder layer looks at: with these it takes the way through this module.
        self.in_proj_weight = self.in_proj_bias = None
        self._qkv_same_embed_dim = False
        if source.in_proj_weight is not None:
            weights = source.in_proj_weight.detach().chunk(3)
        else:
            weights = tuple(
                getattr(source, f"{name}_proj_weight").detach() for name in ("q", "k", "v")
            )
        bias = source.in_proj_bias
        biases = (None,) * 3 if bias is None else bias.detach().chunk(3)
        self.q, self.k, self.v = (
            _linear(weight, one) for weight, one in zip(weights, biases, strict=True)
        )
        out = source.out_proj
        self.out_proj = _linear(
            out.weight.detach(), None if out.bias is None else out.bias.detach()
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if query.dim() != 3:
            raise ModelError("attention: must be called with a batch, [B, T, F] or [T, B, F]")
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._heads(self.q(query)), self._heads(self.k(key)), self._heads(self.v(value))
        mask = self._mask(attn_mask, key_padding_mask, q)
        drop = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
            mixed = functional.dropout(weights, drop) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, drop)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return heads

    def _mask(self, attention: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to the scores [B, heads, T, S]; torch's masks are True where none looks."""
        mask = None
        if attention is not None:
            mask = _added(attention, q)
            mask = mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask
        if padding is not None:
            hidden = _added(padding, q)[:, None, None, :]
            mask = hidden if mask is None else mask + hidden
        return mask


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
