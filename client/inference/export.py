"""A released model in a form that other programs run, with its card inside and its exactness shown.

Every export is compared with the torch model on the spot and refused where they differ too much.
Figures of private rows are never written into the file: it may be passed on, and they are unpaid.
"""

import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from client.dpsgd.trees import joined
from client.inference.compression import halved, pruned
from client.inference.decoded_columns import best, columns, leaves
from client.inference.predictor import session
from client.models.loading import Model, ModelError
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.model_card import POST_PROCESSING, Card

if TYPE_CHECKING:
    import onnx
    import onnx.version_converter

FORMATS: Final = ("safetensors", "onnx", "onnx-int8", "onnx-fp16")
_WORDS: Final = {
    "onnx": "converted to ONNX",
    "onnx-int8": "converted to ONNX and quantised to int8",
    "onnx-fp16": "converted to ONNX in half precision",
}
CLOSEST: Final = 1e-4
"""The largest difference of a score that a full-precision export may show."""
CLOSEST_HALF: Final = 1e-2
"""The same in half precision, whose numbers have 11 bits."""
MOST_LOST: Final = 0.5
"""Points of accuracy that a smaller export may lose, beyond what chance explains."""
CHANCE: Final = 1.645
"""Standard errors of a one-sided test at 95 %."""
SYNTHETIC: Final = 512
OPSET_INT8: Final = 21
"""The first in which ONNX' own evaluator knows all that int8 needs."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How an export compares with its model: `rows` of `source`.

    `difference` is the largest of any probability; where outputs are no probabilities, of any raw
    output, relative to it where it is above 1. `same` is the part of rows with the same prediction
    (of numbers: that differ by at most `CLOSEST`), `lost` the points of accuracy lost where labels
    are known, and `lost_surely` what is left of them after `CHANCE` standard errors: the rows that
    only one of the two has right differ in number by chance too (McNemar 1947), and the more so
    the fewer rows there are.
    """

    source: str
    rows: int
    difference: float
    same: float
    lost: float | None
    lost_surely: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Export:
    """The bytes of an exported model, and how well they agree with it on each set of rows."""

    content: bytes
    model: Model
    agreements: tuple[Agreement, ...]


def export(model: Model, kind: str, private: Rows | None = None, *, prune: float = 0.0) -> Export:
    """Export a released model; `private` rows are compared on too, and leave no figure behind.

    `prune` is the share of its weights, the smallest, that are set to zero before.
    ModelError for a model that is private to its site, or an export that does not agree.
    """
    suffix_of(kind)
    refuse_private(model)
    if not 0 <= prune < 1:
        raise ModelError(f"prune: expected a share from 0 to below 1, got {prune:g}")
    released = model.network
    if released is None:
        raise ModelError(f"{model.path}: expected a checkpoint or .safetensors file, got ONNX")
    task, network = model.task, released
    if prune:
        network, zeros, count = pruned(released, prune)
        what = f"the smallest {zeros} of {count} weights set to zero; {POST_PROCESSING}"
        model = replace(model, network=network, card=model.card.changed(what))
    elif kind == "safetensors":
        return Export(_safetensors(model), model, ())
    public = public_rows(task)
    given = ((public, source_of(task)), (private, "rows at this site"))
    sources = [(rows, source) for rows, source in given if rows is not None and len(rows)]
    if kind == "safetensors":
        smaller = [compare(task, released, network, *one) for one in sources]
        _refuse_losing(model, f"pruned by {prune:g}", smaller)
        return Export(_safetensors(model, smaller), model, tuple(smaller))
    from client.inference.onnx_export import to_onnx

    graph = to_onnx(network, public)
    if kind == "onnx-int8":
        graph = quantized(graph, public.x)
    elif kind == "onnx-fp16":
        graph = halved(graph)
    run = session(graph.SerializeToString())
    compared = [compare(task, network, run, *one) for one in sources]
    _refuse_disagreeing(model, kind, compared)
    if prune:
        compared = [compare(task, released, run, *one) for one in sources]
    _refuse_losing(model, f"pruned by {prune:g}" if prune else kind, compared)
    _describe(graph, model, kind, _outward(compared))
    return Export(graph.SerializeToString(), model, tuple(compared))


