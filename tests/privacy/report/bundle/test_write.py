"""Reports as their readers meet them: filed by a command, verified elsewhere, printed on paper."""

import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from privacy.__main__ import main
from privacy.identity.certificates import Authority
from privacy.identity.keys import new_key, new_signing_key
from privacy.ledger.ledger import Ledger
from privacy.report.bundle.registry_entry import FILL_IN
from privacy.report.bundle.verify import name_ledgers, verify
from privacy.report.bundle.write import file_report
from privacy.report.sources import ReportError
from tests.privacy.report.test_recount import federation, site
from tests.support.patience import patience
from tests.support.run_folders import edited, make_plan, run_folder

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in this process, with what it prints."""
    out, err, words = io.StringIO(), io.StringIO(), ["tacit-privacy", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", words)
        patch.setenv("NO_COLOR", "1")
        patch.setenv("COLUMNS", "400")
        with pytest.raises(SystemExit) as ended:
            main()
    code = int(ended.value.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def coordinator(path: Path) -> Path:
    """A coordinator's folder with its keys and one finished run."""
    run = federation(path / "runs" / "study")
    authority = Authority.create("a federation", NOW - timedelta(days=1))
    for name, content in (
        ("ca.pem", authority.certificate),
        ("ca.key", authority.key),
        ("server.key", new_key()),
        ("signing.key", new_signing_key()),
    ):
        (path / name).write_bytes(content)
    return run


