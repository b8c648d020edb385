"""Pictures and sounds as vectors by a frozen model of a known form, read from a local folder.

The form's code is the library transformers'; the weights are a safetensors file of the owner's,
known by digest. Nothing is fetched, no code of the folder runs, and no weight may be missing. Each
record is computed by itself, in evaluation mode: BatchNorm uses the statistics that it came with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from client.tasks.features.backbones import Backbone
from client.tasks.rows import TaskError
from privacy.files import DocumentError, read_json

Floats = NDArray[np.float32]
Kind = Literal["images", "sounds"]
SHORTEST: Final = 0.1
"""Seconds of silence to which a shorter sound is filled."""
_UNUSED: Final = ("masked_spec_embed", "mask_token")
"""Weights that a forward in evaluation mode has no use for."""
_DAMAGED: Final = (
    *(ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError),
    *(SafetensorError, TypeError, ValueError),
)
"""What the library makes of a folder that is no whole backbone."""
_EXTRA: Final = "pip install 'tacit[backbones]'"


def _pooled(out: Any) -> Tensor:
    pooled: Tensor = out.pooler_output
    return pooled.flatten(1)


def _first_token(out: Any) -> Tensor:
    tokens: Tensor = out.last_hidden_state
    return tokens[:, 0]


def _mean_of_times(out: Any) -> Tensor:
    times: Tensor = out.last_hidden_state
    return times.mean(1)


@dataclass(frozen=True, slots=True)
class Form:
    """A form of model: its class in transformers, what to build it without, and its vector."""

    name: str
    vector: Callable[[Any], Tensor]
    built: tuple[tuple[str, Any], ...] = ()


_NO_POOL: Final = (("add_pooling_layer", False),)
FORMS: Final[dict[Kind, dict[str, Form]]] = {
    "images": {
        "resnet": Form("ResNetModel", _pooled),
        "regnet": Form("RegNetModel", _pooled),
        "convnext": Form("ConvNextModel", _pooled),
        "convnextv2": Form("ConvNextV2Model", _pooled),
        "swin": Form("SwinModel", _pooled),
        "vit": Form("ViTModel", _first_token, _NO_POOL),
        "deit": Form("DeiTModel", _first_token, _NO_POOL),
        "dinov2": Form("Dinov2Model", _first_token),
    },
    "sounds": {
        "wav2vec2": Form("Wav2Vec2Model", _mean_of_times),
        "hubert": Form("HubertModel", _mean_of_times),
        "wavlm": Form("WavLMModel", _mean_of_times),
    },
}
"""The forms by `model_type`: a picture's vector is the pooled map or the first token, a sound's the
mean over time."""


@dataclass(frozen=True, slots=True, eq=False)
class Frozen:
    """A loaded backbone: `picture` and `sound` give a record's vector of length 1, [width]."""

    model: nn.Module
    form: Form
    mean: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    rate: int = 0
    even: bool = False

    def picture(self, pixels: Floats) -> Floats:
        """Of pixels in 0..1 [3, height, width]."""
        shape = (1, 3, 1, 1)
        mean, spread = (torch.tensor(one).view(shape) for one in (self.mean, self.spread))
        return self._vector((torch.from_numpy(pixels)[None] - mean) / spread)

    def sound(self, samples: NDArray[Any]) -> Floats:
        """Of samples in -1..1 [n] at `rate` a second."""
        least = math.ceil(SHORTEST * self.rate)
        one = np.pad(samples, (0, max(0, least - len(samples)))).astype(np.float32)
        if self.even:
            one = (one - one.mean()) / np.sqrt(one.var() + np.float32(1e-7))
        return self._vector(torch.from_numpy(one)[None])

    @torch.inference_mode()
    def _vector(self, x: Tensor) -> Floats:
        vector = self.form.vector(self.model(x))
        long: Floats = functional.normalize(vector, dim=1)[0].float().numpy()
        if not np.isfinite(long).all():
            raise ValueError("a record that the backbone gives finite numbers")
        return long


def frozen(kind: Kind, backbone: Backbone, *, vector: int, size: tuple[int, ...] = ()) -> Frozen:
    """The backbone of a schema, ready; TaskError where it is another one, or does not fit.

    `vector` is how many numbers it must give a record, `size` a picture's height and width.
    """
    one = _loaded(kind, backbone.name, backbone.folder(), backbone.digest)
    try:
        width = _width(kind, one, size)
    except (ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:160]
        raise TaskError(f"backbone {backbone.name}: must take these {kind} ({why})") from None
    if width != vector:
        raise TaskError(f"backbone {backbone.name}: vector must be {width}, got {vector}")
    return one


@lru_cache(maxsize=8)
def _width(kind: Kind, one: Frozen, size: tuple[int, ...]) -> int:
    if kind == "images":
        return len(one.picture(np.zeros((3, *size), np.float32)))
    return len(one.sound(np.zeros(one.rate, np.float32)))


@lru_cache(maxsize=1)
def _loaded(kind: Kind, name: str, folder: Path, digest: str) -> Frozen:
    """The model of a folder whose digest was seen to be the wanted one."""
    try:
        facts, before = (read_json(folder / n) for n in ("config.json", "preprocessor_config.json"))
    except (OSError, DocumentError) as error:
        raise TaskError(f"backbone {name}: {error}") from None
    named = facts.get("model_type") if isinstance(facts, dict) else None
    form = FORMS[kind].get(str(named))
    if form is None or not isinstance(before, dict):
        known = ", ".join(FORMS[kind])
        raise TaskError(f"backbone {name}: model_type must be one of {known} for {kind}")
    if kind == "images":
        given = before.get("do_normalize", True)
        mean = _three(name, before, "image_mean", 0.0) if given else (0.0,) * 3
        spread = _three(name, before, "image_std", 1e-3) if given else (1.0,) * 3
        return Frozen(_model(name, folder, form), form, mean, spread)
    rate = before.get("sampling_rate")
    if type(rate) is not int or not 1000 <= rate <= 192_000:
        raise TaskError(f"backbone {name}: sampling_rate must be 1000 to 192000 Hz, got {rate!r}")
    even = before.get("do_normalize", True) is True
    return Frozen(_model(name, folder, form), form, rate=rate, even=even)


def _three(name: str, before: dict[str, Any], key: str, least: float) -> tuple[float, ...]:
    values = before.get(key)
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(isinstance(v, int | float) and least <= v <= 10 for v in values)
    ):
        raise TaskError(f"backbone {name}: {key} must be three numbers from {least:g} to 10")
    return tuple(float(v) for v in values)


def _model(name: str, folder: Path, form: Form) -> nn.Module:
    try:
        import transformers
    except ImportError:
        raise TaskError(f"backbone {name}: needs transformers ({_EXTRA})") from None
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kind = getattr(transformers, form.name)
    try:
        model, told = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **dict(form.built),
        )
    except _DAMAGED as error:
        why = " ".join(str(error).split())[:160]
        raise TaskError(f"{folder}: must be a whole backbone ({why})") from None
    absent = [*told["missing_keys"], *(str(one) for one in told["mismatched_keys"])]
    if missing := sorted(one for one in absent if not one.endswith(_UNUSED)):
        raise TaskError(f"{folder}: must hold every weight of its model, has no {missing[0]}")
    frozen_model: nn.Module = model.eval().requires_grad_(False)
    return frozen_model