def suffix_of(kind: str) -> str:
    """How the name of an exported file ends; ModelError for a format that is none."""
    if kind not in FORMATS:
        raise ModelError(f"format: expected one of {', '.join(FORMATS)}, got {kind!r}")
    return ".safetensors" if kind == "safetensors" else ".onnx"


def refuse_private(model: Model) -> None:
    """Refuse to share what was adapted to a site's rows without privacy."""
    if model.card.private_to is not None:
        raise ModelError(
            f"{model.path}: private to {model.card.private_to}: adapted to its rows "
            "without privacy, so it is neither exported nor served to others"
        )


def source_of(task: Task) -> str:
    """What `public_rows` are, in words."""
    return "embedded test rows" if task.embedded else "synthetic rows of the task's public bounds"


def public_rows(task: Task) -> Rows:
    """Rows that are nobody's secret: the embedded test rows, or rows drawn from the bounds alone.

    A synthetic row has uniform features in -1..1, the range that tasks map their bounds to; where
    the task computes features from pictures, these are made of blots of many sizes. Rows of a
    reader or a package are those that its examination runs on. Labels say nothing.
    """
    if task.embedded:
        return task.load(None, "test")
    generator = torch.Generator().manual_seed(0)
    if task.read is not None:
        from client.tasks.packages.examine import made_up_rows

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return made_up_rows(task, SYNTHETIC)
    shape = (SYNTHETIC, *task.shape)
    if task.front is not None:
        with torch.inference_mode():
            x = task.front(_blots(len(task.inputs), generator))
    else:
        x = 2 * torch.rand(shape, generator=generator) - 1
    y = torch.zeros(SYNTHETIC, dtype=torch.int64)
    return Rows(x, y if task.kind == "classification" else y.float())


def _blots(columns: int, generator: torch.Generator) -> Tensor:
    """Rows in -1..1: square pictures of random blots, smooth ones and fine ones; else uniform."""
    side = math.isqrt(columns)
    if side * side != columns:
        return 2 * torch.rand(SYNTHETIC, columns, generator=generator) - 1
    scales = [2 ** (row % 5) + 1 for row in range(SYNTHETIC)]
    pictures = [
        functional.interpolate(
            torch.randn(1, 1, scale, scale, generator=generator), (side, side), mode="bilinear"
        )
        for scale in scales
    ]
    return torch.cat(pictures).reshape(SYNTHETIC, columns).mul(2).clamp(-1, 1)


