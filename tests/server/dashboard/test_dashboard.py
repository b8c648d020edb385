"""The dashboard: what it tells of a run, whom it answers, and how it looks."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from privacy.http.request_head import is_local
from server.dashboard import run_history
from server.dashboard.app import DashboardError, Served, serve
from server.dashboard.run_history import REASONS, RunHistory
from server.dashboard.run_status import Runs, runs_in
from tests.support.patience import patience
from tests.support.run_folders import make_plan, run_folder

PAGES = Path(__file__).resolve().parents[3] / "server" / "dashboard" / "pages"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A dashboard over a folder with one finished run, `first`."""
    plan = make_plan(limit=2.0, site={"site-1": {"limit": 1.0}})
    run_folder(tmp_path / "home" / "runs" / "first", plan, absent={"site-1": [3, 4]})
    found = serve(tmp_path / "home")
    yield found
    found.close()


def state(folder: Path, name: str = "") -> dict[str, Any]:
    return Runs(folder).state(name)


def line(number: int, **sites: str) -> dict[str, Any]:
    """A round as the history has it; a site's value is its refusal's code, or nothing."""
    return {
        "round": number,
        "metrics": {"accuracy": 0.5},
        "sites": {
            name: {"status": "declined" if why else "trained", "reason": why or None}
            | {"epsilon": 0.25 * number}
            for name, why in sites.items()
        },
        "epsilon": 0.25 * number,
        "seconds": 0.5,
        "bytes_up": 10,
        "bytes_down": 20,
    }


def begun(path: Path, **changes: Any) -> Path:
    """A run that has begun and has no round yet."""
    path.mkdir(parents=True)
    (path / "plan.toml").write_text(make_plan(**changes).to_toml(), encoding="utf-8")
    (path / "history.jsonl").touch()
    return path


