"""tacit-privacy: one JSON object or one clear line, and exit statuses that programs can rely on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from privacy.__main__ import app, main
from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.rounding import spent_text
from privacy.ledger.ledger import Ledger, log_path
from tests.support.patience import patience

ROOT = Path(__file__).resolve().parents[3]
EVENT = Event("record", 4.0, 0.1, 1)
PLAN = """
task = "digits"
sites = 3
rounds = 12
rate = 1.0
rows = 300
lr = 1.0
clip = 1.0
sigma = 8.0
delta = 1e-5
metrics = ["loss"]
metrics_sigma = 20.0
[site.site-1]
limit = 1.5
"""
POLICY = """
epsilon = 1.2
delta = 1e-5
approve = "within-limits"
outputs = ["update", "loss"]
"""


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command's exit status, its output and its complaint."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tacit-privacy", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(str(ended.value.code)), out, err

    return run


def test_the_command_is_there_for_the_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "privacy", "ledger", "verify", "none.jsonl"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=patience(120),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tacit-privacy: none.jsonl: no such file\n"


def said(*arguments: str) -> Any:
    """The JSON that a command prints, in this process."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.create(tmp_path / "people.jsonl", population="people", durable=False)
    for number in range(3):
        ledger.spend(EVENT, None, run="run", round=number, plan="p" * 64)
    return ledger


@pytest.fixture
def plan(tmp_path: Path) -> str:
    (tmp_path / "plan.toml").write_text(PLAN)
    return str(tmp_path / "plan.toml")


def test_epsilon_and_sigma_print_what_the_accountant_says() -> None:
    asked = ("epsilon", "--segment", "1,0.01,500", "--segment", "1.5,0.02,300", "--delta", "1e-5")
    events = [Event("record", 1.0, 0.01, 500), Event("record", 1.5, 0.02, 300)]
    found = said(*asked)
    assert found == {"epsilon": spent(events, 1e-5), "delta": 1e-5, "accountant": "pld"}
    rdp = said(*asked, "--accountant", "rdp")
    assert rdp["accountant"] == "rdp"
    assert rdp["epsilon"] > found["epsilon"]
    assert said("epsilon", "--delta", "1e-5")["epsilon"] == 0
    assert said("epsilon", "--segment", "0,0.1,1", "--delta", "1e-5")["epsilon"] == "infinite"
    sigma = said("sigma", "--epsilon", "1", "--delta", "1e-5", "--rate", "0.1", "--steps", "50")
    assert 0.995 < spent([Event("record", sigma["sigma"], 0.1, 50)], 1e-5) <= 1


def test_bad_input_is_one_line_and_exit_2(run: Run, tmp_path: Path) -> None:
    for arguments in (
        ("epsilon",),
        ("epsilon", "--segment", "1,2,3", "--delta", "1e-5"),
        ("ledger", "verify", str(tmp_path / "none.jsonl")),
        ("plan", "no-such-plan"),
        ("bogus",),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("tacit-privacy: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["epsilon", "--segment", "1,0.1", "--delta", "1e-5"],
        ["epsilon", "--segment", "1,0.1,1.5", "--delta", "1e-5"],
        ["epsilon", "--segment", "nan,0.1,1", "--delta", "1e-5"],
        ["epsilon", "--segment", "inf,0.1,1", "--delta", "1e-5"],
        ["epsilon", "--segment=-1,0.1,1", "--delta", "1e-5"],
        ["epsilon", "--segment", "1,-0.1,1", "--delta", "1e-5"],
        ["epsilon", "--segment", "1,0.1,-1", "--delta", "1e-5"],
        ["epsilon", "--segment", "1,0.1,1", "--delta", "0"],
        ["epsilon", "--segment", "1,0.1,1", "--delta", "1"],
        ["epsilon", "--segment", "1,0.1,1", "--delta", "nan"],
        ["epsilon", "--segment", "1,0.1,1", "--delta", "1e-5", "--accountant", "gdp"],
        ["sigma", "--epsilon", "0", "--delta", "1e-5", "--rate", "0.1", "--steps", "1"],
        ["sigma", "--epsilon", "-1", "--delta", "1e-5", "--rate", "0.1", "--steps", "1"],
        ["sigma", "--epsilon", "1", "--delta", "1e-5", "--rate", "0", "--steps", "1"],
        ["sigma", "--epsilon", "1", "--delta", "1e-5", "--rate", "2", "--steps", "1"],
        ["sigma", "--epsilon", "1", "--delta", "1e-5", "--rate", "0.1", "--steps", "0"],
        ["ledger", "show", "/dev/null", "--delta", "7"],
    ],
)
def test_nonsense_is_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ValueError)
    assert done.stdout == ""