def quantized(graph: "onnx.ModelProto", x: Any) -> "onnx.ModelProto":
    """The graph in int8, its ranges calibrated on rows; these are public, so it costs nothing.

    Weights and activations are quantised statically (Jacob et al. 2018); ranges of every layer are
    the largest seen. Weights keep to 7 bits: CPUs without VNNI add pairs of products in 16 bits,
    which overflow with 8, so that a file would score otherwise on another machine.
    """
    import onnx
    import onnx.version_converter

    from client.inference.onnx_runtime import quantization_tools

    quantization = quantization_tools()

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            arrays = {n: t.numpy() for n, t in (x if isinstance(x, dict) else {"x": x}).items()}
            pieces = max(1, len(next(iter(arrays.values()))) // 128)
            cut = {name: np.array_split(array, pieces) for name, array in arrays.items()}
            self.batches: Iterator[dict[str, Any]] = iter(
                {name: parts[i] for name, parts in cut.items()} for i in range(pieces)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory(prefix="tacit-") as folder, _quiet():
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(onnx.version_converter.convert_version(graph, OPSET_INT8), source)
        quantization.quantize_static(
            source,
            target,
            Calibration(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=False,
            reduce_range=True,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={"QuantizeBias": False},  # int32 biases are what other readers lack
        )
        return onnx.load(target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice on other models out of the site's log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def compare(
    task: Task, network: torch.nn.Module, run: Callable[[Any], Any], rows: Rows, source: str
) -> Agreement:
    """Run both on the same rows: the model, and what became of it."""
    with torch.inference_mode():
        parts = [rows.take(range(i, min(i + 1024, len(rows)))).x for i in range(0, len(rows), 1024)]
        expected, scores = (joined([way(x) for x in parts]) for way in (network, run))
    if task.kind not in ("classification", "ordinal"):
        differences = _relative(leaves(expected), leaves(scores), len(rows))
        same = float((differences <= CLOSEST).double().mean())
        return Agreement(source, len(rows), float(differences.max()), same, None)
    columns(task, scores)  # refuses outputs that are no probabilities of the classes
    before, after = task.decode(expected), task.decode(scores)
    difference = float((before - after).abs().max())
    chosen = best(task, before), best(task, after)
    same = float((chosen[0] == chosen[1]).double().mean())
    if source.startswith("synthetic"):
        return Agreement(source, len(rows), difference, same, None)
    was, remains = (at == rows.y for at in chosen)
    worse, better = int((was & ~remains).sum()), int((remains & ~was).sum())
    lost, surely = points_lost(worse, better, len(rows))
    return Agreement(source, len(rows), difference, same, lost, surely)


def _relative(expected: dict[str, Tensor], scores: dict[str, Tensor], rows: int) -> Tensor:
    """Each row's largest difference, relative to outputs above 1, [rows]."""
    worst = torch.zeros(rows, dtype=torch.float64)
    for name, value in expected.items():
        one, other = value.double().reshape(rows, -1), scores[name].double().reshape(rows, -1)
        worst = worst.maximum(((one - other).abs() / one.abs().clamp(min=1)).amax(1))
    return worst


def points_lost(worse: int, better: int, rows: int) -> tuple[float, float]:
    """Points of accuracy lost, and how many of them chance does not explain.

    `worse` rows of `rows` were right in the model alone, `better` ones in the export alone: under
    equal accuracy `worse - better` has a variance of `worse + better` (McNemar 1947).
    """
    lost = worse - better
    surely = lost - CHANCE * math.sqrt(worse + better)
    return 100 * lost / rows, max(0.0, 100 * surely / rows)


def _refuse_disagreeing(model: Model, kind: str, compared: list[Agreement]) -> None:
    """Refuse an export whose scores are not those of the model that it was made from."""
    closest = {"onnx": CLOSEST, "onnx-fp16": CLOSEST_HALF}.get(kind, math.inf)
    for match in compared:
        if match.difference > closest:
            raise ModelError(
                f"{model.path}: expected scores within {closest:g} of the model's on "
                f"{match.source}, got {match.difference:.2g}"
            )


def _refuse_losing(model: Model, what: str, compared: list[Agreement]) -> None:
    """Refuse a smaller model that is surely less accurate than the released one."""
    for match in compared:
        if match.lost_surely is not None and match.lost_surely > MOST_LOST:
            raise ModelError(
                f"{model.path}: {what} must lose at most {MOST_LOST} points of accuracy beyond "
                f"chance on {match.rows} {match.source}, got {match.lost:.2f} "
                f"({match.lost_surely:.2f} beyond chance); export as onnx, or prune less"
            )


def _outward(compared: list[Agreement]) -> tuple[Agreement, ...]:
    """What may be written into a file: nothing of private rows."""
    return tuple(a for a in compared if a.source != "rows at this site")


def _safetensors(model: Model, compared: Sequence[Agreement] = ()) -> bytes:
    if model.network is None:
        raise ModelError(f"{model.path}: expected a checkpoint, got ONNX")
    card = model.card.changed("the coordinator's own state left out", format="safetensors")
    if compared:
        card = _compared(card, _outward(list(compared)))
    tensors = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    content: bytes = save(tensors, metadata=_metadata(model, card.to_json()))
    return content


def _describe(
    graph: "onnx.ModelProto", model: Model, kind: str, agreements: tuple[Agreement, ...]
) -> None:
    import onnx
    import onnx.version_converter

    card = model.card.changed(f"{_WORDS[kind]}; {POST_PROCESSING}", format=kind)
    card = _compared(card, agreements)
    onnx.helper.set_model_props(graph, _metadata(model, card.to_json()))


def _compared(card: Card, agreements: tuple[Agreement, ...]) -> Card:
    comparison = json.dumps([asdict(agreement) for agreement in agreements])
    return card.changed(f"compared with the released model: {comparison}")


def _metadata(model: Model, card: str) -> dict[str, str]:
    """What every command needs to know a model again."""
    names = ("run", "round", "plan", "task", "plan_json", "history", "insecure")
    return {k: v for k, v in model.metadata.items() if k in names} | {"card": card}
