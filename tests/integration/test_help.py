"""`--help` is an instant: no command loads torch, Opacus, Flower or scipy to say what it does."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "opacus.layers", "flwr", "onnx", "ray", "sklearn", "scipy")
ASK = """
import json, sys
import click, typer
from {module} import app, main

def ask(command, words):
    try:
        command.main([*words, "--help"], prog_name="x", standalone_mode=False)
    except click.exceptions.Exit:
        pass
    asked.append(words)
    for name, one in getattr(command, "commands", {{}}).items():
        ask(one, [])

asked, out = [], sys.stdout
sys.stdout = sys.stderr
ask(typer.main.get_command(app), [])
sys.argv = ["x", "--help"]
try:
    main()
except SystemExit:
    pass
print(json.dumps([len(asked), [name for name in {heavy!r} if name in sys.modules]]), file=out)
"""


@pytest.mark.parametrize(
    ("module", "least"),
    [
        ("client.__main__", 20),
        ("server.__main__", 9),
        ("privacy.__main__", 9),
        ("simulations.__main__", 1),
    ],
)
def test_no_help_loads_what_only_the_work_needs(module: str, least: int) -> None:
    code = ASK.format(module=module, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    asked, loaded = json.loads(done.stdout)
    assert asked >= least
    assert loaded == []
