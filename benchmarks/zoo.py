"""Each model of the zoo against Opacus' hooks: the clipped sum of one batch, in turns, CPU time.

`python benchmarks/zoo.py [--turns 7] [--batch 32] [--only TEXT]`. The models are those of
tests/client/dpsgd/test_zoo.py, BERT, GPT-2 and LLaMA where transformers and peft are installed.
The hooks are `GradSampleModule` with its usual engine; the clipped sum of gradients is made from
what it keeps, as its optimizer does. Models are tiny, so that both are mostly overhead; where
Opacus fails its error stands.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from opacus.grad_sample import GradSampleModule
from table import interleaved
from torch import Tensor, nn

from client.dpsgd.clipping import BookKeeping
from client.dpsgd.examination.made_up_rows import Domain
from client.dpsgd.examination.separation import examine
from client.tasks.rows import Rows

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the zoo stands in the tests
CLIP = 0.5


def main() -> None:
    from tests.client.dpsgd.test_zoo import TRAINS, hugging_face
    from tests.support.small_models import data

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    models = dict(TRAINS)
    try:
        import peft  # noqa: F401
        import transformers  # noqa: F401

        for name in ("bert", "gpt2", "llama"):
            for lora in (False, True):
                label = f"{name}{', LoRA' if lora else ''}"
                models[label] = (lambda n=name, k=lora: hugging_face(n, k), "ids")
    except ImportError as error:
        print(f"without models of Hugging Face: {error}")
    for name, (build, kind) in models.items():
        if options.only in name:
            torch.manual_seed(0)
            print(
                f"{name}: {compared(build(), data(kind, options.batch), options.turns)}", flush=True
            )


def compared(model: nn.Module, rows: Rows, turns: int) -> str:
    """Our CPU time over that of the hooks, or what kept them from it."""
    from tests.support.small_models import cross_entropy

    hooked, own = copy.deepcopy(model).train(), model.train()
    book = BookKeeping(own, clip=CLIP)
    examine(book, Domain.of(rows.x, rows.y), cross_entropy)

    def ours() -> None:
        book.accumulate(rows.x, rows.y, cross_entropy)

    try:
        theirs = hooks(GradSampleModule(hooked), rows, cross_entropy)
        theirs()
    except Exception as error:  # noqa: BLE001 - whatever Opacus cannot take is told
        return f"trains; Opacus: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
    times = interleaved({"ours": ours, "hooks": theirs}, turns, warm=2, clock=time.process_time)
    ratio = statistics.median(a / b for a, b in zip(times["ours"], times["hooks"], strict=True))
    milliseconds = {n: 1000 * statistics.median(t) for n, t in times.items()}
    return (
        f"{ratio:.2f} of the hooks ({milliseconds['ours']:.1f} and {milliseconds['hooks']:.1f} ms)"
    )


def hooks(
    model: GradSampleModule, rows: Rows, loss: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[], None]:
    """One batch's clipped sum as Opacus' optimizer makes it."""
    weights = [p for p in model.parameters() if p.requires_grad]

    def once() -> None:
        for p in weights:
            p.grad_sample = p.grad = None
        loss(model(rows.x), rows.y).mean().backward()
        each = [p.grad_sample for p in weights]
        norms = torch.stack([g.flatten(1).norm(2, dim=-1) for g in each], 1).norm(2, dim=1)
        factor = (CLIP / (norms + 1e-6)).clamp(max=1.0)
        for p, g in zip(weights, each, strict=True):
            p.grad = torch.einsum("i,i...->...", factor, g)

    return once


if __name__ == "__main__":
    main()
