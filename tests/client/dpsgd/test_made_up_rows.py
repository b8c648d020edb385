"""Rows made up for an examination lie where the model does."""

import torch
from torch import nn

from client.dpsgd.examination.made_up_rows import Domain, MadeUp
from client.tasks.rows import Rows


def test_a_tasks_own_made_up_rows_go_to_the_device_of_its_rows() -> None:
    def sample(count: int, draw: torch.Generator) -> Rows:
        x = {"ids": torch.randint(5, (count, 3), generator=draw), "size": torch.rand(count, 1)}
        return Rows(x, torch.zeros(count))

    elsewhere = torch.device("meta")
    x = {name: value.to(elsewhere) for name, value in sample(2, torch.Generator()).x.items()}
    domain = Domain.of(x, torch.zeros(2, device=elsewhere), sample=sample)
    rows = MadeUp.of(domain, nn.Embedding(5, 2)).rows(4, 1.0)
    assert {t.device for t in (*rows.x.values(), rows.y)} == {elsewhere}
    assert rows.x["ids"].shape == (4, 3)
