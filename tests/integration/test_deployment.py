"""What deploy/ says is what the commands take; its scripts do what they say with real processes."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from client.__main__ import app as client_app
from server.__main__ import app as server_app
from tests.support.patience import patience, wait_for
from tests.support.processes import BIN, World, told

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
APPS = {"tacit-client": client_app, "tacit-server": server_app}
CHARTS = ("tacit-server", "tacit-client")


def parses(words: list[str]) -> None:
    """The command accepts these words; nothing is run."""
    command = typer.main.get_command(APPS[words[0]])
    assert isinstance(command, click.Group)
    command.commands[words[1]].make_context(words[1], words[2:])


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return found


def test_every_service_of_the_compose_file_is_a_command_as_it_is() -> None:
    commands = {name: one["command"] for name, one in services().items() if name != "setup"}
    assert {name: words[0] for name, words in commands.items()} == {
        "coordinator": "tacit-server",
        "north": "tacit-client",
        "south": "tacit-client",
        "east": "tacit-client",
    }
    for words in commands.values():
        parses(words)


def test_every_service_is_without_rights_and_on_a_read_only_root() -> None:
    for name, one in services().items():
        assert one["read_only"] and one["cap_drop"] == ["ALL"], name
        assert one["user"] == "10001:10001", name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert all(Path(m.split(":")[0]).suffix or ":" in m for m in one["volumes"]), name


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_asks_for_no_value_that_it_does_not_declare(chart: str) -> None:
    folder = DEPLOY / "helm" / chart
    values = yaml.safe_load((folder / "values.yaml").read_text())
    used = {
        match
        for path in (folder / "templates").iterdir()
        for match in re.findall(r"\.Values\.([A-Za-z.]+)", path.read_text())
    }
    for name in used:
        found: Any = values
        for part in name.split("."):
            assert part in found, f"{chart}: {name}"
            found = found[part]
    tops = {name.split(".")[0] for name in used}
    assert tops == set(values), "every value is used"


@pytest.mark.parametrize("chart", CHARTS)
def test_the_command_of_a_chart_is_one_that_the_program_takes(chart: str) -> None:
    text = (DEPLOY / "helm" / chart / "templates" / "statefulset.yaml").read_text()
    (line,) = re.findall(r"exec (tacit-[^\n]*)", text)
    line = line.replace("{{ .Values.metrics.port }}", "9464").replace("{{ . | quote }}", "x:1")
    line = re.sub(r"\{\{ range .*?\{\{ end \}\}", "", line)
    parses(re.sub(r"\{\{.*?\}\}", "", line).split())


@pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed")
@pytest.mark.parametrize("chart", CHARTS)
def test_helm_is_content_with_a_chart(chart: str) -> None:
    subprocess.run(["helm", "lint", "--strict", DEPLOY / "helm" / chart], check=True)


def test_the_image_copies_what_is_there_and_leaves_out_what_is_not_asked() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line
        for source in sources:
            assert f"!{source}\n" in (ROOT / ".dockerignore").read_text(), source
    assert "USER 10001:10001" in text and "HEALTHCHECK" in text


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_unit_starts_what_the_program_takes(role: str) -> None:
    text = (DEPLOY / f"tacit-{role}.service").read_text()
    (line,) = re.findall(r"^ExecStart=/opt/tacit/.venv/bin/(.*)$", text, re.M)
    line = line.replace("$TACIT_OPTIONS", "--metrics 127.0.0.1:9464")
    parses(line.replace("${LISTEN}", "[::]:8443").split())


@pytest.mark.parametrize("script", ["setup.sh", "slurm/tacit-client.sbatch"])
def test_scripts_are_whole(script: str) -> None:
    subprocess.run(["bash", "-n", DEPLOY / script], check=True)


def health(folder: Path) -> int:
    return subprocess.run([sys.executable, DEPLOY / "health.py", folder], check=False).returncode


@pytest.mark.slow
def test_setup_enrols_sites_once_and_the_health_check_tells_the_living_from_the_dead(
    tmp_path: Path,
) -> None:
    world = World(tmp_path / "world")
    folder = tmp_path / "federation"
    host = f"127.0.0.1:{world.port}"
    command = ["sh", DEPLOY / "setup.sh", host, folder, "north", "south"]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(command, check=True, env=environment, timeout=patience(120))
    kept = (folder / "north" / "site.key").read_bytes()
    world.home, world.sites = folder / "coordinator", {n: folder / n for n in ("north", "south")}
    assert health(world.home) == health(folder / "north") == 1
    with told(world):
        server, client = world.serve(), world.client(0)
        world.until(lambda: health(world.home) == health(folder / "north") == 0)
        world.until(lambda: " connected site=north" in world.log("server"))
        server.send_signal(signal.SIGSTOP)
        world.coordinator = None
        assert wait_for(lambda: health(world.home) == 1, 60), "it holds its lock, and does nothing"
        server.send_signal(signal.SIGCONT)
        world.kill(client)
        assert health(folder / "north") == 1
    assert (folder / "north" / "site.key").read_bytes() == kept