@pytest.mark.slow
def test_the_commands_file_and_verify(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    filed = command("report", run, "--json")
    assert filed.returncode == 0, filed.stderr
    facts = json.loads(filed.stdout)
    assert facts["sound"] and facts["view"] == "simulation"
    shutil.move(run / "report", tmp_path / "elsewhere")
    shutil.rmtree(run / "ledgers")
    checked = command("verify", tmp_path / "elsewhere", "--json")
    assert checked.returncode == 0, checked.stdout
    assert json.loads(checked.stdout)["origin"].startswith("self-signed: integrity only")
    edited(
        tmp_path / "elsewhere" / "evidence" / "run" / "history.jsonl",
        '"seconds": 0',
        '"seconds": 1',
    )
    changed = command("verify", tmp_path / "elsewhere")
    assert changed.returncode == 4
    assert "history.jsonl line 1" in changed.stdout


def test_an_unsound_run_is_filed_in_red_with_status_4(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    edited(run / "ledgers" / "site-1.jsonl", '"sigma": 8.0', '"sigma": 9.0')
    filed = command("report", run)
    assert filed.returncode == 4
    assert "not sound" in filed.stdout
    page = (run / "report" / "report.html").read_text("utf-8")
    assert page.index("This report is not sound") < page.index("What could anybody learn")
    assert "Nothing contradicts it" not in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("report", "nowhere"), "expected a run folder"),
        (("verify", "."), "report.sig"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, arguments: tuple[str, str], said: str
) -> None:
    found = command(arguments[0], tmp_path / arguments[1])
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1 and said in found.stderr


def test_a_folder_with_other_things_is_not_overwritten(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ReportError, match="earlier report"):
        file_report([run], tmp_path / "mine")
    file_report([run], tmp_path / "new")
    file_report([run], tmp_path / "new")
    assert verify(tmp_path / "new").sound


def test_a_grown_ledger_verifies_and_a_rewritten_one_does_not(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    _, filed, _ = file_report([run])
    own = run / "ledgers" / "site-0.jsonl"
    plan = make_plan()
    ledger = Ledger.open(own, durable=False)
    ledger.spend_all(plan.nominal_events(), None, run="later", round=1, plan=plan.digest)
    assert verify(filed, name_ledgers(filed, [str(own)])).sound
    other = run_folder(tmp_path / "other", make_plan(sigma=9.0))
    forged = other / "ledgers" / "site-0.jsonl"
    found = verify(filed, name_ledgers(filed, [f"site-0={forged}"]))
    assert {d.code for d in found.differences} >= {"ledger-differs"}
    with pytest.raises(ReportError, match="--ledger"):
        name_ledgers(filed, ["site-9=" + str(forged)])


def test_a_coordinators_report_hides_names_and_is_held_to_its_authority(tmp_path: Path) -> None:
    run = coordinator(tmp_path / "home")
    for path in (run / "heads").glob("*.jsonl"):
        path.rename(path.with_name(path.name.replace("site", "hospital")))
    history = run / "history.jsonl"
    history.write_text(history.read_text("utf-8").replace('"site-', '"hospital-'), "utf-8")
    report, filed, names = file_report([run], tmp_path / "filed", now=NOW)
    assert report.sound, report.problems
    assert sorted(names.values()) == ["site-A", "site-B", "site-C"]
    for path in filed.rglob("*"):
        assert "hospital" not in path.name
        assert path.is_dir() or "hospital" not in path.read_text("utf-8")
    assert verify(filed).sound
    own = run_folder(tmp_path / "own") / "ledgers" / "site-0.jsonl"
    assert verify(filed, name_ledgers(filed, [f"site-B={own}"])).sound
    other = run_folder(tmp_path / "other", make_plan(sigma=9.0)) / "ledgers" / "site-0.jsonl"
    found = verify(filed, name_ledgers(filed, [f"site-B={other}"]))
    assert {d.code for d in found.differences} == {"ledger-differs"}
    authority = (tmp_path / "home" / "ca.pem").read_bytes()
    assert verify(filed, authority=authority).origin.startswith("signed by coordinator")
    stranger = Authority.create("another", NOW).certificate
    assert {d.code for d in verify(filed, authority=stranger).differences} == {"origin-unknown"}


def test_a_signature_of_somebody_else_does_not_pass_for_the_coordinators(tmp_path: Path) -> None:
    run = coordinator(tmp_path / "home")
    _, filed, _ = file_report([run], tmp_path / "filed", now=NOW)
    (tmp_path / "home" / "signing.key").unlink()
    file_report([run], tmp_path / "again", now=NOW)
    shutil.copy(tmp_path / "again" / "report.sig", filed / "report.sig")
    authority = (tmp_path / "home" / "ca.pem").read_bytes()
    assert "origin-unknown" in {d.code for d in verify(filed, authority=authority).differences}


def test_a_sites_report_is_its_own_and_readable_by_it_alone(tmp_path: Path) -> None:
    report, filed, _ = file_report([site(tmp_path / "site")])
    assert report.content["view"] == "site"
    assert filed.stat().st_mode & 0o077 == 0
    assert verify(filed).sound
    own = tmp_path / "site" / "people.jsonl"
    assert verify(filed, name_ledgers(filed, [str(own)])).sound


class Page(HTMLParser):
    """What a page would load, and what it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.charts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.charts += tag == "svg"
        for name, value in attrs:
            if name in ("src", "href", "data", "action") or (value or "").startswith("url("):
                self.outside.append(f"{tag} {name}={value}")


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", make_plan(limit=4.0))
    _, filed, _ = file_report([run])
    text = (filed / "report.html").read_text("utf-8")
    page = Page()
    page.feed(text)
    assert not page.outside
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert page.charts == 5
    assert "@import" not in text and not re.search(r"url\(", text)
    assert all(f'<span class="letter">{c}</span>' in text for c in "ABCDEFGHIJKLMOP")


def test_names_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", make_plan(purpose="<script>alert(1)</script>"))
    history = run / "history.jsonl"
    text = history.read_text("utf-8").replace('"accuracy"', '"<svg onload=1>"')
    history.write_text(text, "utf-8")
    _, filed, _ = file_report([run])
    page = (filed / "report.html").read_text("utf-8")
    assert "<script" not in page and "<svg onload" not in page


def test_the_registry_entry_has_the_registrys_keys(tmp_path: Path) -> None:
    _, filed, _ = file_report([run_folder(tmp_path / "run")])
    entry = yaml.safe_load((filed / "registry.yaml").read_text("utf-8"))
    assert set(entry) == {"url_slug", "deployment"}
    deployment = entry["deployment"]
    assert list(deployment) == [
        "basic",
        "dp_variant",
        "privacy_loss",
        "deployment_model",
        "implementation",
        "administrative",
    ]
    assert deployment["dp_variant"]["variant_name"] == "Approximate DP"
    assert deployment["deployment_model"]["model_name"] == "Federated"
    assert set(deployment["privacy_loss"]["privacy_parameters"]) == {"epsilon", "delta"}
    assert deployment["basic"]["data_product_region"] == FILL_IN


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("plan", [{}, {"unit": "client"}, {"unit": "none"}])
def test_the_page_prints_without_overflow(tmp_path: Path, plan: dict[str, str]) -> None:
    off = {"clip": None, "sigma": None, "delta": None} if plan.get("unit") == "none" else {}
    _, filed, _ = file_report([run_folder(tmp_path / "run", make_plan(**plan, **off))])
    probe = tmp_path / "probe.html"
    text = (filed / "report.html").read_text("utf-8")
    measure = (
        "<script>document.title = 'overflow ' + (document.documentElement.scrollWidth - "
        "document.documentElement.clientWidth)</script>"
    )
    probe.write_text(text.replace("</body>", measure + "</body>"), "utf-8")
    for width in (500, 2000):
        shown = _chromium(tmp_path, f"--window-size={width},900", "--dump-dom", probe.as_uri())
        assert "<title>overflow 0</title>" in shown, width
    pdf = tmp_path / "report.pdf"
    _chromium(tmp_path, f"--print-to-pdf={pdf}", (filed / "report.html").as_uri())
    assert pdf.read_bytes().startswith(b"%PDF")
    if shutil.which("pdftotext"):
        first = subprocess.run(
            ["pdftotext", "-l", "1", str(pdf), "-"], capture_output=True, text=True, check=True
        ).stdout
        assert "The words used here" in first and "Coordinator" in first


def _chromium(folder: Path, *arguments: str) -> str:
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update"]
    quiet += ["--no-pdf-header-footer"]
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [str(CHROMIUM), *quiet, profile, *arguments],
        capture_output=True,
        text=True,
        timeout=patience(90),
    )
    assert done.returncode == 0, done.stderr[-400:]
    return done.stdout
