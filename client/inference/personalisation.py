"""Personalisation that stays at home: a released model fitted to the site's own rows, unprotected.

Either its last layer, or all that was trained, held near the released weights (Ditto: Li et al.
2021, whose personal model minimises the site's own loss plus lambda / 2 |v - w|^2).

What comes out carries its site's rows without any protection. Its file says so, is signed by the
site alone, and every command that shares or exports models refuses it.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor, nn

from client.dpsgd.trees import cut, tensors
from client.dpsgd.weights import trained_of
from client.inference.predictor import predictor
from client.models.loading import Model, ModelError
from client.tasks.rows import Rows

Loss = Callable[[Tensor, Tensor], Tensor]
FEWEST: Final = 40
HELD_OUT: Final = 0.25
STEPS: Final = 300
PULLS: Final = (100.0, 1.0, 0.1, 0.01, 0.001)
"""How strongly the weights are held near the released ones, from hardly moved to free."""
EPOCHS: Final = 60
PATIENCE: Final = 5
"""Passes over the rows: at most so many, and so many more once the held-out loss falls no more."""
_BATCH: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Adapted:
    """The adapted model's file, and its metrics on held-out rows before and after."""

    content: bytes
    rows: int
    before: dict[str, float]
    after: dict[str, float]

    @property
    def better(self) -> bool:
        """Whether the held-out loss fell."""
        return self.after["loss"] < self.before["loss"]


def adapt(model: Model, rows: Rows, site: str, *, whole: bool = False) -> Adapted:
    """Fit a model to `rows`, as near to the released weights as suits them.

    The last linear layer alone (of a model with several heads, each head's), or with `whole` all
    that was trained. A quarter of the rows is held out to say what it brought. How strongly the
    weights are pulled back is chosen on a quarter of the others, on which a whole model stops too.
    """
    if model.network is None:
        raise ModelError(
            f"{model.path}: adapting needs gradients: expected a checkpoint or .safetensors file"
        )
    if len(rows) < FEWEST:
        raise ModelError(f"data: expected at least {FEWEST} labelled rows, got {len(rows)}")
    network, task = model.network, model.task
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    held = int(len(rows) * HELD_OUT)
    test, train = rows.take(order[:held]), rows.take(order[held:])
    before = _measured(model, test)
    if whole:
        fit_whole(network, train, task.loss)
        change = "all trained layers fitted to one site's rows, without privacy"
    else:
        _fit_heads(network, train, task.loss)
        change = "last layer fitted to one site's rows, without privacy"
    after = _measured(model, test)
    metadata = model.metadata | {
        "private_to": site,
        "changes": json.dumps([*model.card.changes, change]),
    }
    for name in ("card", "base"):  # the file holds the whole model, frozen parts too
        metadata.pop(name, None)
    content = save({n: t.clone() for n, t in network.state_dict().items()}, metadata=metadata)
    return Adapted(content, len(train), before, after)


