"""Commands by name: known before their modules are imported, and the same as their modules'."""

import importlib
import os
import pty
import subprocess
import sys

import click
import pytest
import typer

PROGRAMS = ("privacy", "client", "server")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_list_of_commands_says_what_their_modules_say(program: str) -> None:
    group = typer.main.get_command(importlib.import_module(f"{program}.__main__").app)
    assert isinstance(group, click.Group)
    of_modules: dict[str, str] = {}
    for module in dict.fromkeys(group.modules.values()):  # type: ignore[attr-defined]
        app = typer.Typer()
        importlib.import_module(module).register(app)
        for name, command in typer.main.get_group(app).commands.items():
            of_modules[name] = (command.help or "").split("\n\n")[0]
    assert group.lines == of_modules  # type: ignore[attr-defined]
    assert list(group.commands) == list(group.lines)  # type: ignore[attr-defined]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_no_command(program: str) -> None:
    code = (
        f"import sys; from {program}.__main__ import app; import typer, click\n"
        "try: typer.main.get_command(app).main(['--help'], standalone_mode=False)\n"
        "except click.exceptions.Exit: pass\n"
        f"print([m for m in sys.modules if m.startswith('{program}.commands.')"
        " and m.split('.')[-1] not in ('command_group', 'exit_codes')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Usage" in done.stdout


def test_a_mistyped_command_is_answered_with_the_nearest() -> None:
    from privacy.__main__ import app

    with pytest.raises(click.UsageError, match="Did you mean 'epsilon'"):
        typer.main.get_command(app).main(["epsilom"], standalone_mode=False)


def test_a_terminal_says_that_libraries_are_loading_and_a_pipe_says_nothing() -> None:
    code = "from privacy.runtime import load; load('zoneinfo')"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True)
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        assert terminal.read(100) == b"loading ...\r\x1b[K"
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert piped.stderr == b""
