"""`benchmarks/gpu.py` runs whole on a CPU, at tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_part_runs_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu"]
    ended = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert set(result) >= {"noise", "equal", "steps", "predict", "vector", "audit"}
    assert result["noise"]["law"]["on the grid"] is True
    for name, model in result["steps"].items():
        assert model["ratio float32"] > 0, name
        assert result["equal"][name]["clipped sum"] == 0
        assert result["equal"][name].get("failed") is None
        assert result["predict"][name] == 0
    assert all(check["passed"] for check in result["audit"].values())


def test_without_a_gpu_it_says_so_and_ends(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "no cuda:0 is here" in ended.stdout
