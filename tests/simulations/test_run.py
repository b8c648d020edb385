"""tacit-simulate as a person or a program meets it."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from privacy.accounting.events import Event
from privacy.ledger.ledger import verify
from simulations.__main__ import main
from tests.support.patience import patience
from tests.support.task_packages import MODEL, READ, package, rows


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The command in this process: its exit status, stdout and stderr."""
    sys.argv = ["tacit-simulate", *arguments]
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(str(ended.value.code or 0)), out, err


QUICK = ("digits", "--set", "rounds=2", "--set", "sigma=2", "--sites", "2")

BAD = [
    ["absent"],
    [],
    ["digits", "--nonsense"],
    ["digits", "--sites", "0"],
    ["digits", "--sites", "two"],
    ["digits", "--sites", "5000"],
    ["digits", "--seed", "-1"],
    ["digits", "--seed", "x"],
    ["digits", "--name", "../up"],
    ["digits", "--name", ""],
    ["digits", "--name", "a/b"],
    ["digits", "--resume"],
    ["digits", "--resume", "--name", "never"],
    ["digits", "--set", "rounds"],
    ["digits", "--set", "=3"],
    ["digits", "--set", "nonsense=1"],
    ["digits", "--set", "rounds=0"],
    ["digits", "--set", "rate=2"],
    ["digits", "--set", "clip=0"],
    ["digits", "--set", "optimizer=newton"],
    ["digits", "--set", "delta=0.9"],
    ["digits", "--set", "sigma=1", "--set", "epsilon=1"],
    ["digits", "--set", "split=natural"],
    ["digits", "--set", "split=labels:99"],
    ["digits", "--set", "split=dirichlet:-1"],
    ["digits", "--set", "task=cancer"],
    ["digits", "--set", "task=table"],
    ["digits", "--set", "site.site-9.limit=1"],
    ["digits", "--set", "site.site-0.limit=-1"],
    ["digits", "--set", "simulation.engine=warp"],
    ["digits", "--set", "schema=absent.toml"],
    ["adult"],
    ["adult", "--data", "absent"],
    ["fashion-mnist", "--data", "empty"],
    ["heart-disease", "--data", "empty"],
    ["fashion-mnist", "--data", "torn"],
    ["adult", "--data", "torn"],
    ["bad.toml"],
    ["binary.toml"],
    ["empty"],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_line_and_exit_2_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    Path("empty").mkdir()
    Path("torn").mkdir()
    whole = gzip.compress(b"\x00\x00\x08\x03" + b"\x00" * 1000)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        Path("torn", f"{name}-ubyte.gz").write_bytes(whole[:-9])
    for name in ("adult.data", "adult.test"):
        Path("torn", name).write_text("39, State-gov, 77516\n")
    Path("bad.toml").write_text("task = [")
    Path("binary.toml").write_bytes(b"\xff\xfe\x00")
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("tacit-simulate: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not Path("runs").exists()


def test_a_dead_worker_is_one_line_that_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("simulations.engines.pool._work", lambda *_: os._exit(1))
        words = ["--name", "one", "--set", "simulation.engine=processes"]
        code, _, err = run(capsys, *QUICK, *words)
    assert code == 1
    again = "tacit-simulate --resume --name one"
    last = err.splitlines()[-1]
    assert last == f"tacit-simulate: a worker process has died; go on with: {again}"
    assert "Traceback" not in err
    assert run(capsys, *again.split()[1:])[0] == 0


def test_an_own_model_that_fails_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    package(tmp_path / "mine", READ + MODEL.replace("nn.Linear(3, width)", "nn.Linear(5, width)"))
    keys = 'split = "natural"\nrounds = 1\nrate = 0.5\nlr = 1.0\nclip = 1.0\nepsilon = 4.0\n'
    Path("plan.toml").write_text(f'task = "mine"\nrows = "actual"\ndelta = 1e-4\n{keys}')
    data = str(rows(tmp_path / "rows.csv", 60))
    code, _, err = run(capsys, "plan.toml", "--task", str(tmp_path / "mine"), "--data", data)
    assert code == 1, err
    assert "made-up rows" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_json_is_one_object_on_stdout_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *QUICK, "--json", "--name", "one")
    assert code == 0
    said = json.loads(out)
    assert out.count("\n") == 1
    assert said["rounds"] == 2
    assert said["epsilon"] > 0
    assert Path(said["run"], "summary.json").exists()


def test_a_person_gets_a_table_and_one_honest_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *QUICK, "--name", "one")
    assert code == 0
    assert "round" in out and "accuracy" in out
    assert "2 of 2 rounds of digits reached accuracy" in out
    assert "for any one record" in out
    assert "runs/one" in out


