"""Whatever runs the clients, a simulation is the same: the same numbers, the same ledgers."""

import gc
import json
from collections.abc import Sequence
from multiprocessing import Pipe
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import pytest

from privacy.arrays import Arrays, encode
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.ledger.ledger import verify
from server.evaluation import initial_weights
from server.rounds.messages import Request, ask, packed
from server.rounds.reply_check import read_reply
from simulations.dataset import Place, Recent, prepare
from simulations.engines.pipes import Shared, receive, send
from simulations.engines.pool import Processes
from simulations.grid import LocalGrid
from simulations.run import simulate


def played(folder: Path, engine: str, *overrides: str) -> tuple[list[Any], dict[str, bytes]]:
    """The rounds' metrics and every ledger of a reproducible run."""
    sets = ["rounds=3", "sites=4", "sigma=2", "rate=0.2", f"simulation.engine={engine}"]
    result = simulate(load_plan("digits", [*sets, *overrides]), folder, insecure=True)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    ledgers = {p.name: p.read_bytes() for p in (folder / "ledgers").glob("*.jsonl")}
    assert result.outcome.reason == "done"
    events = {
        name: b"\n".join(json.dumps(json.loads(x)["event"]).encode() for x in text.splitlines())
        for name, text in ledgers.items()
    }
    return [line["metrics"] for line in lines], events


