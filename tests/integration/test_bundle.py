"""The app bundle: what `flwr build` packs, and that it stands alone."""

import io
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab

# Flower calls a name that its own pathspec deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("privacy", "client", "server")
STRAYS = (
    "ledger.jsonl",
    "client/people.jsonl",
    "client/site.json",
    "server/signing.key",
    "server/notes.md",
    "privacy/plans/ledger.jsonl",
    "privacy/policy.toml",
    "privacy/plans/notes.md",
    "policy.toml",
    "runs/first/plan.toml",
    "north/policy.toml",
    "tests/test_more.py",
    "simulations/more.py",
    "benchmarks/more.py",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bundle of the whole checkout, but for what is not of it: Flower looks at every file."""
    own = (".venv", ".git", ".*_cache", "__pycache__", ".hypothesis", "site", "results")
    app = tmp_path_factory.mktemp("checkout") / "app"
    shutil.copytree(ROOT, app, ignore=shutil.ignore_patterns(*own))
    return build_fab_from_disk(app)


def held(fab: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(fab)) as packed:
        return set(packed.namelist())


def test_the_bundle_holds_the_three_packages_and_the_plans_and_nothing_else(bundle: bytes) -> None:
    code = {
        p.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*.py")
    }
    plans = {f"privacy/plans/{p.name}" for p in (ROOT / "privacy" / "plans").glob("*.toml")}
    assert held(bundle) == code | plans | {"pyproject.toml", ".info/CONTENT"}
    assert len(bundle) < 3 * 1024 * 1024  # Flower's limit is 10 MiB


def test_what_lies_about_in_the_folder_stays_there(tmp_path: Path, bundle: bytes) -> None:
    app = tmp_path / "app"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", app)
    for stray in STRAYS:
        path = app / stray
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret = 1\n")
    assert held(build_fab_from_disk(app)) == held(bundle)


ALONE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import client.flower_app, server.flower.app
from client.tasks.registry import task_of
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from privacy.contract.plan_file import load_plan, shipped
assert isinstance(client.flower_app.app, ClientApp) and isinstance(server.flower.app.app, ServerApp)
for name in shipped():
    task_of(load_plan(name))
ours = ("privacy", "client", "server", "simulations", "tests")
print(json.dumps([shipped(), {m: f.__file__ for m, f in sys.modules.items()
    if m.split(".")[0] in ours}]))
"""


@pytest.mark.slow
def test_the_bundle_runs_without_the_checkout(tmp_path: Path, bundle: bytes) -> None:
    app = install_from_fab(bundle, tmp_path, skip_prompt=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", ALONE, str(app)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "FLWR_TELEMETRY_ENABLED": "0", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    plans, files = json.loads(done.stdout.splitlines()[-1])
    assert plans == sorted(p.stem for p in (ROOT / "privacy" / "plans").glob("*.toml"))
    assert {
        "client.flower_app",
        "server.flower.app",
        "client.dpsgd.training",
        "privacy.ledger.ledger",
    } <= set(files)
    assert not [file for file in files.values() if not file.startswith(str(app))]


def test_the_apps_options_are_those_that_its_page_names() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    page = (ROOT / "docs" / "stock-flower.md").read_text("utf-8")
    assert not [option for option in table["config"] if f"`{option}`" not in page]