def test_a_name_is_not_taken_twice_and_a_finished_run_resumes_to_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(capsys, *QUICK, "--name", "one")[0] == 0
    code, _, err = run(capsys, *QUICK, "--name", "one")
    assert code == 2
    assert "--resume" in err
    assert run(capsys, *QUICK, "--name", "one", "--resume")[0] == 0


def test_a_run_whose_budgets_are_spent_exits_3_and_keeps_what_it_reached(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys, *QUICK, "--set", "limit=1.2", "--set", "rate=0.5", "--json")
    assert code == 3
    said = json.loads(out)
    assert said["reason"] == "budget"
    assert said["rounds"] < 2
    assert said["epsilon"] <= 1.2


def test_without_privacy_every_output_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "digits", "--set", "unit=none", "--set", "rounds=1", "--json")
    assert code == 0
    assert json.loads(out)["epsilon"] is None
    assert "NOT PRIVATE" in json.loads(out)["sentence"]


def rows_of(folder: Path) -> int:
    return sum(len(p.read_bytes().splitlines()) for p in folder.glob("ledgers/*.jsonl"))


@pytest.mark.slow
def test_a_run_killed_again_and_again_still_ends_and_never_forgets_a_spend(
    tmp_path: Path,
) -> None:
    """kill -9 at ten moments of a run of 25 rounds; ledgers never show less than was released."""
    command = [sys.executable, "-m", "simulations", "digits", "--name", "one", "--json"]
    sets = ["rounds=25", "sigma=2", "sites=3"]
    command += [part for one in sets for part in ("--set", one)]
    folder = tmp_path / "runs" / "one"
    kills = 0
    before = 0
    for _ in range(40):
        more = ["--resume"] if folder.exists() else []
        process = subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, cwd=tmp_path)
        deadline = time.monotonic() + patience(60)
        while process.poll() is None and time.monotonic() < deadline and kills < 10:
            if rows_of(folder) >= before + 5:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        code = process.wait()
        before = rows_of(folder)
        checkpoints = len(list(folder.glob("checkpoints/*.safetensors")))
        for site in folder.glob("ledgers/*.jsonl"):
            assert len(site.read_bytes().splitlines()) >= checkpoints
        if code == 0:
            break
    assert kills == 10
    lines = [json.loads(x) for x in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, 26))
    for site in folder.glob("ledgers/*.jsonl"):
        events = verify(site).events
        assert len(events) >= 25
        assert set(events) == {Event("record", 2.0, lines[0]["sites"]["site-0"]["rate"], 1)}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_ctrl_c_ends_a_run_after_its_round_and_says_how_to_go_on(
    tmp_path: Path, engine: str
) -> None:
    """A terminal's Ctrl-C reaches the whole process group, the pool's workers too."""
    command = [sys.executable, "-m", "simulations"]
    first = [*command, "digits", "--name", "one", "--set", f"simulation.engine={engine}"]
    first += ["--set", "rounds=60", "--sites", "2"]
    process = subprocess.Popen(
        first,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    history = tmp_path / "runs" / "one" / "history.jsonl"
    deadline = time.monotonic() + patience(120)
    while not (history.exists() and history.read_text().count("\n") >= 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=patience(120))
    assert process.returncode == 130
    done = history.read_text().count("\n")
    assert 3 <= done < 60
    assert f"stopped after {done} of 60 rounds; go on with: " in err
    again = err.strip().splitlines()[-1].partition("tacit-simulate --resume")[2].split()
    more = subprocess.run(
        [*command, "--resume", *again, "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    summary = json.loads(more.stdout)
    assert (summary["reason"], summary["rounds"]) == ("done", 60)
    assert 2.9 < summary["epsilon"] <= 3.0
    for site in (tmp_path / "runs" / "one").glob("ledgers/*.jsonl"):
        if not site.name.endswith(".log.jsonl"):
            assert len(verify(site).events) == 60
