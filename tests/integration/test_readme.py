"""The README is run as it stands, and what it leaves is what it promises."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from privacy.accounting.events import Event
from privacy.identity.keys import signing_public, verify
from privacy.ledger.heads import payload
from privacy.ledger.ledger import Ledger
from privacy.ledger.recovery import known_events
from tests.support.forks import forked_commands
from tests.support.patience import patience

README = Path(__file__).resolve().parents[2] / "README.md"
BIN = Path(sys.executable).parent
SITES = ("north", "south", "east")


def blocks(section: str) -> list[str]:
    """The shell blocks of one section."""
    text = README.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def bash(
    script: str, folder: Path, seconds: float = 500, commands: Path = BIN
) -> subprocess.CompletedProcess[str]:
    """Run a script with the commands of a folder; whatever it started is ended with it."""
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=patience(seconds))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.CompletedProcess(script, process.returncode, out, err)


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the Federate block was run, line by line.

    Its commands are forks; test_install.py runs the block with those of an installed wheel.
    """
    folder = tmp_path_factory.mktemp("federate")
    (block,) = blocks("Federate")
    script = block.replace("8443", str(free_port())) + "\nwait\n"
    with forked_commands(tmp_path_factory.mktemp("commands") / "bin") as commands:
        done = bash(script, folder, commands=commands)
    assert "done after 5 rounds" in done.stdout, done.stdout + done.stderr
    return folder


def run_of(folder: Path) -> Path:
    (run,) = (folder / "coordinator" / "runs").iterdir()
    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_federate_block_trains_three_sites_over_mutual_tls(federated: Path) -> None:
    run = run_of(federated)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["reason"], summary["rounds"], summary["private"]) == ("done", 5, True)
    assert summary["metrics"]["accuracy"] > 0.5
    assert set(summary["sites"]) == set(SITES)
    history = lines(run / "history.jsonl")
    assert all(said["status"] == "trained" for line in history for said in line["sites"].values())
    assert len(list((run / "checkpoints").glob("*.safetensors"))) == 5
    assert len(list((run / "checkpoints").glob("*.sig"))) == 5


def test_what_the_sites_spent_is_what_the_coordinator_reports(federated: Path) -> None:
    last = lines(run_of(federated) / "history.jsonl")[-1]
    for number, site in enumerate(SITES):
        ledger = Ledger.open(federated / site / "ledgers" / f"builtin-{number}-3.jsonl")
        assert ledger.head.n == 5
        said = last["sites"][site]
        assert ledger.spent(said["delta"]) == pytest.approx(said["epsilon"], rel=1e-9)


def test_the_counter_signed_heads_are_what_recovery_reads(federated: Path) -> None:
    home = federated / "coordinator"
    key = signing_public((home / "signing.key").read_bytes())
    record = lines(home / "heads" / "north.jsonl")
    assert record == lines(run_of(federated) / "heads" / "north.jsonl")
    known = known_events([record], lambda message, signed: verify(key, message, signed))
    ledger = Ledger.open(federated / "north" / "ledgers" / "builtin-0-3.jsonl")
    assert known is not None
    assert sum(event.count for _, event in known) == ledger.head.n
    assert {event.sigma for _, event in known} == {e.sigma for e in ledger.events()}
    assert all(isinstance(event, Event) for _, event in known)
    last = record[-1]
    assert verify(key, payload("north", ledger.head), bytes.fromhex(last["signature"])) is (
        (last["n"], last["digest"]) == (ledger.head.n, ledger.head.digest)
    )


def test_each_site_keeps_the_released_model_and_the_plan_that_was_asked(federated: Path) -> None:
    for site in SITES:
        index = lines(federated / site / "models" / "index.jsonl")
        assert index[-1]["round"] == 5
        assert len(list((federated / site / "plans").glob("*.json"))) == 1


def test_private_files_are_private(federated: Path) -> None:
    for site in (*SITES, "coordinator"):
        keys = list((federated / site).glob("*.key"))
        assert keys
        assert all(key.stat().st_mode & 0o077 == 0 for key in keys)
        assert (federated / site).stat().st_mode & 0o077 == 0


def test_the_light_commands_answer_about_what_happened(federated: Path) -> None:
    done = bash(
        "tacit-server status --dir coordinator --json; tacit-server sites --dir coordinator --json;"
        "tacit-server doctor --dir coordinator; tacit-client plans --dir north --policy p.toml",
        federated,
    )
    status, sites = (json.loads(line) for line in done.stdout.splitlines()[:2])
    assert status["runs"][0]["state"] == "done"
    assert [one["state"] for one in sites["sites"]] == ["good"] * 3
    assert "FAULT" not in done.stdout


def commands() -> list[str]:
    """Every tacit command that the README writes, without shell around it."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", README.read_text("utf-8"), re.DOTALL):
        for line in block.splitlines():
            for part in re.split(r";|&|\bdo\b", line.split("  #")[0]):
                if part.strip().startswith("tacit-"):
                    found.append(part.strip())
    return found


def test_every_command_and_option_in_the_readme_exists() -> None:
    from client.__main__ import app as client
    from client.commands import models
    from privacy.__main__ import app as privacy
    from server.__main__ import app as server
    from simulations.__main__ import app as simulate

    models.register(client)
    apps = {
        "tacit-client": client,
        "tacit-privacy": privacy,
        "tacit-server": server,
        "tacit-simulate": simulate,
    }
    assert commands()
    for text in commands():
        name, *words = shlex.split(text)
        command = typer.main.get_command(apps[name])
        while isinstance(command, click.Group):
            assert words[0] in command.commands, f"{text}: no {words[0]}"
            command = command.commands[words.pop(0)]
        known = {one for parameter in command.params for one in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, text


@pytest.mark.slow
def test_the_simulate_block_runs_as_it_stands(tmp_path: Path) -> None:
    (block,) = blocks("Simulate")
    done = bash("set -e\n" + block, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
