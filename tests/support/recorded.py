"""What a CUDA graph does with a step, on a host: its operations again, nothing of its Python.

A replay reads and writes the memory that the recorded step had, and takes the numbers that the
host gave when it was recorded. While it is recorded nothing lasts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from privacy.mechanism import device

_WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")


class AsC:
    """The kernels, with their own arguments, in one thread of the host: `nvrtc.Kernels`."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.recorded: list[tuple[str, Sequence[Any]]] | None = None
        self.launched: list[str] = []

    def launch(self, name: str, threads: int, arguments: Sequence[Any]) -> None:
        assert name in device.KERNELS
        assert threads > 0
        if self.recorded is not None:
            self.recorded.append((name, tuple(arguments)))
            return
        self.launched.append(name)
        getattr(self._library, name)(*arguments)


class _Recorder(TorchDispatchMode):
    def __init__(self, kernels: AsC, calls: list[Any]) -> None:
        super().__init__()
        self._kernels, self._calls = kernels, calls
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if str(func).startswith(_WAITS):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        if func._schema.is_mutable:
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, Tensor):
                    place = x.untyped_storage().data_ptr()
                    whole = torch.as_strided(
                        x, (x.untyped_storage().nbytes() // x.itemsize,), (1,), 0
                    )
                    self.before.setdefault(place, (whole, whole.clone()))
        kept = tree_map(_alias, (args, kwargs or {}))  # shapes may be changed in place later
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, *kept, tree_map(_alias, out)))
        return out


def _alias(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def recorder(kernels: AsC) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """`repeated.cuda_graph` with these kernels."""

    def record(step: Callable[[], None]) -> Callable[[], None]:
        calls: list[Any] = []

        class Launches(list):  # type: ignore[type-arg]
            def append(self, launch: Any) -> None:
                calls.append(launch)

        mode = _Recorder(kernels, calls)
        kernels.recorded = Launches()
        try:
            with mode:
                step()
        finally:
            kernels.recorded = None
        with torch.no_grad():
            for whole, was in mode.before.values():
                whole.copy_(was)

        def replay() -> None:
            with torch.no_grad():
                for call in calls:
                    if isinstance(call[0], str):
                        kernels.launch(call[0], 1, call[1])
                    else:
                        _again(*call)

        return replay

    return record


def _again(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    new = func(*args, **kwargs)
    inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    places = {x.untyped_storage().data_ptr() for x in inputs}
    for old, fresh in zip(tree_leaves(out), tree_leaves(new), strict=True):
        if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in places:
            old.detach().copy_(fresh)
