"""Metrics are in Prometheus' own format, on a page and in a file, and tell what happened."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from client.agent.credentials import Enrolled
from client.site_metrics import CountedEvents, SiteMetrics
from privacy.accounting.epsilon import spent
from privacy.contract.plan_file import load_plan
from privacy.event_log import EventLog
from privacy.http.http_listener import ListenError
from privacy.metrics import Collector, Metric, MetricsError, exported, from_log, gauge
from server.registry.sites import Home
from server.service.coordinator_metrics import RUNS_MAX, CoordinatorMetrics
from server.service.queue import Queue
from tests.support.desk import Desk
from tests.support.federation import coordinator
from tests.support.run_folders import run_folder

ENDS = "tacit_certificate_remaining_seconds"
NOT_BASE = {"days", "hours", "minutes", "milliseconds", "ms", "s", "kilobytes", "kb", "percent"}
Families = dict[str, dict[tuple[str, ...], float]]


def parsed(text: str) -> Families:
    """Every sample by its name and its labels' values, read by Prometheus' own parser."""
    found: Families = {}
    for family in text_string_to_metric_families(text):
        lint(family.name, family.type, family.documentation)
        for sample in family.samples:
            values = tuple(sample.labels.values())
            assert values not in found.setdefault(sample.name, {}), "a sample must occur once"
            found[sample.name][values] = sample.value
    return found


def lint(name: str, kind: str, what: str) -> None:
    """The rules of `promtool check metrics`: help, type, base units, names."""
    assert what and kind in ("counter", "gauge"), name
    assert re.fullmatch(r"tacit_[a-z]+(_[a-z]+)*", name), name
    words = name.split("_")
    assert not set(words) & (NOT_BASE | {"gauge", "counter", "total", "count", "sum"}), name


class Fixed(Collector):
    def collect(self) -> Iterator[Metric]:
        yield gauge("tacit_x", "A value.", {('odd "name"\n',): 1.5}, "run")


def told(collector: Collector, file: Path) -> Families:
    with exported(collector, where=None, file=file):
        pass
    return parsed(file.read_text())


def test_the_page_and_the_file_are_what_prometheus_reads(tmp_path: Path) -> None:
    file = tmp_path / "tacit.prom"
    with exported(Fixed(), where="127.0.0.1:0", file=file) as page:
        assert page is not None
        answer = httpx.get(page)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert parsed(answer.text) == parsed(file.read_text())
    assert parsed(answer.text) == {"tacit_x": {('odd "name"\n',): 1.5}}
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_page_on_loopback_answers_to_its_own_name_and_path_alone() -> None:
    with exported(Fixed(), where="127.0.0.1:0", file=None) as page:
        assert page is not None
        assert httpx.get(page, headers={"host": "evil.example"}).status_code == 421
        assert httpx.get(page.replace("/metrics", "/other")).status_code == 404
        assert httpx.post(page).status_code == 405
    with pytest.raises(httpx.ConnectError):
        httpx.get(page)


@pytest.mark.parametrize("where", ["", "9464", "127.0.0.1", "host:1", "127.0.0.1:x", "::1:99999"])
def test_an_address_that_is_none_is_refused(where: str) -> None:
    with (
        pytest.raises(MetricsError, match="--metrics must be"),
        exported(Fixed(), where=where, file=None),
    ):
        pass


def test_an_address_in_use_is_refused() -> None:
    with exported(Fixed(), where="127.0.0.1:0", file=None) as page:
        assert page is not None
        taken = page.removeprefix("http://").removesuffix("/metrics")
        with pytest.raises(ListenError), exported(Fixed(), where=taken, file=None):
            pass


def test_the_log_is_counted_by_event_and_reason_up_to_a_limit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = EventLog(as_json=True)
    for reason in ("budget-exhausted", "budget-exhausted", "paused"):
        log("declined", reason=reason, run="r", round=1)
    log("connected")
    events, reasons = (
        {tuple(s.labels.values()): s.value for s in one.samples} for one in from_log(log)
    )
    assert events == {("declined",): 3, ("connected",): 1}
    assert reasons == {("declined", "budget-exhausted"): 2, ("declined", "paused"): 1}
    for number in range(2000):
        log("declined", reason=f"code-{number}")
    assert len(log.counted()) <= 501
    assert len(capsys.readouterr().out.splitlines()) == 2004


def test_a_coordinator_tells_its_runs_sites_certificates_and_disk(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path, "north", "south")
    queue = Queue(home)
    queue.add("one", load_plan("digits"), state="running")
    run = run_folder(home / "runs" / "one")
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    status = {"sites": {"north": {"connected": True, "seen": 1.5}}}
    metrics = CoordinatorMetrics(Home(home), queue, lambda: status, EventLog(as_json=True))
    for line in lines:
        metrics.on_round(line)
    found = told(metrics, tmp_path / "m.prom")
    assert found["tacit_run_state"]["one", "running"] == 1  # labels in the order of the alphabet
    assert found["tacit_run_state"]["one", "done"] == 0
    assert found["tacit_run_rounds"]["one",] == found["tacit_rounds_total"][()] == len(lines)
    site, said = next(iter(lines[-1]["sites"].items()))
    assert found["tacit_run_epsilon"]["one", site] == said["epsilon"]
    assert found["tacit_site_answers_total"]["trained", site] == len(lines)
    assert found["tacit_site_connected"] == {("north",): 1, ("south",): 0}
    assert found["tacit_site_last_seen_seconds"] == {("north",): 1.5}
    days = {whose: left / 86_400 for whose, left in found[ENDS].items()}
    assert set(days) == {("coordinator",), ("authority",), ("site north",), ("site south",)}
    assert days["site north",] == pytest.approx(397, abs=1)
    assert found["tacit_disk_free_bytes"][()] > 0


def test_of_runs_that_ended_only_the_last_are_labels(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path)
    queue, plan = Queue(home), load_plan("digits")
    for number in range(RUNS_MAX + 30):
        queue.add(f"run-{number}", plan, state="done" if number else "waiting")
    metrics = CoordinatorMetrics(Home(home), queue, lambda: {"sites": {}}, EventLog(as_json=True))
    shown = {run for (run,) in told(metrics, tmp_path / "m.prom")["tacit_run_rounds"]}
    assert shown == {"run-0", *(f"run-{n}" for n in range(30, RUNS_MAX + 30))}


@pytest.mark.long
def test_a_site_tells_its_budget_presence_and_refusals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, sites = coordinator(tmp_path, "north")
    desk = Desk(tmp_path)
    log = CountedEvents(as_json=True)
    desk.site.on_event = log
    metrics = SiteMetrics(Enrolled(sites["north"]), lambda: [desk.site], log)
    log("connected")
    assert desk.said(desk.ask()) == ("trained", "")
    assert desk.said(desk.ask(round=99))[0] != "trained"
    found = told(metrics, tmp_path / "m.prom")
    limit, delta = desk.site.policy.epsilon, desk.site.policy.delta
    used = spent(desk.ledger.merged(), delta)
    assert found["tacit_epsilon_spent"] == {("people",): used}
    assert found["tacit_epsilon_left"] == {("people",): limit - used}
    assert found["tacit_ledger_entries"] == {("people",): 1}
    assert found["tacit_ledger_sound"] == {("people",): 1}
    assert found["tacit_rounds_total"] == {(): 1}
    assert found["tacit_round_seconds_total"][()] > 0
    assert found["tacit_connected"] == {(): 1}
    assert sum(found["tacit_reasons_total"].values()) == 1
    assert not any(math.isnan(value) for one in found.values() for value in one.values())
    log("disconnected", why="ConnectError")
    Enrolled(sites["north"]).paused.touch()
    again = told(metrics, tmp_path / "m.prom")
    assert again["tacit_connected"] == {(): 0}
    assert again["tacit_paused"] == {(): 1}
    capsys.readouterr()