def test_verify_exits_0_for_a_sound_ledger_and_4_for_any_other_file(
    run: Run, ledger: Ledger, tmp_path: Path
) -> None:
    found = said("ledger", "verify", str(ledger.path))
    assert found["sound"] is True
    assert found["entries"] == 3
    copy = tmp_path / "copy" / "alone.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(ledger.path.read_bytes())
    assert said("ledger", "verify", str(copy))["digest"] == found["digest"]
    changed = tmp_path / "changed.jsonl"
    lines = ledger.path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b'"sigma": 4.0', b'"sigma": 9.0')
    changed.write_bytes(b"\n".join(lines))
    code, out, err = run("ledger", "verify", str(changed))
    assert (code, out) == (4, "")
    assert "line 2: digest" in err
    code, out, _ = run("ledger", "verify", str(changed), "--json")
    assert code == 4
    assert json.loads(out)["line"] == 2
    assert run("ledger", "verify", str(tmp_path))[0] == 4
    assert run("ledger", "show", str(changed))[0] == 4


def test_show_says_what_was_spent_and_never_the_salt(ledger: Ledger) -> None:
    ledger.note("contents", sha256="0" * 64)
    found = said("ledger", "show", str(ledger.path), "--delta", "1e-5")
    assert found["epsilon"] == ledger.spent(1e-5)
    assert [entry["n"] for entry in found["entries"]] == [1, 2, 3]
    assert found["segments"] == [{"sigma": 4.0, "rate": 0.1, "steps": 3, "records": 1}]
    assert [note["what"] for note in found["log"]] == ["created", "anchored", "day", "contents"]
    plain = CliRunner().invoke(app, ["ledger", "show", str(ledger.path), "--delta", "1e-5"])
    salt = json.loads(log_path(ledger.path).read_bytes().split(b"\n")[0])["details"]["salt"]
    assert salt not in plain.stdout + json.dumps(found)
    assert f"epsilon {spent_text(ledger.spent(1e-5))} at" in plain.stdout


def test_a_name_in_a_ledger_cannot_drive_the_terminal(ledger: Ledger) -> None:
    name = "\x1b[2J[b]"
    ledger.spend(EVENT, None, run=name, round=1, plan=name)
    shown = CliRunner().invoke(app, ["ledger", "show", str(ledger.path)])
    assert shown.exit_code == 0
    assert "\x1b[2J" not in shown.stdout
    assert "\\x1b[2J[b]" in shown.stdout


def test_a_plan_is_counted_round_by_round_and_site_by_site(plan: str, tmp_path: Path) -> None:
    found = said("plan", plan)
    assert set(found["sites"]) == {"site-0", "site-1", "site-2"}
    rounds = found["sites"]["site-0"]["rounds"]
    assert [one["round"] for one in rounds] == list(range(1, 13))
    events = [Event("record", 8.0, 1.0, 1, 12), Event("record", 20.0, 1.0, 1, 12)]
    assert abs(rounds[-1]["epsilon"] - spent(events, 1e-5)) < 1e-9
    assert found["sites"]["site-0"]["refused"] is None
    limited = found["sites"]["site-1"]
    assert limited["refused"]["code"] == "budget-exhausted"
    last = limited["refused"]["round"] - 1
    assert limited["epsilon"] == rounds[last - 1]["epsilon"] <= 1.5 < rounds[last]["epsilon"]
    assert [one["field"] for one in found["leaves"]][:2] == ["update", "metrics"]
    for one in found["leaves"]:
        assert (one["paid_by"] is not None) != one["data_independent"]


def test_a_policy_says_which_round_it_would_refuse(
    plan: str, ledger: Ledger, tmp_path: Path
) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text(POLICY)
    fresh = said("plan", plan, "--policy", str(rules))["sites"]["site-0"]
    ledger.spend_all([EVENT] * 40, None, run="run", round=4, plan="p")
    later = said("plan", plan, "--policy", str(rules), "--ledger", str(ledger.path))
    assert fresh["refused"]["code"] == "budget-exhausted"
    assert later["sites"]["site-0"]["refused"]["round"] < fresh["refused"]["round"]
    assert later["sites"]["site-0"]["policy"]["spent"] == ledger.spent(1e-5)
    shown = CliRunner().invoke(app, ["plan", plan, "--policy", str(rules)])
    assert f"round {fresh['refused']['round']} would be refused: budget-exhausted" in shown.stdout


def test_a_plan_without_privacy_has_no_epsilon_and_says_so(plan: str) -> None:
    changed = ("--set", "unit=none", "--set", "metrics=[]", "--set", "site={}")
    found = said("plan", plan, *changed)
    assert found["delta"] is None
    assert found["sites"]["site-0"]["epsilon"] is None
    shown = CliRunner().invoke(app, ["plan", plan, *changed])
    assert "no privacy is claimed" in shown.stdout
    assert "NOT PROTECTED" in shown.stdout
