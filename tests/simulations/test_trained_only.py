"""Only what is trained travels: a model with adapters on a frozen base, over the whole way."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.dpsgd.weights import base_digest, trained_of
from client.tasks.registry import task
from privacy.arrays import decode, encode
from privacy.contract.plan import Plan
from server.rounds import checkpoint
from simulations import OwnData, simulate
from tests.support.desk import PLAN, Desk


class Adapted(nn.Module):
    """A frozen Linear with a trained product of two thin ones beside it (LoRA, Hu et al. 2022)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.base.requires_grad_(False)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


class Words(nn.Module):
    """A small language model: a frozen embedding, two adapted layers, a frozen head."""

    def __init__(self, words: int = 500, width: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.first = Adapted(width, 4 * width, 2)
        self.second = Adapted(4 * width, width, 2)
        self.head = nn.Linear(width, 2)
        self.words.requires_grad_(False)
        self.head.requires_grad_(False)
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x).mean(1) * self.scale
        out: Tensor = self.head(self.second(torch.tanh(self.first(h))))
        return out


def rows() -> OwnData:
    draw = np.random.default_rng(0)
    x = draw.integers(0, 500, (400, 12))
    y = (x[:, 0] > 250).astype(int)
    return OwnData(x, y)


def test_a_round_of_adapters_moves_adapters_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Words()
    trained = sum(p.numel() for p in trained_of(model).values())
    every = sum(p.numel() for p in model.parameters())
    assert every > 30 * trained
    plan = Plan(
        task="own",
        rounds=2,
        rate=0.5,
        rows="actual",
        lr=0.5,
        sites=3,
        clip=1.0,
        epsilon=8.0,
        delta=1e-4,
    )
    run = tmp_path / "run"
    result = simulate(plan, run, task=model, data=rows())
    assert result.outcome.reason == "done"
    for line in result.history:
        for key in ("bytes_up", "bytes_down"):
            assert line[key] / 3 <= 1.2 * 4 * trained, (key, line[key] / 3, 4 * trained)
    path = checkpoint.path_of(run / "checkpoints", 2)
    arrays, metadata = checkpoint.read(path)
    kept = {name for name in arrays if not name.startswith("server/")}
    assert kept == set(trained_of(model))
    assert metadata["base"] == base_digest(model)
    released = result.model
    assert torch.equal(dict(released.named_parameters())["words.weight"], model.words.weight)
    moved = dict(released.named_parameters())["second.up.weight"]
    assert float(moved.detach().abs().sum()) > 0


def test_the_base_is_known_by_its_bytes() -> None:
    torch.manual_seed(0)
    one = Words()
    torch.manual_seed(0)
    same = Words()
    assert base_digest(one) == base_digest(same) != ""
    with torch.no_grad():
        same.words.weight[0, 0] += 1e-3
    assert base_digest(one) != base_digest(same)
    same = Words()
    same.scale += 1
    assert base_digest(one) != base_digest(same)
    assert base_digest(nn.Linear(2, 2)) == ""
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert base_digest(tied) == ""


def test_a_site_with_another_base_declines_before_it_spends(tmp_path: Path) -> None:
    def adapted(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(Adapted(64, 16, 2), nn.Tanh(), Adapted(16, 10, 2))

    desk = Desk(tmp_path)
    learning: Any = replace(task("digits"), model=adapted)
    desk.site.tasks = lambda plan: learning
    named = {n: p.detach().numpy() for n, p in trained_of(adapted(PLAN.seed)).items()}
    blob, base = encode(named), base_digest(adapted(PLAN.seed))
    assert desk.said(desk.ask(weights=blob, base="0" * 64)) == ("declined", "bad-weights")
    assert len(desk.ledger.entries()) == 0
    reply = desk.ask(weights=blob, base=base)
    assert desk.said(reply) == ("trained", "")
    update = reply.content.array_records["arrays"]["update"]
    assert set(decode(update.data, {n: a.shape for n, a in named.items()})) == set(named)
    assert json.loads(str(reply.content.config_records["reply"]["events"]))
