"""Personalisation that stays at home: the last layer fitted to the site's own rows, not privately.

What comes out carries its site's rows without any protection. Its file says so, is signed by the
site alone, and every command that shares or exports models refuses it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from safetensors.torch import save
from torch import Tensor, nn

from client.inference.predictor import predictor
from client.models.loading import Model, ModelError
from client.tasks.rows import Rows

Loss = Callable[[Tensor, Tensor], Tensor]
FEWEST: Final = 40
HELD_OUT: Final = 0.25
STEPS: Final = 300
PULLS: Final = (100.0, 1.0, 0.1, 0.01, 0.001)
"""How strongly the weights are held near the released ones, from hardly moved to free."""


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


def adapt(model: Model, rows: Rows, site: str) -> Adapted:
    """Fit the last linear layer to `rows`, as near to the released weights as suits them.

    A quarter of the rows is held out to say what it brought. How strongly the weights are pulled
    back is chosen on a quarter of the others, to which the model is fitted in the end.
    """
    if model.network is None:
        raise ModelError(
            f"{model.path}: adapting needs gradients: expected a checkpoint or .safetensors file"
        )
    if len(rows) < FEWEST:
        raise ModelError(f"data: expected at least {FEWEST} labelled rows, got {len(rows)}")
    network, task = model.network, model.task
    last = _last_layer(network)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    held = int(len(rows) * HELD_OUT)
    test, train = rows.take(order[:held]), rows.take(order[held:])
    before = _measured(model, test)
    features = _inputs_of(network, last, train.x)
    pull = _best_pull(last, features, train.y, task.loss)
    _fit(last, features, train.y, task.loss, pull)
    after = _measured(model, test)
    changes = [*model.card.changes, "last layer fitted to one site's rows, without privacy"]
    metadata = model.metadata | {"private_to": site, "changes": json.dumps(changes)}
    metadata.pop("card", None)
    return Adapted(save(network.state_dict(), metadata=metadata), len(train), before, after)


def _last_layer(network: nn.Module) -> nn.Linear:
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ModelError("adapt: expected a model that ends with a linear layer")
    return layers[-1]


def _inputs_of(network: nn.Module, layer: nn.Linear, x: Tensor) -> Tensor:
    """What reaches `layer` when x goes through the network."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            for batch in x.split(4096):
                network(batch)
    finally:
        hook.remove()
    return torch.cat(seen)


def _best_pull(layer: nn.Linear, features: Tensor, y: Tensor, loss: Loss) -> float:
    """The pull with the least loss on rows that the layer was not fitted to."""
    held = int(len(y) * HELD_OUT)
    released = {name: value.clone() for name, value in layer.state_dict().items()}
    losses = {}
    for pull in PULLS:
        _fit(layer, features[held:], y[held:], loss, pull)
        with torch.inference_mode():
            losses[pull] = float(loss(layer(features[:held]), y[:held]).mean())
        layer.load_state_dict(released)
    return min(losses, key=lambda pull: losses[pull])


def _fit(layer: nn.Linear, features: Tensor, y: Tensor, loss: Loss, pull: float) -> None:
    released = [p.detach().clone() for p in layer.parameters()]
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        far = sum(
            ((p - old) ** 2).sum() for p, old in zip(layer.parameters(), released, strict=True)
        )
        (loss(layer(features), y).mean() + pull * far).backward()
        optimizer.step()


def _measured(model: Model, rows: Rows) -> dict[str, float]:
    scores = predictor(model, threads=1).outputs(rows.x.numpy())
    return model.task.metrics(torch.from_numpy(scores), rows.y)
