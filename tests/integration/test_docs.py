"""The documentation: every link leads somewhere, every key is described, the site builds."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from privacy.contract.plan_file import load_plan
from privacy.contract.policy import Policy
from server.dashboard.run_history import REASONS
from simulations.run import simulate
from tests.support.patience import patience

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").glob("*.md"),
    ]
    if "generated" not in path.parts
)


def generator() -> Any:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_of_a_page_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = [one.partition("#")[0] for one in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [one for one in targets if one and not re.match(r"[a-z]+:", one)]
    assert not [one for one in local if not (page.parent / one).exists()]


def test_the_reference_describes_every_key_command_code_and_event() -> None:
    made = generator()
    plan, policy = made.plan_page(), made.policy_page()
    kinds = made.TABLES.values()
    keys = {item.name for kind in kinds for item in fields(kind)} - made.NESTED
    assert keys <= set(made.plan_meanings())
    assert not [key for key in keys if f"| `{key}` |" not in plan]
    assert not [item.name for item in fields(Policy) if f"| `{item.name}` |" not in policy]
    page = made.commands_page()
    names = [name for name, _ in made.commands()]
    assert len(names) > 30 and "tacit-client predict" in names
    assert not [name for name in names if f"## {name}\n" not in page]
    assert not [code for code in REASONS if f"`{code}`" not in made.refusals_page()]


def test_docs_plan_md_describes_no_key_that_is_gone() -> None:
    made = generator()
    keys = {item.name for kind in made.TABLES.values() for item in fields(kind)}
    assert set(made.plan_meanings()) <= keys


def test_a_code_that_the_apps_give_has_words() -> None:
    """What a site or the loop refuses with stands in the table from which pages are made."""
    files = [
        *(ROOT / "client").glob("*.py"),
        *(ROOT / "privacy" / "contract").glob("*.py"),
        *(ROOT / "server" / "rounds").glob("*.py"),
    ]
    given = {
        code
        for path in files
        for code in re.findall(
            r"(?:_Refused|Refusal|ReplyError)\(\s*\"([a-z-]+)\"", path.read_text()
        )
    }
    assert len(given) > 10
    assert given - set(REASONS) <= {"bad-request"}


def test_the_page_of_the_run_folder_names_every_file_of_a_run(tmp_path: Path) -> None:
    plan = load_plan("digits", ["rounds=1", "sites=2", "sigma=2.0", "rate=0.1", "delta=3e-4"])
    simulate(plan, tmp_path / "run")
    page = (ROOT / "docs" / "reference" / "run-folder.md").read_text("utf-8")
    names = {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")}
    assert {"plan.toml", "history.jsonl", "ledgers"} <= names
    assert not [one for one in names if f"`{one}`" not in page and f"`{one}/`" not in page]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py")], check=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=patience(300)
    )
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    elsewhere = re.compile(r"<(?:script|img|link)[^>]+(?:src|href)=\"(https?:[^\"]+)\"")
    assert not {one for page in pages for one in elsewhere.findall(page.read_text("utf-8"))}
    index = json.loads((tmp_path / "search" / "search_index.json").read_text("utf-8"))
    assert len(index["docs"]) > 100
