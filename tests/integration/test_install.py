"""What an install brings: the lock, the wheel without extras, and packages that are ours."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.patience import patience

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("privacy", "client", "server", "simulations")
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", re.MULTILINE)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    return {canonical(name): release for name, release in PIN.findall(path.read_text("utf-8"))}


def test_every_pin_of_the_lock_has_hashes_and_is_the_constraint() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    entries = re.split(r"\n(?=[A-Za-z0-9])", lock.strip())
    assert len(entries) > 50
    assert not [entry[:40] for entry in entries if "--hash=sha256:" not in entry]
    constraints = pins(ROOT / "constraints.txt")
    locked = pins(ROOT / "requirements.lock")
    assert {name: locked[name] for name in locked if name in constraints} == {
        name: release for name, release in constraints.items() if name in locked
    }


def test_everything_declared_is_in_the_lock_but_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for some in project["project"]["optional-dependencies"].values():
        wanted += some
    names = {canonical(re.match(r"[A-Za-z0-9._-]+", one)[0]) for one in wanted}  # type: ignore[index]
    assert names - set(pins(ROOT / "requirements.lock")) == {"torch"}


def test_the_bill_of_materials_names_the_lock_and_torch() -> None:
    command = [sys.executable, str(ROOT / "deploy" / "sbom.py"), str(ROOT / "requirements.lock")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    bill = json.loads(done.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {one["name"]: one for one in bill["components"]}
    assert set(listed) == {*pins(ROOT / "requirements.lock"), "torch"}
    assert all(one.get("hashes") for name, one in listed.items() if name != "torch")
    assert len({one["purl"] for one in bill["components"]}) == len(bill["components"])


@pytest.mark.parametrize(
    ("package", "hidden"),
    [("client", "privacy"), ("server", "privacy"), ("simulations", "server")],
)
def test_somebody_elses_package_of_our_name_is_one_line(
    tmp_path: Path, package: str, hidden: str
) -> None:
    (tmp_path / hidden).mkdir()
    (tmp_path / hidden / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", f"import {package}"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert f"{hidden}: {(tmp_path / hidden).resolve()} is another package of this name" in last


def wheel(folder: Path) -> Path:
    """The wheel of this tree."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=patience(120))
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_holds_the_four_packages_their_c_their_pages_and_their_types(
    tmp_path: Path,
) -> None:
    with zipfile.ZipFile(wheel(tmp_path)) as packed:
        held = {name for name in packed.namelist() if ".dist-info/" not in name}
        notices = {name.rsplit("/", 1)[-1] for name in packed.namelist() if "licenses/" in name}
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert held == {name for name in tracked if (ROOT / name).exists()}
    assert {f"{package}/py.typed" for package in PACKAGES} <= held
    assert "LICENSE" in notices


WITHOUT_EXTRAS = """
import importlib.abc, sys
hidden = set(sys.argv[1].split(","))
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin of an environment with the wheel, in which the extras' packages are absent.

    Other packages are shared with the environment of the tests.
    """
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel(folder)) as packed:
        packed.extractall(site)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    shared = Path(pytest.__file__).resolve().parent.parent
    (site / "absent.py").write_text(
        WITHOUT_EXTRAS.replace("sys.argv[1]", repr(",".join(sorted(extra_modules(project)))))
    )
    # The finder of this tree's own editable install would come first: only the folder is shared.
    (site / "shared.pth").write_text(f"import absent\n{shared}\n")
    for name, target in project["scripts"].items():
        module, function = target.split(":")
        script = folder / "venv" / "bin" / name
        python = folder / "venv" / "bin" / "python"
        script.write_text(
            f"#!{python}\nfrom {module} import {function}\n"
            f'if __name__ == "__main__":\n    {function}()\n'  # as pip's scripts: children spawn
        )
        script.chmod(0o755)
    return folder / "venv" / "bin"


def extra_modules(project: dict[str, object]) -> set[str]:
    """Top-level modules of what only the extras declare."""
    from importlib.metadata import packages_distributions

    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    required: list[str] = project["dependencies"]  # type: ignore[assignment]
    name = re.compile(r"[A-Za-z0-9._-]+")
    wanted = {canonical(name.match(one)[0]) for some in extras.values() for one in some}  # type: ignore[index]
    wanted -= {canonical(name.match(one)[0]) for one in required}  # type: ignore[index]
    return {
        module
        for module, distributions in packages_distributions().items()
        if {canonical(one) for one in distributions} <= wanted
    }


@pytest.mark.slow
def test_the_wheel_without_extras_runs_the_readme(bare: Path, tmp_path: Path) -> None:
    from tests.integration.test_readme import blocks, free_port

    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PATH"] = f"{bare}:{os.environ['PATH']}"
    where = subprocess.run(
        [bare / "python", "-c", "import client, sys; print(client.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(where.strip()).is_relative_to(bare.parent)
    (simulate,), (federate,) = blocks("Simulate"), blocks("Federate")
    script = f"set -e\n{simulate}\nset +e\n{federate.replace('8443', str(free_port()))}\nwait\n"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(500),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "done after 5 rounds" in done.stdout, done.stdout + done.stderr
