"""The app bundle's own ServerApp and ClientApp, as stock Flower calls them, in one process."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

import client.flower_app
import server.flower.app
from client.agent import process
from privacy.accounting.events import Event
from privacy.contract.policy import builtin_policy
from privacy.ledger.ledger import Ledger
from server.flower.app import StockError
from server.flower.grid import RegisteredGrid
from server.registry import sites as members
from server.registry.sites import Home, MembersError
from server.service.queue import QueueError
from server.service.status import read as read_status
from simulations.grid import LocalGrid
from tests.support.federation import coordinator, member, now
from tests.support.forks import fork_model_processes

SET = "rounds=2 sigma=2.0 rate=0.2 delta=3e-4 sites=5 rows=300"


@pytest.fixture(autouse=True)
def _forks(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_model_processes(monkeypatch)


class Nodes:
    """Runs the bundle's ClientApp with each node's own `--node-config`, as a SuperNode does."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self.configs, self.waiting = configs, list[tuple[str, str, Message]]()
        self.replies: list[Message] = []

    def submit(self, number: str, site: str, message: Message) -> None:
        self.waiting.append((number, site, message))

    def collect(self) -> tuple[str, Message] | None:
        if not self.waiting:
            return None
        number, node, message = self.waiting.pop(0)
        context = Context(
            message.metadata.run_id,
            message.metadata.dst_node_id,
            dict(self.configs[node]),
            RecordDict(),
            {},
        )
        reply = client.flower_app.app(message=message, context=context)
        self.replies.append(reply)
        return number, reply

    def close(self) -> None: ...


class Stock(Grid):
    """Flower's Grid as a stock ServerApp sees it: nodes and their keys, and no names."""

    def __init__(self, nodes: Nodes, keys: Mapping[str, bytes]) -> None:
        self.nodes, self.keys = nodes, keys
        self.local = LocalGrid(nodes, list(nodes.configs))
        self.gone: set[int] = set()

    def get_nodes(self) -> list[Any]:
        return [
            SimpleNamespace(node_id=number, public_key=self.keys[node])
            for number, node in self.local.names().items()
        ]

    def set_run(self, run: Any) -> None:
        self.local.set_run(run)

    @property
    def run(self) -> Any:
        return self.local.run

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError("deprecated in Flower")

    def get_node_ids(self) -> Iterable[int]:
        return self.local.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[Any]:
        """Flower gives None for what it could not send."""
        return [
            None
            if m.metadata.dst_node_id in self.gone
            else next(iter(self.local.push_messages([m])))
            for m in messages
        ]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.local.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.local.send_and_receive(messages, timeout=timeout)


def run(grid: Grid, home: Path, **options: Any) -> Path:
    """What `flwr run` does with these options; the run's folder."""
    config = {"dir": str(home), "plan": "digits", "set": SET, "name": "first", "min-sites": 2}
    config |= {key.replace("_", "-"): value for key, value in options.items()}
    context = Context(grid.run.run_id, 0, {}, RecordDict(), config)
    server.flower.app.app(grid=grid, context=context)
    return home / "runs" / str(config["name"])


def world(folder: Path, *sites: str) -> tuple[Path, dict[str, Path], Stock]:
    home, places = coordinator(folder, *sites)
    configs = {
        site: {"dir": str(place), "data": f"builtin:{number}/{len(sites)}"}
        for number, (site, place) in enumerate(places.items())
    }
    keys = {s: m.certificate.public_pem for s, m in Home(home).members().sites.items()}
    return home, places, Stock(Nodes(configs), keys)


def ledger(place: Path, part: str = "0-2") -> Ledger:
    return Ledger.open(place / "ledgers" / f"builtin-{part}.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_run_under_flower_leaves_what_a_run_of_the_coordinator_leaves(tmp_path: Path) -> None:
    home, places, grid = world(tmp_path, "north", "south")
    folder = run(grid, home)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["reason"], summary["rounds"], summary["private"]) == ("done", 2, True)
    assert summary["metrics"]["accuracy"] > 0.2
    for number, (site, place) in enumerate(places.items()):
        own = ledger(place, f"{number}-2")
        assert [e.event for e in own.entries()] == [Event("record", 2.0, 0.2, 1)] * 2
        assert own.spent(3e-4) == pytest.approx(summary["sites"][site]["epsilon"], rel=1e-9)
        assert lines(folder / "heads" / f"{site}.jsonl")[-1]["n"] == 2
        assert lines(place / "models" / "index.jsonl")[-1]["round"] == 2
        assert len(list((place / "replies").glob("*.reply"))) == 2
    assert len(list((folder / "checkpoints").glob("*.sig"))) == 2
    assert read_status(home)["stopped"]["by"] == "done"

    with pytest.raises(QueueError, match="--resume"):
        run(grid, home)
    (folder / "checkpoints" / "000002.safetensors").unlink()
    run(grid, home, resume=True)
    assert [line["round"] for line in lines(folder / "history.jsonl")] == [1, 2]
    assert len(ledger(places["north"]).entries()) == 2  # round 2 was sent again, unpaid


