"""Released models found, verified and loaded: nothing is used before its signature is looked at.

A model is a run folder (its newest round), a checkpoint, an exported file, or `latest` of a site.
Only safetensors and ONNX are ever read: neither format can carry code, and no pickle is loaded.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from safetensors import SafetensorError, deserialize

from client.data.form import Form
from client.models.provenance import Origin, OriginError, Trust, origin_of, signature_path, vouch
from client.models.store import latest, of_run
from client.tasks.rows import TaskError
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import from_json
from privacy.files import DocumentError, Limits, parse_json
from privacy.model_card import Card, CardError, of_checkpoint

if TYPE_CHECKING:  # an exported model is predicted with without torch (client.inference.exported)
    import torch
    from torch import nn

    from client.tasks.task import Task

LARGEST: Final = 4 * 2**30
"""Bytes of the largest model file that is read."""
_HEADER: Final = Limits(size=100 * 2**20, length=2**24, count=2**20)
_ROUND: Final = re.compile(r"\d{6}\.safetensors")
_NUMBERS: Final = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


Tasks = Callable[[Plan], "Task"]


class ModelError(ValueError):
    """A model that cannot be used; always one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A released model: its task, its card, and its weights as a network or as an ONNX graph.

    `digest` is the SHA-256 of the file, `origin` says who vouches for it; `metadata` is the file's.
    """

    task: "Task"
    card: Card
    digest: str
    origin: Origin
    path: Path
    metadata: dict[str, str]
    network: "nn.Module | None" = None
    graph: bytes | None = None

    def content(self) -> bytes:
        """The bytes of its file; ModelError where they are others by now."""
        content = self.path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise ModelError(f"{self.path}: expected the file that was loaded, got another one")
        return content


def find(name: str, directory: Path | None = None) -> Path:
    """The file that `name` means: a run folder's newest round, a file, or a site's `latest`."""
    if name == "latest":
        if directory is None:
            raise ModelError("model: latest is a site's newest model, expected --dir as well")
        path = latest(directory)
        if path is None:
            raise ModelError(f"{directory}: expected a released model of this site, found none")
        return path
    path = Path(name)
    if path.is_dir():
        folder = path / "checkpoints"
        if not folder.is_dir():
            raise ModelError(f"{path}: expected a run folder (with checkpoints), found none")
        rounds = sorted(file for file in folder.iterdir() if _ROUND.fullmatch(file.name))
        if not rounds:
            raise ModelError(f"{folder}: expected a checkpoint of a complete round, found none")
        # A round is signed just after it is written: until then, the one before is the newest.
        return next((file for file in rounds[:-3:-1] if signature_path(file).is_file()), rounds[-1])
    if not path.is_file():
        raise ModelError(f"{path}: expected a run folder, a model file or latest, found none")
    if path.suffix not in (".safetensors", ".onnx"):
        raise ModelError(f"{path}: expected a .safetensors or .onnx file, got {path.suffix!r}")
    return path


def of_same_run(path: Path, directory: Path | None = None) -> list[tuple[int, Path]]:
    """The rounds of a model's run and their files: those beside a checkpoint, or a site's own."""
    if _ROUND.fullmatch(path.name):
        files = [file for file in path.parent.iterdir() if _ROUND.fullmatch(file.name)]
        return sorted((int(file.stem), file) for file in files)
    return [] if directory is None else of_run(directory, path)


def load(path: Path, trust: Trust, tasks: Tasks | None = None) -> Model:
    """Read a model file once, ask who vouches for these bytes, then build the model from them.

    `tasks(plan)` gives the task that the model was trained for, by default a shipped one.
    """
    content = contents(path)
    with naming(path):
        origin = vouch(path, hashlib.sha256(content).hexdigest(), trust)
        model = rebuilt(path, content, origin, tasks)
    if model.task.statistics is not None:
        raise ModelError(f"{path}: must be a model, got the noisy sums of statistics")
    check_signed(path, origin, model.card)
    return model


def contents(path: Path) -> bytes:
    """The bytes of a model's file; ModelError."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ModelError(f"{path}: expected at most {LARGEST} bytes, got {size}")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: expected a readable file, got {error.strerror}") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in what is refused of it, as ModelError."""
    try:
        yield
    except (OriginError, CardError, PlanError, TaskError, ModelError) as error:
        known = str(error).startswith(f"{path}")
        raise ModelError(str(error) if known else f"{path}: {error}") from error


