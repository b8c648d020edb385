"""Every shipped plan is simulated under strace: nothing is dialled and no name is asked for."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.integration.test_areas import AREAS, ENCODER, messages
from tests.support.patience import patience

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

ROOT = Path(__file__).resolve().parents[2]
PLANS = {path.stem for path in (ROOT / "privacy" / "plans").glob("*.toml")}
STRACE = ["strace", "-f", "-qq", "--seccomp-bpf", "-s", "80"]
STRACE += ["-e", "trace=connect,sendto,sendmsg,sendmmsg"]
INTERNET = re.compile(r"sa_family=AF_INET6?.*?sin6?_port=htons\((\d+)\)")
LAST = 9
"""The port that the script itself dials at the end, so that a watch that sees nothing fails."""
PLAY = f"""
import json, socket, sys
from pathlib import Path
from privacy.runtime import prepare
prepare()
from privacy.contract.plan_file import load_plan
from simulations.run import simulate
for name, sets, data in json.loads(sys.argv[1]):
    result = simulate(load_plan(name, sets), data=None if data is None else Path(data))
    assert result.outcome.reason == "done", name
    print("played", name, flush=True)
socket.socket().connect_ex(("127.0.0.1", {LAST}))
"""


def clothes(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 10)):
        size = count.to_bytes(4, "big")
        side = (28).to_bytes(4, "big")
        pixels = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8).tobytes()
        images = (2051).to_bytes(4, "big") + size + side + side + pixels
        names = (2049).to_bytes(4, "big") + size + bytes(i % 10 for i in range(count))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(names))


def incomes(folder: Path) -> None:
    row = "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White"
    row += ", Male, 2174, 0, 40, United-States"
    lines = [f"{row}, {'<=50K' if i % 2 else '>50K'}" for i in range(60)]
    for name in ("adult.data", "adult.test"):
        (folder / name).write_text("\n".join(lines) + "\n")


def hearts(folder: Path) -> None:
    rows = [f"{30 + i % 40},1,1,145,233,1,2,150,0,2.3,3,0,6,{i % 2}" for i in range(80)]
    for name in ("cleveland", "hungarian", "switzerland", "va"):
        (folder / f"processed.{name}.data").write_text("\n".join(rows) + "\n")


MADE: dict[str, Callable[[Path], None] | None] = {
    **AREAS,
    "digits": None,
    "adult": incomes,
    "heart-disease": hearts,
    "fashion-mnist": clothes,
    "fashion-scattering": clothes,
    "sms-spam": messages,
    "sms-lora": messages,
}
SETS = {"shakespeare": ["sites=2"], "movielens": ["sites=2"], "digits": ["sites=2"]}
SETS |= {"adult": ["rows=actual"], "fashion-mnist": ["rows=actual"]}
ENCODED = ("sms-spam", "sms-lora")
"""Plans that need the package of a backbone and a tokenizer's library."""


def test_every_shipped_plan_is_played() -> None:
    assert set(MADE) == PLANS


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_simulation_of_a_shipped_plan_dials_or_asks_for_a_name(tmp_path: Path) -> None:
    jobs = []
    for name, make in MADE.items():
        if name in ENCODED and not all(map(find_spec, ENCODER)):
            continue
        data = tmp_path / name
        data.mkdir()
        if make is not None:
            make(data)
        sets = ["rounds=1", "delta=0.001", *SETS.get(name, [])]
        jobs.append((name, sets, None if make is None else str(data)))
    trace = tmp_path / "trace"
    done = subprocess.run(
        [*STRACE, "-o", str(trace), sys.executable, "-c", PLAY, json.dumps(jobs)],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path), "TACIT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=patience(900),
        check=False,
    )
    played = re.findall(r"played (\S+)", done.stdout)
    assert done.returncode == 0 and played == [name for name, _, _ in jobs], done.stderr[-2000:]
    dialled = INTERNET.findall(trace.read_text(errors="replace"))
    assert dialled == [str(LAST)]
