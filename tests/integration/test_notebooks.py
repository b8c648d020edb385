"""The notebooks run from top to bottom, as a researcher's would."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"


def shown(path: Path) -> list[Any]:
    """Every code cell run in one namespace; the last expression of each."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for cell in cells:
        assert cell.get("outputs", []) == [], "a notebook is kept without what it showed"
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(path), "exec"), names)
        if isinstance(last, ast.Expr):
            found.append(eval(compile(ast.Expression(last.value), str(path), "eval"), names))
    return found


def test_own_model_runs_and_shows_what_it_says() -> None:
    frame, plot, pair, _ = shown(FOLDER / "own_model.ipynb")
    assert list(frame["round"]) == [16, 17, 18, 19, 20]
    assert plot._repr_svg_().startswith("<svg")
    without, private = pair
    assert private > 0.8 and without >= private - 0.05


def test_sweep_runs_and_ends_with_a_package() -> None:
    frame, plot, _, code = shown(FOLDER / "sweep.ipynb")
    assert len(frame) == 6 and set(frame["epsilon"]) == {1, 3, 8}
    assert "epsilon" in plot
    assert code.startswith("sha256:")
