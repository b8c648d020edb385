"""Faults that people reported of tools like this one: the same rows by every command, or one line.

Each input goes through all doors: a simulation, a site's registered rows, `predict`, `evaluate`,
the local service, `data check` and the doctor. Rows are compared by what the model says of them.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from typer.testing import CliRunner

from client.__main__ import app as client_app
from client.agent import populations
from client.data.site_rows import SiteRows, Source
from client.doctor.participation import participation
from client.models.loading import find, load
from client.models.provenance import Trust
from client.serving.address import Limits, listening
from client.serving.file_rows import TEXTS
from client.serving.service import Service
from client.tasks.registry import task
from privacy.contract.policy import Policy
from simulations.dataset import prepare
from tests.support.models import command, own_key, plan_for, release, shaken
from tests.support.reported_files import CASES, Row

SCHEMA = """
label = "ill"
[columns.age]
type = "number"
min = 0
max = 100
[columns.city]
type = "category"
values = ["Oslo", "Bergen", "Troms\u00f8"]
[columns.ill]
type = "category"
values = ["no", "yes"]
"""
TABLE = task("table", SCHEMA)
CITIES = ("Oslo", "Bergen", "Troms\u00f8")
POLICY = Policy(epsilon=1.0, delta=1e-5)
PRIVATE = ("63.25", "40.5", "25.125", "hush", "1152921504606846977", "Narnia")


@dataclass(frozen=True)
class World:
    """A released model of the schema, its signer, and what it says of a row."""

    run: Path
    service: Service

    def says(self, rows: Sequence[Row]) -> list[float]:
        """The probability of yes of each row."""
        model = load(find(str(self.run)), Trust())
        assert model.network is not None
        with torch.no_grad():
            scores = model.network(torch.tensor(features(rows)).reshape(-1, 5))
        chances: list[float] = torch.softmax(scores, 1)[:, 1].tolist()
        return chances


def features(rows: Sequence[Row]) -> list[list[float]]:
    """By hand: the age in -1..1, the city as one of four."""
    return [
        [2 * age / 100 - 1, *(float(city == one) for one in CITIES), float(city not in CITIES)]
        for age, city, _ in rows
    ]


def labels(rows: Sequence[Row]) -> list[int]:
    return [("no", "yes").index(ill) for *_, ill in rows]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    run = tmp_path_factory.mktemp("runs") / "table"
    release(run, plan=plan_for("table", schema=SCHEMA), network=shaken(TABLE), key=own_key(run))
    service = Service(load(find(str(run)), Trust()), listening("127.0.0.1:0", None),
                      Limits(2**20, 2000))  # fmt: skip
    yield World(run, service)
    service.current.close()
    service.thread.shutdown()


class Refused(Exception):
    """One line."""


@contextmanager
def refusing() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise Refused(str(error)) from error


def bag(x: Any, y: Any) -> Counter[tuple[Any, ...]]:
    return Counter((*(round(v, 5) for v in row), label) for row, label in zip(x, y, strict=True))


def simulated(world: World, path: Path) -> tuple[Any, str]:
    """The rows of `tacit-simulate --data`, and what it says of them."""
    with refusing():
        _, held = prepare(plan_for("table", schema=SCHEMA, sites=1, split="iid"), path)
    whole = held.train + held.test
    return bag(whole.x.tolist(), whole.y.tolist()), str(held.train.reading)


def at_site(world: World, path: Path) -> tuple[Any, str]:
    """All rows that a registered site takes part with, and what its owner is told."""
    told: list[str] = []

    class Whole(Source):
        def rows(self, learning: Any, records: int) -> Any:
            return learning.load(path, "all")

    rows = SiteRows(Whole(path), SCHEMA, lambda: POLICY, lambda _, **facts: told.append(str(facts)))
    with refusing():
        rows.check()
    held = rows(TABLE)
    return bag(held.x.tolist(), held.y.tolist()), told[0]


def ended(answer: Any, path: Path) -> Any:
    if answer.code == 2:
        *_, line = answer.err.strip().splitlines()
        raise Refused(line.removeprefix("tacit-client: "))
    assert answer.code == 0, answer.err
    return answer


def predicted(world: World, path: Path, *more: str) -> tuple[list[float], str]:
    """The probabilities that `predict` writes, and what it says."""
    out = path.with_name("out.parquet")
    words = ("predict", "--model", world.run, "--data", path, "--out", out, "--probabilities")
    try:
        answer = ended(command(*words, *more), path)
    except Refused:
        assert not out.exists()
        raise
    return parquet.read_table(out).column("p_yes").to_pylist(), answer.err


def evaluated(world: World, path: Path, *more: str) -> tuple[dict[str, Any], str]:
    """The figures of `evaluate`, and what it says."""
    words = ("evaluate", "--model", world.run, "--data", path, "--json", *more)
    answer = ended(command(*words), path)
    facts = answer.json
    return {"rows": facts["rows"], "loss": facts["metrics"]["loss"]}, answer.err


def served(world: World, path: Path) -> list[float]:
    """The probabilities of yes that the local service answers: of the file, or of its rows."""
    if path.suffix in TEXTS:
        where, content = f"/predict?name={path.name}", path.read_bytes()
    else:
        table = parquet.ParquetFile(path).read(["age", "city"])
        where = "/predict"
        content = json.dumps({"rows": table.to_pylist()}, default=str).encode()

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(world.service)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(where, content=content)

    answer = asyncio.run(asked())
    if answer.status_code != 200:
        assert answer.status_code == 422
        raise Refused(answer.json()["error"])
    chances = []
    for one in answer.json()["predictions"]:
        certain = one["probability"]
        chances.append(certain if one["prediction"] == "yes" else round(1 - certain, 6))
    return chances


def checked(world: World, path: Path) -> dict[str, Any]:
    """What `data check` counts."""
    schema = path.with_name("schema.toml")
    schema.write_text(SCHEMA)
    words = ["data", "check", str(path), "--schema", str(schema), "--json"]
    answer = CliRunner().invoke(client_app, words)
    if isinstance(answer.exception, ValueError):
        raise Refused(str(answer.exception))
    assert answer.exit_code in (0, 1), answer.output
    facts: dict[str, Any] = json.loads(answer.stdout)
    assert answer.exit_code == int(
        facts["left_out"] > 0 or any(c["unknown"] for c in facts["columns"])
    )
    return facts


def examined(world: World, path: Path) -> tuple[str, str]:
    """The state of the rows that were registered, and the doctor's words about them."""
    site = path.with_name("site")
    populations.add(site, "people", path.with_name("l.jsonl"), path, SCHEMA)
    (one,) = [check for check in participation(site, None, "") if check.what == "rows"]
    if one.state == "FAULT":
        raise Refused(one.finding.removeprefix("people: "))
    return one.state, one.finding