def check_signed(path: Path, origin: Origin, card: Card) -> None:
    """ModelError where the signature is that of another round."""
    signed = origin.signature
    if signed is not None and (signed.run, signed.round) != (card.run, card.round):
        raise ModelError(
            f"{path}: signed as round {signed.round} of run {signed.run}, "
            f"got round {card.round} of run {card.run}"
        )


def rebuilt(path: Path, content: bytes, origin: Origin, tasks: Tasks | None = None) -> Model:
    """The model of these bytes, of which `origin` says who vouches for them: asked before."""
    from client.tasks.registry import task_of

    tasks = tasks or task_of
    read = _from_onnx if path.suffix == ".onnx" else _from_safetensors
    return read(path, content, hashlib.sha256(content).hexdigest(), origin, tasks)


def described(task: "Task") -> dict[str, Any]:
    """What a task says of itself on a card."""
    names = ("kind", "classes", "inputs", "label", "shape")
    return {name: getattr(task, name) for name in names}


def header(content: bytes) -> dict[str, str]:
    """The text metadata of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(_HEADER.size, len(content) - 8):
        raise ModelError("expected a whole safetensors file, got a damaged one")
    try:
        values = parse_json(content[8 : 8 + size], _HEADER).get("__metadata__", {})
    except (DocumentError, AttributeError) as error:
        raise ModelError("expected a whole safetensors file, got a damaged one") from error
    if not isinstance(values, dict):
        raise ModelError("expected a safetensors file with metadata")
    return {str(key): str(value) for key, value in values.items()}


def tensors(content: bytes) -> "dict[str, torch.Tensor]":
    """The released tensors of a safetensors file; the coordinator's own state is left out."""
    import torch

    try:
        entries = deserialize(content)
    except (SafetensorError, OverflowError) as error:
        raise ModelError("expected a whole safetensors file, got a damaged one") from error
    weights: dict[str, Any] = {}
    for name, entry in entries:
        if name.startswith("server/"):
            continue
        kind = _NUMBERS.get(entry["dtype"])
        if kind is None:
            raise ModelError(f"tensor {name}: expected plain numbers, got {entry['dtype']}")
        values = np.frombuffer(entry["data"], dtype=kind).reshape(entry["shape"])
        weights[name] = torch.from_numpy(values.copy())
    return weights


def _from_safetensors(
    path: Path, content: bytes, digest: str, origin: Origin, tasks: Tasks
) -> Model:
    from client.dpsgd.weights import base_digest

    metadata = header(content)
    origin = origin_of(origin, metadata)
    task = tasks(plan_of(metadata))
    network = task.model(from_json(metadata["plan_json"]).seed)
    if metadata.get("base", "") not in ("", base_digest(network)):
        raise ModelError("expected the frozen part that it was trained on, got another one")
    _fill(network, tensors(content))
    if "card" in metadata:
        card = agreeing(Card.from_json(metadata["card"]), task, metadata)
    else:
        card = of_checkpoint(
            _mapping(metadata["plan_json"]),
            _mapping(metadata.get("history", "{}")),
            metadata,
            described(task),
            digest=digest,
            signer=origin.words,
        )
        words = "No guarantee covers what it was pretrained on"
        seen = tuple(f"{words}: {one}." for one in task.pretrained)
        card = replace(card, limits=(*card.limits, *seen))
    return Model(task, card, digest, origin, path, metadata, network=network.eval())


@dataclass(frozen=True, slots=True)
class Graph:
    """What an ONNX file says: the shapes of its inputs without rows, its outputs, its metadata."""

    inputs: dict[str, tuple[int, ...]]
    outputs: list[str]
    metadata: dict[str, str]

    def check(self, inputs: Mapping[str, tuple[int, ...]]) -> None:
        """ModelError where it is not a graph of these inputs."""
        outputs = self.outputs
        known = outputs == ["scores"] or (outputs and all(n.startswith("scores.") for n in outputs))
        if self.inputs != inputs or not known:
            raise ModelError(f"expected the inputs {inputs} and outputs named scores, got others")