def test_a_site_that_may_not_or_will_not_take_part_spends_nothing(tmp_path: Path) -> None:
    home, places, grid = world(tmp_path, "north", "strict", "revoked", "running", "foreign")
    strict = replace(builtin_policy(), min_sigma=50.0).to_toml()
    (places["strict"] / "policy.toml").write_text(strict)
    members.revoke(home, "revoked", now() - timedelta(seconds=1))
    about = places["foreign"] / "site.json"  # joined to a coordinator of another key
    about.write_text(json.dumps(json.loads(about.read_text()) | {"verify": "0" * 64}))
    with process.alone(places["running"]):
        folder = run(grid, home, min_sites=1)
    for line in lines(folder / "history.jsonl"):
        assert {site: (said["status"], said["reason"]) for site, said in line["sites"].items()} == {
            "north": ("trained", None),
            "strict": ("declined", "noise-too-low"),
            "running": ("failed", "failed"),
            "foreign": ("declined", "ledger-untrusted"),
        }
    for number, (site, place) in enumerate(places.items()):
        path = place / "ledgers" / f"builtin-{number}-5.jsonl"
        assert (Ledger.open(path).head.n if path.exists() else 0) == (2 if site == "north" else 0)


def test_a_run_that_no_budget_allows_is_shown_as_failed(tmp_path: Path) -> None:
    home, places, grid = world(tmp_path, "north", "south")
    for place in places.values():
        (place / "policy.toml").write_text(replace(builtin_policy(), epsilon=0.01).to_toml())
    with pytest.raises(StockError, match="budget: every site's budget is spent"):
        run(grid, home)


def test_a_site_that_cannot_be_opened_tells_a_code_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own, rows = member(tmp_path, coordinator(tmp_path)[0], "north"), tmp_path / "rows.npz"
    rows.touch()
    nodes = Nodes(
        {
            "absent": {"dir": "ward-7", "data": "builtin:0/1"},
            "nameless": {"data": "builtin:0/1"},
            "dataless": {"dir": str(own)},
            "without a policy": {"dir": str(own), "data": str(rows)},
        }
    )
    grid = LocalGrid(nodes, list(nodes.configs))
    asked = RecordDict({"request": ConfigRecord({"run": "r", "round": 1})})
    for kind in ("query", "train", "evaluate"):
        messages = [grid.create_message(asked, kind, n, "1") for n in grid.get_node_ids()]
        for reply in grid.send_and_receive(messages):
            assert dict(reply.content.config_records["reply"]) == {
                "run": "r",
                "round": 1,
                "site": "",
                "status": "failed",
                "reason": "failed",
            }
    told = capfd.readouterr().err
    assert "ward-7" in told
    assert "no policy, expected one" in told
    assert "node-config dir" in told
    assert "node-config data" in told


class Speaking(Nodes):
    """Nodes that answer with one word."""

    def collect(self) -> tuple[str, Message] | None:
        number, node, message = self.waiting.pop(0)
        fields = ConfigRecord({"site": node})
        return number, Message(RecordDict({"reply": fields}), reply_to=message)


def speaking(**keys: bytes) -> tuple[Stock, RegisteredGrid, list[dict[str, Any]]]:
    grid, heard = Stock(Speaking({node: {} for node in keys}), keys), list[dict[str, Any]]()
    known = {b"key of north": "north", b"key of south": "south"}
    return grid, RegisteredGrid(grid, lambda: known, lambda what, **said: heard.append(said)), heard


def test_a_node_is_the_site_whose_key_it_shows_and_a_stranger_is_not_asked() -> None:
    _, grid, heard = speaking(a=b"key of south", north=b"another key", b=b"key of north")
    assert grid.names() == {1000: "south", 1002: "north"}
    assert list(grid.get_node_ids()) == [1000, 1002]
    assert heard == [{"node": 1001, "why": "its key is not that of a site"}]


def test_a_message_that_flower_cannot_send_is_answered_with_an_error() -> None:
    below, grid, _ = speaking(a=b"key of north")
    below.gone = {1000}
    message = grid.create_message(RecordDict(), "query", 1000, "")
    (number,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([number])
    assert reply.has_error()
    assert reply.metadata.reply_to_message_id == number


def test_a_reply_that_cannot_be_read_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    below, grid, heard = speaking(a=b"key of north", b=b"key of south")
    hostile, fine = grid.push_messages(
        [grid.create_message(RecordDict(), "query", node, "") for node in (1000, 1001)]
    )

    def pull(ids: list[str]) -> Iterable[Message]:
        if hostile in ids:
            raise ValueError("hostile bytes")
        return below.local.pull_messages(ids)

    monkeypatch.setattr(below, "pull_messages", pull)
    (reply,) = grid.pull_messages([hostile, fine])
    assert (reply.has_error(), reply.metadata.reply_to_message_id) == (True, hostile)
    assert heard == [{"why": "ValueError"}]
    below.nodes.waiting.pop(0)
    (reply,) = grid.pull_messages([fine])
    assert (reply.has_error(), reply.metadata.reply_to_message_id) == (False, fine)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dir": "coordinator"}, "dir: expected the absolute path"),
        ({"dir": ""}, "dir: expected the absolute path"),
        ({"dir": "/nowhere"}, "no coordinator here"),
        ({"plan": 7}, "plan: expected a text"),
        ({"plan": "no-such-plan"}, "must be a TOML file or one of"),
        ({"set": "sigma"}, "must be KEY=VALUE"),
        ({"name": "../up"}, "must be a plain file name"),
        ({"min_sites": -1}, "min-sites: expected a whole number"),
        ({"round_timeout": "soon"}, "round-timeout: expected seconds"),
        ({"data": "relative.npz"}, "data: expected the absolute path"),
        ({"resume": True, "name": ""}, "expected a name"),
    ],
)
def test_a_bad_option_is_one_line_before_any_work(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    home, _, grid = world(tmp_path, "north", "south")
    with pytest.raises(ValueError, match=says) as error:
        run(grid, home, **options)
    assert "\n" not in str(error.value)
    assert not grid.nodes.replies
    assert not (home / "runs").exists()
    assert isinstance(error.value, MembersError) or "plan" in options or "set" in options
