"""Steps of DP-SGD alone, a turn of so many: Tacit's, or JAX-Privacy's.

python benchmarks/contenders/steps.py tacit|jax-privacy MODEL TURNS STEPS BATCH
"""

import sys
from collections.abc import Callable
from typing import Any

from turns import CLIP, LR, SIGMA, Turns


def tacit(name: str, steps: int, batch: int) -> Callable[[], object]:
    """The product's `train`: sampling, clipping, noise, optimizer."""
    import torch
    from workload import data, model

    from client.dpsgd.training import train
    from client.tasks.losses import cross_entropy
    from client.tasks.rows import Rows
    from privacy.accounting.events import Event
    from privacy.contract.plan import Plan

    torch.set_num_threads(1)
    rows, net = data("train"), model(name)
    rate = batch / len(rows.x)
    plan = Plan(
        "clothes",
        sites=1,
        rounds=1,
        rate=rate,
        rows=len(rows.x),
        lr=LR,
        steps=steps,
        clip=CLIP,
        sigma=SIGMA,
        delta=1e-6,
    )
    event = Event("record", SIGMA, rate, steps)

    class Loss:  # all that `train` asks of a task
        loss = staticmethod(cross_entropy)

    task: Any = Loss
    return lambda: train(net, Rows(rows.x, rows.y), task, plan, site="", event=event, round=1)


def jax_privacy(name: str, steps: int, batch: int) -> Callable[[], object]:
    """One jitted function a step: `clipped_grad`, Gaussian noise, SGD; batches are ready-made."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax_privacy import clipped_grad

    draw = np.random.default_rng(0)
    rows = draw.integers(0, 256, (steps, batch, 784), dtype=np.uint8)
    labels = draw.integers(0, 10, (steps, batch))
    params, forward = _jax_model(name, draw)

    def loss(params: Any, x: Any, y: Any) -> Any:
        logits = forward(params, x.astype(jnp.float32) / 255 - 0.5)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    gradient = clipped_grad(loss, l2_clip_norm=CLIP, batch_argnums=(1, 2))
    names = sorted(params)

    @jax.jit
    def step(params: Any, key: Any, x: Any, y: Any) -> Any:
        summed, (key, *keys) = gradient(params, x, y), jax.random.split(key, len(names) + 1)
        moved = {}
        for name, own in zip(names, keys, strict=True):
            noisy = summed[name] + SIGMA * CLIP * jax.random.normal(own, summed[name].shape)
            moved[name] = params[name] - LR / batch * noisy
        return moved, key

    def turn() -> object:
        now, key = params, jax.random.key(0)
        for x, y in zip(rows, labels, strict=True):
            now, key = step(now, key, x, y)
        return jax.block_until_ready(now)

    return turn


def _jax_model(name: str, draw: Any) -> tuple[Any, Callable[[Any, Any], Any]]:
    import jax
    import jax.numpy as jnp

    def fresh(*shape: int) -> Any:
        return jnp.asarray(draw.normal(0, 0.05, shape), jnp.float32)

    if name == "mlp":
        mlp = {"w": fresh(784, 256), "b": fresh(256), "v": fresh(256, 10), "c": fresh(10)}
        return mlp, lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"] + p["c"]

    def conv(x: Any, w: Any, stride: int, pad: int) -> Any:
        return jax.lax.conv_general_dilated(x, w, (stride, stride), [(pad, pad)] * 2)

    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 1, 1), "VALID")

    def forward(p: Any, x: Any) -> Any:
        x = x.reshape(-1, 1, 28, 28)
        x = pool(jnp.tanh(conv(x, p["a"], 2, 3) + p["b"][:, None, None]))
        x = pool(jnp.tanh(conv(x, p["c"], 2, 0) + p["d"][:, None, None]))
        return jnp.tanh(x.reshape(len(x), -1) @ p["e"] + p["f"]) @ p["g"] + p["h"]

    cnn = {"a": fresh(16, 1, 8, 8), "b": fresh(16), "c": fresh(32, 16, 4, 4), "d": fresh(32)}
    return cnn | {"e": fresh(512, 32), "f": fresh(32), "g": fresh(32, 10), "h": fresh(10)}, forward


def main() -> None:
    """So many turns."""
    who, name, turns, steps, batch = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    talk = Turns()
    turn = {"tacit": tacit, "jax-privacy": jax_privacy}[who](name, steps, batch)
    talk.begin()
    for _ in range(turns):
        turn()
        talk.end()


if __name__ == "__main__":
    main()
