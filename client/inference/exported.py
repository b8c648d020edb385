"""An exported model of a table, without torch: numpy's arrays in, ONNX Runtime, columns out.

Torch takes longer to load than all the rest. What is predicted is what `client.inference.predictor`
predicts by the same file: the same bytes go through the same graph.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from client.data.input_files import Chunk
from client.data.wanted import Wanted
from client.inference.onnx_runtime import inference_session
from client.models.loading import (
    ModelError,
    card_of,
    check_signed,
    contents,
    naming,
    plan_of,
    read_graph,
)
from client.models.provenance import Origin, Trust, origin_of, vouch
from client.scoring.predictions import Predictions, of_chunk
from client.tasks.preprocessing import Category, Columns
from client.tasks.rows import Encoded
from client.tasks.schema import schema
from privacy.contract.plan import Plan
from privacy.model_card import Card
from privacy.task_package.manifest import Kind

BATCH: Final = 8192
SHIPPED: Final = ("digits", "adult", "heart-disease")
"""Tasks that are their columns and classes, which stand in their modules."""


@dataclass(frozen=True, slots=True, eq=False)
class TableForm:
    """What a task of columns says of its rows and outputs; it encodes them as numpy's arrays.

    An output in -1..1 is the number output * half + middle of the label's unit.
    """

    name: str
    kind: Kind
    columns: Columns
    classes: tuple[str, ...]
    wanted: Wanted
    half: float = 1.0
    middle: float = 0.0
    read: None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns.inputs)

    @property
    def label(self) -> str:
        return self.columns.label.name

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.columns.width,)

    def encode(self, table: Any) -> Encoded:
        """Raw columns as x [rows, width] and y [rows]."""
        return self.columns.arrays(table)


def table_form(plan: Plan) -> TableForm | None:
    """The form of a plan's task; None where the whole task is needed. TaskError.

    It is needed for texts that a frozen model encodes: that runs in torch.
    """
    if plan.code is not None or plan.statistics is not None or plan.model is not None:
        return None
    if plan.task in SHIPPED and plan.schema is None:
        module = import_module(f"client.tasks.{plan.task.replace('-', '_')}")
        return TableForm(plan.task, "classification", module.COLUMNS, module.CLASSES, module.WANTED)
    if plan.task != "table" or plan.schema is None:
        return None
    table = schema(plan.schema)
    if table.columns.backbones:
        return None
    label = table.columns.label
    if isinstance(label, Category):
        return TableForm("table", table.kind, table.columns, label.values, table.wanted)
    half, middle = (label.high - label.low) / 2, (label.high + label.low) / 2
    return TableForm("table", table.kind, table.columns, (), table.wanted, half, middle)


@dataclass(frozen=True, slots=True, eq=False)
class ExportedModel:
    """An exported model whose origin was asked about; the fields are those of `Model`."""

    task: TableForm
    card: Card
    digest: str
    origin: Origin
    path: Path


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """An exported model ready to predict rows of a table."""

    model: ExportedModel
    session: Any
    engine: str = "ONNX Runtime"

    def predict(self, chunks: Iterator[Chunk], *, every: bool = False) -> Iterator[Predictions]:
        """Predict chunk after chunk, as `Predictor.predict`."""
        for chunk in chunks:
            scores = self._scores(chunk.x)
            yield of_chunk(chunk, self._columns(scores, every), scores)

    def _scores(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if not len(x):
            return self._scores(np.zeros((1, *x.shape[1:]), np.float32))[:0]
        parts = [x[i : i + BATCH] for i in range(0, len(x), BATCH)]
        outputs = [self.session.run(["scores"], {"x": part})[0] for part in parts]
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def _columns(self, scores: NDArray[np.float32], every: bool) -> dict[str, Any]:
        form = self.model.task
        if form.kind == "regression":
            values = (scores.reshape(len(scores)) * form.half + form.middle).astype(np.float64)
            return {
                "prediction": pa.array(values),
                "probability": pa.nulls(len(values), pa.float64()),
            }
        wanted = (len(scores), len(form.classes))
        if scores.shape != wanted:
            raise ModelError(f"decode must give {list(wanted)}, got {list(scores.shape)}")
        decoded = _probabilities(scores)
        names = pa.array(form.classes, pa.string())
        columns = {
            "prediction": pa.DictionaryArray.from_arrays(pa.array(decoded.argmax(0)), names),
            "probability": _rounded(decoded.max(0)),
        }
        if every:
            columns |= {f"p_{name}": _rounded(decoded[i]) for i, name in enumerate(form.classes)}
        return columns


def exported(path: Path, trust: Trust) -> Exported | None:
    """An exported ONNX file, ready; None where it needs the whole task. ModelError."""
    if path.suffix != ".onnx":
        return None
    content = contents(path)
    with naming(path):
        digest = hashlib.sha256(content).hexdigest()
        origin = vouch(path, digest, trust)
        graph = read_graph(content)
        form = table_form(plan_of(graph.metadata))
        if form is None or graph.outputs != ["scores"]:
            return None
        card = card_of(form, graph.metadata)
        graph.check({"x": form.shape})
        origin = origin_of(origin, graph.metadata)
    check_signed(path, origin, card)
    model = ExportedModel(form, card, digest, origin, path)
    return Exported(model, inference_session(content))


def _probabilities(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [rows, classes] to probabilities [classes, rows], classes side by side."""
    logits = np.ascontiguousarray(scores.T)
    powers = np.exp(logits - logits.max(0))
    shares: NDArray[np.float32] = powers / powers.sum(0)
    return shares


def _rounded(values: NDArray[np.float32]) -> Any:
    return pa.array(np.round(values.astype(np.float64), 6))