def refusal(door: Callable[[World, Path], object], world: World, path: Path) -> str:
    with pytest.raises(Refused) as refused:
        door(world, path)
    message = str(refused.value)
    assert "\n" not in message
    assert message.isprintable()
    assert message.startswith((str(path), f"the request/{path.name}", f"--data {path}")), message
    assert not [value for value in PRIVATE if value in message], message
    return message


@pytest.mark.parametrize("name", CASES)
def test_every_door_gives_the_same_rows_or_the_same_line(
    name: str, world: World, tmp_path: Path
) -> None:
    case = CASES[name]
    path = case.make(tmp_path)
    if case.source:
        (tmp_path / "source.toml").write_text(case.source)
    in_file = path.suffix in TEXTS and not case.source
    if case.refused:
        doors = [simulated, at_site, evaluated]
        if case.left_out:  # one by one, for their owner
            assert checked(world, path)["left_out"] == case.left_out
            assert examined(world, path)[0] == "warn"
        else:
            doors += [checked, examined]
        if "label" not in name:  # which prediction does not look at
            doors += [predicted, served] if in_file else [predicted]
        for door in doors:
            message = refusal(door, world, path)
            assert re.search(case.refused, message), (door.__name__, message)
        return
    expected = bag(features(case.rows), labels(case.rows))
    for train in (simulated, at_site):
        rows, words = train(world, path)
        assert rows == expected, train.__name__
        assert (f"{case.left_out} left out" in words) == bool(case.left_out)
        for column, count in case.unknown.items():
            assert f"column {column}: {count} of " in words
        assert not [value for value in PRIVATE if value in words]
    facts = checked(world, path)
    assert facts["rows"] - facts["left_out"] == len(case.rows)
    assert facts["left_out"] == case.left_out
    shares = {c["column"]: round(c["unknown"] * facts["rows"]) for c in facts["columns"]}
    for column, count in case.unknown.items():
        assert shares[column] == count
    state, words = examined(world, path)
    assert state == ("warn" if case.left_out or case.unknown else "fine")
    assert f"{facts['rows']} rows on {facts['lines']} lines, {case.left_out} would be left" in words
    more: tuple[str, ...] = ()
    if case.left_out:
        message = refusal(evaluated, world, path)
        assert re.search(r"line \d+, column (age|ill): expected", message)
        if "label" not in name:
            assert refusal(predicted, world, path) == message
            if in_file:
                assert message.partition(", column age")[2].partition(" (--")[0] in refusal(
                    served, world, path
                )
        more = ("--skip-bad",)
    chances, words = predicted(world, path, *more)
    wanted = world.says(case.rows)
    assert chances[: len(wanted)] == pytest.approx(wanted, abs=2e-6)
    assert len(chances) == len(wanted) + case.left_out * ("label" in name)
    for column, count in case.unknown.items():
        assert f"column {column}: {count} of " in words
    measured, words = evaluated(world, path, *more)
    losses = [-np.log(p if y else 1 - p) for p, y in zip(wanted, labels(case.rows), strict=True)]
    assert measured == {"rows": len(case.rows), "loss": pytest.approx(np.mean(losses), abs=1e-5)}
    if not case.left_out and not case.source:
        assert served(world, path) == pytest.approx(wanted, abs=2e-6)


def test_every_kind_of_file_fault_is_here() -> None:
    assert {name.split()[0] for name in CASES} == {"P1", "P4", "P5", "P6", "P11", "P12"}
