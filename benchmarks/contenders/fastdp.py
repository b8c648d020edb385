"""Steps by fastDP (Bu et al. 2023), from a checkout of its repository: it is in no registry."""

import importlib
import importlib.abc
import logging
import sys
from collections.abc import Callable
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def by_fastdp(
    folder: Path, model: nn.Module, batches: list[tuple[Tensor, Tensor]], *, sample_size: int
) -> Callable[[], None]:
    """A turn: a step of each batch, by its book-keeping (MixOpt), clipped as in Abadi et al."""
    engine = _engine(folder)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    engine(
        model,
        batch_size=len(batches[0][1]),
        sample_size=sample_size,
        epochs=1,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        clipping_mode="MixOpt",
        clipping_fn="Abadi",
        origin_params=None,
    ).attach(optimizer)

    def turn() -> None:
        for x, y in batches:
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    return turn


def _engine(folder: Path) -> Any:
    """Its PrivacyEngine. Of transformers, which it imports, it needs no more than names."""
    finder = _Names()
    sys.meta_path.append(finder)  # asked last: the real one serves where it is installed
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("fastDP").PrivacyEngine
    finally:
        sys.path.remove(str(folder))
        sys.meta_path.remove(finder)


class _Names(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules below `transformers` in which every name is an empty layer."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.startswith("transformers") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return SimpleNamespace(get_logger=logging.getLogger) if name == "logging" else _layer(name)


@cache
def _layer(name: str) -> type[nn.Module]:
    return type(name, (nn.Module,), {})