def read_graph(content: bytes) -> Graph:
    """What a whole ONNX file says, whose weights are inside; ModelError."""
    import onnx  # a moment: loaded where it is asked for

    try:
        graph = onnx.load_model_from_string(content)
        onnx.checker.check_model(graph)
    except (ValueError, onnx.checker.ValidationError) as error:
        raise ModelError("expected a whole ONNX file, got a damaged one") from error
    except Exception as error:
        if type(error).__module__ != "google.protobuf.message":
            raise
        raise ModelError("expected a whole ONNX file, got a damaged one") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.graph.initializer):
        raise ModelError("expected all weights inside the ONNX file, got some outside it")
    inputs = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim[1:])
        for value in graph.graph.input
    }
    outputs = [value.name for value in graph.graph.output]
    return Graph(inputs, outputs, {item.key: item.value for item in graph.metadata_props})


def _from_onnx(path: Path, content: bytes, digest: str, origin: Origin, tasks: Tasks) -> Model:
    graph = read_graph(content)
    metadata = graph.metadata
    origin = origin_of(origin, metadata)
    task = tasks(plan_of(metadata))
    card = card_of(task, metadata)
    graph.check({n: shape for n, (shape, _) in task.x_shapes.items()} or {"x": task.shape})
    return Model(task, card, digest, origin, path, metadata, graph=content)


def card_of(form: Form, metadata: dict[str, str]) -> Card:
    """The card inside an ONNX file; ModelError."""
    if "card" not in metadata:
        raise ModelError("expected an ONNX file with a model card, found none")
    return agreeing(Card.from_json(metadata["card"]), form, metadata)


def plan_of(metadata: dict[str, str]) -> Plan:
    """The plan that the metadata name, once they agree with each other; ModelError."""
    for name in ("run", "round", "plan", "task", "plan_json"):
        if name not in metadata:
            raise ModelError(f"expected a model of Tacit, found no {name} in its metadata")
    if not metadata["round"].isascii() or not metadata["round"].isdigit():
        raise ModelError("round: expected a number in the model's metadata")
    plan = from_json(metadata["plan_json"])
    if plan.digest != metadata["plan"]:
        raise ModelError("expected the digest of the plan inside, got another plan's")
    if plan.task != metadata["task"]:
        raise ModelError(f"expected a model of task {plan.task}, got {metadata['task']!r}")
    return plan


def agreeing(card: Card, task: Form, metadata: dict[str, str]) -> Card:
    """The card of an exported file, if it speaks of the file's own run."""
    stated = (card.task, card.run, str(card.round), card.plan, card.shape, card.classes)
    actual = (task.name, *(metadata[name] for name in ("run", "round", "plan")))
    if stated != (*actual, task.shape, task.classes):
        raise ModelError("expected the card of this model, got another one's")
    return card


def _fill(network: "nn.Module", weights: "dict[str, torch.Tensor]") -> None:
    """Put the tensors into the network, if they are exactly its own and finite."""
    import torch

    from client.dpsgd.weights import trained_of

    every = network.state_dict()
    trained = trained_of(network)
    wanted = every if set(weights) - set(trained) else {n: every[n] for n in trained}
    if set(wanted) != set(weights):
        name = sorted(set(wanted) ^ set(weights))[0]
        raise ModelError(f"tensor {name}: expected the {len(wanted)} tensors of the task's model")
    for name, value in weights.items():
        if value.shape != wanted[name].shape:
            shapes = f"{tuple(wanted[name].shape)}, got {tuple(value.shape)}"
            raise ModelError(f"tensor {name}: expected the shape {shapes}")
        if not torch.isfinite(value).all():
            raise ModelError(f"tensor {name}: expected finite numbers")
    network.load_state_dict(weights, strict=False)  # what is frozen is the task's own


def _mapping(text: str) -> dict[str, Any]:
    try:
        values = parse_json(text, _HEADER, nan_is_null=True)
    except DocumentError as error:
        raise ModelError(f"expected JSON in the model's metadata: {error}") from None
    if not isinstance(values, dict):
        raise ModelError("expected a JSON object in the model's metadata")
    return values