def _heads(network: nn.Module, x: Any) -> list[nn.Linear]:
    """The linear layers whose results are the model's outputs; else the last linear layer."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ModelError("adapt: expected a model that ends with a linear layer")
    results: list[tuple[nn.Linear, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, result: results.append((layer, result)))
        for layer in layers
    ]
    try:
        with torch.no_grad():
            outputs = {t.data_ptr() for t in tensors(network(x))}
    finally:
        for hook in hooks:
            hook.remove()
    return [layer for layer, result in results if result.data_ptr() in outputs] or layers[-1:]


@dataclass(frozen=True, slots=True, eq=False)
class _Features:
    """What reaches the heads, and what they make of it, where the model ends in one of them."""

    layer: nn.Linear
    x: Tensor

    def __call__(self, at: Any) -> Any:
        return self.layer(self.x[at])


@dataclass(frozen=True, slots=True, eq=False)
class _Whole:
    """The whole model on rows, for one that goes on behind its heads."""

    network: nn.Module
    x: Any

    def __call__(self, at: Any) -> Any:
        return self.network(cut(self.x, at))


def _kept(network: nn.Module, heads: list[nn.Linear], x: Any) -> Callable[[Any], Any]:
    """How outputs are had of rows: from the one head's inputs, where these are all there is."""
    if len(heads) > 1:
        return _Whole(network, x)
    seen: list[Tensor] = []
    hook = heads[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    count = len(tensors(x)[0])
    try:
        with torch.no_grad():
            begins = range(0, count, 4096)
            outputs = [network(cut(x, slice(i, i + 4096))) for i in begins]
            features = torch.cat(seen) if seen else torch.zeros(0)
            if not all(isinstance(one, Tensor) for one in outputs) or len(features) != count:
                return _Whole(network, x)
            alone = heads[0](features)
    finally:
        hook.remove()
    whole = torch.cat(outputs)
    same = alone.shape == whole.shape and bool(torch.allclose(alone, whole, atol=1e-5))
    return _Features(heads[0], features) if same else _Whole(network, x)


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """Weights of a model, fitted to rows and pulled towards the released ones.

    `outputs(at)` are the model's of the rows at `at`, `y` the labels of all rows.
    """

    weights: list[nn.Parameter]
    released: list[Tensor]
    outputs: Callable[[Any], Any]
    y: Tensor
    loss: Loss

    def step(self, optimizer: torch.optim.Adam, at: Any, strength: float) -> None:
        """One step down the mean loss and `strength` times the squared distance."""
        optimizer.zero_grad()
        pairs = zip(self.weights, self.released, strict=True)
        distance = sum(((p - old) ** 2).sum() for p, old in pairs)
        (self.loss(self.outputs(at), self.y[at]).mean() + strength * distance).backward()
        optimizer.step()

    def lost(self, at: slice) -> float:
        """The mean loss of rows."""
        with torch.inference_mode():
            return float(self.loss(self.outputs(at), self.y[at]).mean())

    def set(self, values: list[Tensor]) -> None:
        """Give the weights these values."""
        with torch.no_grad():
            for p, value in zip(self.weights, values, strict=True):
                p.copy_(value)


def _copies(weights: list[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in weights]


def _fit_heads(network: nn.Module, rows: Rows, loss: Loss) -> None:
    """Fit the last layers to all rows, with the pull that loses least on rows left out before."""
    heads = _heads(network, rows.take(range(2)).x)
    weights = [p for head in heads for p in head.parameters()]
    fit = _Fit(weights, _copies(weights), _kept(network, heads, rows.x), rows.y, loss)
    network.requires_grad_(False)
    for p in weights:
        p.requires_grad_(True)
    count, held = len(rows), int(len(rows) * HELD_OUT)

    def descend(at: slice, pull: float) -> None:
        optimizer = torch.optim.Adam(weights, lr=0.01)
        for _ in range(STEPS):
            fit.step(optimizer, at, pull)

    losses = {}
    for pull in PULLS:
        descend(slice(held, count), pull)
        losses[pull] = fit.lost(slice(0, held))
        fit.set(fit.released)
    descend(slice(0, count), min(PULLS, key=lambda pull: losses[pull]))


def fit_whole(network: nn.Module, rows: Rows, loss: Loss) -> None:
    """Leave a model with the weights, of all pulls and passes, of the least held-out loss.

    Those are the released ones where nothing is better. The model stays in the mode of evaluation:
    what is frozen in it keeps its statistics.
    """
    network.eval()
    weights = list(trained_of(network).values())
    fit = _Fit(weights, _copies(weights), _Whole(network, rows.x), rows.y, loss)
    held = int(len(rows) * HELD_OUT)
    best, least = fit.released, fit.lost(slice(0, held))
    for pull in PULLS:
        fit.set(fit.released)
        values, lost = _descended(fit, held, pull)
        if lost < least:
            best, least = values, lost
    fit.set(best)


def _descended(fit: _Fit, held: int, pull: float) -> tuple[list[Tensor], float]:
    """The best weights on the way down with one pull, and their loss on the first `held` rows."""
    order = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(fit.weights, lr=1e-3)
    best, least, since = fit.released, math.inf, 0
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(fit.y) - held, generator=order), _BATCH):
            fit.step(optimizer, held + batch, pull / 2)
        loss, since = fit.lost(slice(0, held)), since + 1
        if loss < least:
            best, least, since = _copies(fit.weights), loss, 0
        if since >= PATIENCE:
            break
    return best, least


def _measured(model: Model, rows: Rows) -> dict[str, float]:
    scores = predictor(model).outputs(rows.x)
    loss = float(model.task.loss(scores, rows.y).mean())
    return {"loss": loss} | model.task.metrics(scores, rows.y)