def add(run: Path, text: str) -> None:
    with (run / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(text)


def test_a_run_is_told_with_its_limits_refusals_and_traffic(served: Served) -> None:
    told = httpx.get(f"{served.url}state").json()
    assert told["runs"] == ["first"]
    run = told["run"]
    assert (run["done"], run["rounds"]) == (4, 4)
    sites = {site["name"]: site for site in run["sites"]}
    assert (sites["site-0"]["limit"], sites["site-1"]["limit"]) == (2.0, 1.0)
    assert sites["site-0"]["trained"] == 4
    (refusal,) = sites["site-1"]["refusals"]
    assert (refusal["first"], refusal["last"], refusal["times"]) == (3, 4, 2)
    assert refusal["words"] == REASONS[refusal["code"]]
    assert {"seconds", "bytes_up", "bytes_down", "trained", "asked"} <= set(run["history"][0])


def test_a_line_appears_when_it_is_whole_and_a_spoilt_one_is_counted(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", site={"site-9": {"rows": 300}})
    assert state(run)["run"]["done"] == 0
    assert [s["status"] for s in state(run)["run"]["sites"]] == ["waiting"]
    text = json.dumps(line(1, a="", b="budget-exhausted"))
    for cut in range(0, len(text), 17):
        (run / "history.jsonl").write_text(text[:cut], encoding="utf-8")
        assert state(run)["run"]["done"] == 0
    add(run, text[cut:] + "\n")
    assert state(run)["run"]["done"] == 1
    spoilt = ["{", "[]", "null", '{"round": 1}', '{"round": "2", "sites": {}, "metrics": {}}']
    spoilt += ['{"round": 2, "sites": {"a": 3}, "metrics": {}}', "\x00" * 9, "[" * 100_000]
    add(run, "".join(f"{one}\n" for one in spoilt) + json.dumps(line(2, a="")) + "\n")
    told = state(run)["run"]
    assert (told["done"], told["unreadable"]) == (2, len(spoilt))


def test_no_number_that_json_lacks_is_told(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    add(run, json.dumps(line(1, a="") | {"epsilon": float("nan"), "seconds": float("inf")}) + "\n")
    told = json.dumps(state(run), allow_nan=False)
    assert json.loads(told)["run"]["epsilon"] is None


def test_a_run_that_goes_on_after_its_end_is_not_called_ended(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run / "summary.json").write_text('{"reason": "failed", "rounds": 1}', encoding="utf-8")
    add(run, json.dumps(line(1, a="")) + "\n")
    assert state(run)["run"]["ended"] == "failed"
    add(run, json.dumps(line(2, a="")) + "\n")
    assert state(run)["run"]["ended"] is None


def test_runs_are_chosen_by_name_and_nothing_else_is_reached(tmp_path: Path) -> None:
    for name in ("one", "two"):
        begun(tmp_path / "home" / "runs" / name)
    begun(tmp_path / "outside")
    home = tmp_path / "home"
    assert {run.name for run in runs_in(home)} == {"one", "two"}
    assert state(home, "one")["run"]["name"] == "one"
    for name in ("../../outside", "/etc", str(tmp_path / "outside"), "..", "\x00"):
        assert state(home, name)["run"]["name"] in ("one", "two")
    assert state(tmp_path / "not-yet") == {"runs": [], "run": None}
    (home / "runs" / "one" / "plan.toml").write_text("nonsense = 1", encoding="utf-8")
    assert "nonsense" in state(home, "one")["run"]["error"]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.:80", "[::1]:80", "", "0.0.0.0"]
)
def test_a_request_under_another_name_is_refused(served: Served, host: str) -> None:
    for path in ("", "state", "dashboard.js", "absent"):
        answer = httpx.get(served.url + path, headers={"Host": host})
        assert answer.status_code == 421
        assert "first" not in answer.text


def test_this_machines_own_names_are_answered(served: Served) -> None:
    port = httpx.URL(served.url).port
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "LOCALHOST"):
        assert httpx.get(served.url, headers={"Host": host}).status_code == 200
    for hosts in ([], [b"localhost", b"localhost"], [b"localhost:8o"]):
        assert not is_local({"headers": [(b"host", host) for host in hosts]})


def test_every_answer_is_held_to_this_origin_and_nothing_can_be_changed(served: Served) -> None:
    for path in ("", "state", "dashboard.css", "dashboard.js", "absent", "runs/first/signing.key"):
        answer = httpx.get(served.url + path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
    assert answer.status_code == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert httpx.request(method, f"{served.url}state").status_code == 405


def test_the_page_names_no_outside_resource_and_writes_no_markup() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(PAGES.iterdir()))
    assert set(re.findall(r"https?://[^\"' )]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in text and "url(" not in text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    html = (PAGES / "dashboard.html").read_text(encoding="utf-8")
    assert "style=" not in html and " onclick" not in html and "<script>" not in html


def test_a_taken_port_and_a_missing_folder_are_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DashboardError, match=f"--port {port}"):
            serve(tmp_path, port=port)
    command = [sys.executable, "-m", "server", "dashboard", "--dir", str(tmp_path / "absent")]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=patience(60), check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1 and "--dir" in ended.stderr


def test_a_closed_dashboard_answers_no_more_and_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    found = serve(run)
    assert httpx.get(f"{found.url}state").status_code == 200
    found.close()
    assert not found.thread.is_alive()
    with pytest.raises(httpx.TransportError):
        httpx.get(found.url)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_history_of_a_missing_file_is_empty(tmp_path: Path) -> None:
    history = RunHistory(tmp_path / "absent.jsonl")
    history.look()
    assert (history.rounds, history.sites, history.unreadable) == ([], {}, 0)


def merged(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What the page makes of two looks at one run."""
    if not new["after"]:
        return new
    sites = {site["name"]: site for site in known["sites"]}
    for site in new["sites"]:
        before = sites[site["name"]]["epsilons"] if site["name"] in sites else []
        sites[site["name"]] = site | {"epsilons": before + site["epsilons"]}
    return new | {
        "history": known["history"][: new["after"]] + new["history"],
        "sites": [sites[name] for name in sorted(sites)],
    }


def without_time(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key not in ("idle", "cursor", "after")}


def test_looks_one_after_the_other_tell_what_one_look_at_the_end_tells(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", site={"site-9": {"rows": 300}})
    runs, known = Runs(run), state(run)["run"]
    lines = [line(1, a="", b="paused"), line(2, b=""), line(3, a="paused", c="")]
    lines += [line(3, a="", c=""), line(2, b="paused"), line(4, a="", b="paused"), line(6, d="")]
    text = "".join(json.dumps(one) + "\n" for one in lines).replace("\n", "\nspoilt\n", 1)
    for at in range(0, len(text), 97):
        add(run, text[at : at + 97])
        known = merged(known, runs.state("", known.get("cursor", ""))["run"])
        assert without_time(known) == without_time(state(run)["run"])
    assert [one["round"] for one in known["history"]] == [1, 2, 3, 4, 6]
    assert known["unreadable"] == 1


def test_a_look_reads_and_tells_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path / "run")
    sites = {f"site-{i}": "" for i in range(50)}
    add(run, "".join(json.dumps(line(n, **sites)) + "\n" for n in range(1, 101)))
    runs = Runs(run)
    first = runs.state()["run"]
    read: list[str] = []
    parse = run_history._line

    def counted(text: str) -> dict[str, Any] | None:
        read.append(text)
        return parse(text)

    monkeypatch.setattr(run_history, "_line", counted)
    quiet = runs.state("", first["cursor"])
    assert (read, quiet["run"]["history"], quiet["run"]["sites"]) == ([], [], [])
    assert len(json.dumps(quiet)) < 1000
    add(run, json.dumps(line(101, **{"site-7": ""})) + "\n")
    later = runs.state("", first["cursor"])["run"]
    assert (len(read), later["after"], len(later["history"])) == (1, 100, 1)
    (site,) = later["sites"]
    assert (site["name"], site["epsilons"], site["trained"]) == ("site-7", [[101, 25.25]], 101)


@pytest.mark.parametrize("cursor", ["", "x", "-", "-5", "{}-999", "{}--1", "{}-\u0662", "other-1"])
def test_a_cursor_that_does_not_hold_is_told_everything(tmp_path: Path, cursor: str) -> None:
    run = begun(tmp_path / "run")
    add(run, json.dumps(line(1, a="")) + "\n" + json.dumps(line(2, a="")) + "\n")
    runs = Runs(run)
    generation = runs.state()["run"]["cursor"].partition("-")[0]
    told = runs.state("", cursor.format(generation))["run"]
    assert (told["after"], len(told["history"])) == (0, 2)


def test_a_history_written_anew_is_told_from_its_beginning(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    add(run, json.dumps(line(1, a="")) + "\n" + json.dumps(line(2, a="")) + "\n")
    runs = Runs(run)
    cursor = runs.state()["run"]["cursor"]
    text = json.dumps(line(1, b="")) + "\n" + json.dumps(line(2, b="")) + "\n"
    (run / "history.jsonl").write_text(text + json.dumps(line(3, b="")) + "\n", encoding="utf-8")
    told = runs.state("", cursor)["run"]
    assert (told["after"], told["done"]) == (0, 3)
    assert [site["name"] for site in told["sites"] if site["trained"]] == ["b"]


def chromium(*arguments: str, home: Path) -> str:
    """Headless Chromium's stdout, or a skip that says why."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium on this machine")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=900"]
    ended = subprocess.run(
        [found, *flags, "--hide-scrollbars", f"--user-data-dir={home}", *arguments],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert "CONSOLE" not in ended.stderr
    return ended.stdout


def test_the_page_as_a_browser_builds_it(served: Served, tmp_path: Path) -> None:
    page = chromium("--dump-dom", "--enable-logging=stderr", served.url, home=tmp_path / "b")
    assert re.search(r'role="img" aria-label="Privacy spent\. .*limit', page)
    assert "its privacy budget is spent" in page
    assert page.count('role="rowheader"') == 3
    assert "4 of 4" in page


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200, 2000])
def test_the_page_is_drawn_in_both_schemes(
    served: Served, tmp_path: Path, width: int, dark: bool
) -> None:
    shot = tmp_path / "shot.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    size = [f"--window-size={width},900", f"--screenshot={shot}"]
    chromium(*scheme, *size, served.url, home=tmp_path / "b")
    with Image.open(shot) as picture:
        assert picture.width == width
        corner = picture.convert("L").getpixel((2, 850))
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert isinstance(corner, int)
    assert corner < 40 if dark else corner > 240
    assert colours is not None and len(colours) > 50