def test_a_pool_of_processes_gives_the_numbers_of_one(tmp_path: Path) -> None:
    serial = played(tmp_path / "serial", "serial")
    pool = played(tmp_path / "pool", "processes")
    assert pool[1] == serial[1]
    for one, other in zip(serial[0], pool[0], strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def replies_of(grid: LocalGrid, plan: Plan, sites: Sequence[str]) -> dict[str, Arrays]:
    """The updates of some sites, asked together for the first round."""
    weights = initial_weights(plan)
    shapes = {name: array.shape for name, array in weights.items()}
    nodes = {site: node for node, site in grid.names().items()}
    asked = [Request("run", 1, site, plan.to_json()) for site in sites]
    sent = [ask(grid, nodes[request.site], request, packed(encode(weights))) for request in asked]
    by_id = dict(zip(grid.push_messages(sent), asked, strict=True))
    found: dict[str, Arrays] = {}
    while len(found) < len(sites):
        for reply in grid.pull_messages(list(by_id)):
            request = by_id[reply.metadata.reply_to_message_id]
            arrays = read_reply(reply, request, plan, shapes).arrays
            assert arrays is not None
            found[request.site] = arrays
    return found


def test_no_two_processes_draw_the_same_noise(tmp_path: Path) -> None:
    plan, world = prepare(load_plan("digits", ["sites=6", "sigma=9", "rate=0.2"]), None)
    engine = Processes(Place(plan, world.train, world.parts, tmp_path, False), 2)
    try:
        found = replies_of(LocalGrid(engine, list(world.parts)), plan, list(world.parts))
    finally:
        engine.close()
    updates = [np.concatenate([a.ravel() for a in arrays.values()]) for arrays in found.values()]
    alike = np.corrcoef(np.stack(updates))[np.triu_indices(6, 1)]
    assert abs(alike).max() < 0.3  # the noise of 650 numbers drowns what their rows share


def test_a_site_asked_again_in_a_round_sends_its_reply_again_and_pays_nothing(
    tmp_path: Path,
) -> None:
    plan, world = prepare(load_plan("digits", ["sites=2", "sigma=9", "rate=0.2"]), None)
    engine = Processes(Place(plan, world.train, world.parts, tmp_path, False), 2)
    one, other = world.parts
    try:
        grid = LocalGrid(engine, list(world.parts))
        first = replies_of(grid, plan, [one])
        again = replies_of(grid, plan, [other, one])  # the first worker is given the other site
    finally:
        engine.close()
    for name, array in first[one].items():
        np.testing.assert_array_equal(array, again[one][name])
    assert len(verify(tmp_path / "ledgers" / f"{one}.jsonl").entries) == 1


def test_what_is_large_crosses_by_shared_memory_where_it_fits_and_else_by_the_pipe() -> None:
    here, there = Pipe()
    shared = Shared(3000)
    for value in (b"a" * 2000, b"b" * 2000, b"c" * 4000):
        send(here, {"large": value}, shared)
        assert (len(there.recv_bytes()) < 100) is (len(value) <= 3000)
        send(here, {"large": value}, shared)
        assert receive(there, shared.get) == {"large": value}
    two = [b"d" * 2000, b"e" * 2000]
    send(here, two, shared)
    assert receive(there, shared.get) == two
    send(here, {"large": b"f" * 2000}, shared, over=False)  # the last one is not got yet
    assert len(there.recv_bytes()) > 2000
    assert shared.get((3, 2000)) == b"d" * 2000


def test_of_the_replies_of_all_sites_only_so_many_bytes_are_kept() -> None:
    recent = Recent(most=10)
    one, two = recent.of("one"), recent.of("two")
    one.put("key", [b"123456"])
    two.put("key", [b"abcd"])
    assert (one.get("key"), two.get("key"), two.get("other")) == (b"123456", b"abcd", None)
    two.put("key", [b"ab"])
    two.put("next", [b"abc"])
    assert (one.get("key"), two.get("key"), two.get("next")) == (None, b"ab", b"abc")


def test_no_reply_is_kept_into_the_next_round() -> None:
    recent = Recent(most=10)
    one, two = recent.of("one"), recent.of("two")
    one.put("run/1/weights", [b"1234"])
    two.put("run/1/weights", [b"1234"])
    two.put("run/2/others", [b"12345678"])
    assert one.get("run/1/weights") is None
    assert (two.get("run/1/weights"), two.get("run/2/others")) == (None, b"12345678")
    one.put("run/2/others", [b"12"])
    assert two.get("run/2/others") == b"12345678"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray's
def test_ray_gives_the_numbers_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    serial = played(tmp_path / "serial", "serial")
    cluster = played(tmp_path / "ray", "ray")
    for process in [found for found in gc.get_objects() if issubclass(type(found), Popen)]:
        process.wait(30)  # Ray has ended its own, and not waited for them
    assert cluster[1] == serial[1]
    for one, other in zip(serial[0], cluster[0], strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_reproducible_run_says_everywhere_that_it_is_not_private(tmp_path: Path) -> None:
    first, _ = played(tmp_path / "one", "serial")
    second, _ = played(tmp_path / "two", "serial")
    assert first == second
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["insecure"] and not summary["private"]
    line = json.loads((tmp_path / "one" / "history.jsonl").read_text().splitlines()[0])
    assert line["insecure"]
    assert json.loads((tmp_path / "one" / "run.json").read_text())["insecure"]


def test_the_seed_fixes_the_split_but_never_the_noise(tmp_path: Path) -> None:
    plan = load_plan("digits", ["rounds=1", "sites=4", "sigma=2", "rate=0.2", "seed=7"])
    first = simulate(plan, tmp_path / "one").outcome.history[0]
    second = simulate(plan, tmp_path / "two").outcome.history[0]
    assert first["metrics"]["loss"] != second["metrics"]["loss"]
    toml = [(tmp_path / name / "plan.toml").read_text() for name in ("one", "two")]
    assert toml[0] == toml[1]


def test_an_encoded_model_that_is_no_bytes_arrives_as_bytes_by_shared_memory() -> None:
    blob = encode({"large": np.zeros(1 << 20, np.float32)})
    assert isinstance(blob, np.ndarray)  # the very memory that its arrays were put into
    here, there = Pipe()
    shared = Shared(1 << 23)
    send(here, {"blob": blob}, shared)
    assert receive(there, shared.get)["blob"] == blob.tobytes()
    send(here, {"blob": blob[:1000]}, None)
    assert receive(there, None)["blob"].tobytes() == blob[:1000].tobytes()
