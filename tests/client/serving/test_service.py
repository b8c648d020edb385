"""The local service: what it answers, what it refuses, and that it neither drops nor leaks."""

import contextlib
import json
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer
from sklearn.datasets import load_digits

from client.commands.models import register
from client.models.loading import ModelError, find, load
from client.models.provenance import Trust
from client.serving.address import Limits, Listening, listening
from client.serving.server import run as host
from client.serving.service import Service
from client.tasks.registry import task as find_task
from tests.support.forks import Fork
from tests.support.models import command, own_key, plan_for, release, shaken
from tests.support.patience import patience, wait_for

ROOT = Path(__file__).parents[3]
DIGITS = load_digits().data


def serving(arguments: list[str]) -> None:
    """The command in a process of its own."""
    app = typer.Typer()
    register(app)
    app(arguments)


@contextlib.contextmanager
def served(folder: Path, *further: str, env: dict[str, str] | None = None) -> Iterator[Any]:
    """The service as a process of its own; yields its address, its process and its log."""
    log = folder.parent / "serve.log"
    arguments = ["serve", "--model", str(folder), "--listen", "127.0.0.1:0", *further]
    with log.open("w") as errors:
        process = Fork(lambda: serving(arguments), output=errors, cwd=ROOT, env=env)
    try:
        deadline = time.monotonic() + patience(60)
        while "listening on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = log.read_text().split("listening on ")[1].split()[0]
        with httpx.Client(base_url=address, timeout=patience(30), trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    client.get("/health")
                    break
                time.sleep(0.05)
            yield client, process, log
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    release(folder, 5, key=own_key(folder))
    return folder


@pytest.fixture
def client(run: Path) -> Iterator[httpx.Client]:
    """The service in this process, over an ASGI transport."""
    service = Service(
        load(find(str(run)), Trust()), listening("127.0.0.1:0", None), Limits(65536, 32)
    )
    yield _Sync(service)
    service.thread.shutdown()


class _Sync:
    """httpx over the application itself, from synchronous tests."""

    def __init__(self, app: Service, host: str = "127.0.0.1") -> None:
        self.app, self.host = app, host

    def request(self, method: str, path: str, **values: Any) -> httpx.Response:
        import asyncio

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            base = f"http://{self.host}"
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, **values)

        return asyncio.run(ask())

    def post(self, path: str, **values: Any) -> httpx.Response:
        return self.request("POST", path, **values)

    def get(self, path: str, **values: Any) -> httpx.Response:
        return self.request("GET", path, **values)


def test_single_and_batch_answers_agree_with_the_model(client: _Sync, run: Path) -> None:
    model = load(find(str(run)), Trust())
    rows = find_task("digits").load(None, "all").x[:8]
    assert model.network is not None
    expected = [str(int(i)) for i in model.network(rows).argmax(1)]
    values = DIGITS[:8].tolist()
    names = load_digits().feature_names
    batch = client.post(
        "/predict",
        json={"rows": [*values[:4], *(dict(zip(names, v, strict=True)) for v in values[4:])]},
    )
    assert [one["prediction"] for one in batch.json()["predictions"]] == expected
    assert batch.json()["model"] == model.digest
    single = client.post("/predict", json={"row": values[0]}).json()
    assert (single["prediction"], single["model"]) == (expected[0], model.digest)


def test_the_short_way_and_the_long_way_are_one_encoding() -> None:
    from client.serving.request import _long_way, _short_way

    task = find_task("digits")
    short = _short_way(task)
    assert short is not None
    rows = np.random.default_rng(0).uniform(-5, 25, (20, 64)).tolist()
    found = short(rows)
    assert found is not None
    assert np.abs(found - _long_way(task, rows)).max() < 1e-6


@pytest.mark.parametrize("name", ["heart-disease", "adult"])
def test_rows_of_every_table_are_served(tmp_path: Path, name: str) -> None:
    task = find_task(name)
    release(tmp_path / "run", plan=plan_for(name), network=shaken(task))
    model = load(find(str(tmp_path / "run")), Trust())
    service = Service(model, listening("127.0.0.1:0", None), Limits(65536, 32))
    row: dict[str, Any] = dict.fromkeys(task.inputs, 1)
    answer = _Sync(service).post("/predict", json={"row": row})
    service.thread.shutdown()
    assert answer.status_code in (200, 422)
    if answer.status_code == 200:
        assert answer.json()["prediction"] in task.classes


def test_the_card_the_health_and_the_description_are_served(client: _Sync) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/model").json()["card"]["epsilon"] == 1.25
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/health", "/model", "/predict"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"row": [NaN]}', 400),
        (b"[" * 100_000, 413),
        (b"[" * 50_000, 400),
        (b'{"rows": []}', 400),
        (b'{"rows": 3}', 400),
        (b'{"row": 3}', 422),
        (b'{"row": [1, 2]}', 422),
        (b'{"row": {"pixel_0_0": 1}}', 422),
        (json.dumps({"row": ["a"] * 64}).encode(), 422),
        (json.dumps({"row": [1e400] * 64}).encode(), 400),
        (json.dumps({"row": [10**400] + [0] * 63}).encode(), 422),
        (json.dumps({"row": [[]] * 64}).encode(), 422),
        (json.dumps({"row": ["\ud800"] * 64}).encode(), 422),
        (json.dumps({"rows": [[0] * 64] * 33}).encode(), 413),
        (b" " * 70_000, 413),
        (b"\xff\xfe\x00", 400),
    ],
)
def test_what_is_no_request_is_refused_with_its_status(
    client: _Sync, body: bytes, status: int
) -> None:
    answer = client.post("/predict", content=body)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}


def test_methods_and_paths_that_do_not_exist(client: _Sync) -> None:
    assert client.get("/predict").status_code == 405
    assert client.get("/docs").status_code == 404
    assert client.post("/model").status_code == 405


def test_a_web_page_cannot_reach_the_service_under_another_name(client: _Sync) -> None:
    client.host = "attacker.example"
    assert client.get("/health").status_code == 421


def test_off_loopback_a_token_is_asked_for(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--token-file"):
        listening("0.0.0.0:8080", None)
    token = tmp_path / "token"
    token.write_text("short")
    with pytest.raises(ModelError, match="16 to 1024"):
        listening("0.0.0.0:8080", token)
    token.write_text("0123456789abcdef\n")
    where = listening("0.0.0.0:8080", token)
    service = Service(load(find(str(run)), Trust()), where, Limits(65536, 32))
    client = _Sync(service, "10.0.0.1")
    body = {"row": DIGITS[0].tolist()}
    assert client.post("/predict", json=body).status_code == 401
    wrong = {"authorization": "Bearer 0123456789abcdeX"}
    assert client.post("/predict", json=body, headers=wrong).status_code == 401
    right = {"authorization": "Bearer 0123456789abcdef"}
    assert client.post("/predict", json=body, headers=right).status_code == 200
    assert client.get("/health").status_code == 200
    service.thread.shutdown()


@pytest.mark.parametrize("where", ["8080", "localhost:x", "127.0.0.1:70000", ":80"])
def test_an_address_that_is_none_is_bad_input(where: str) -> None:
    with pytest.raises(ModelError, match="listen: expected HOST:PORT"):
        listening(where, None)


def test_a_port_in_use_gives_one_line(run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = Listening("127.0.0.1", taken.getsockname()[1], True, None)
        model = load(find(str(run)), Trust())
        with pytest.raises(ModelError, match="free address"):
            host(model, where, Limits(1, 1), newest=Path, trust=Trust(), refresh=1)


def test_a_newer_model_takes_over_and_no_request_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    key = own_key(folder)
    release(folder, 1, network=shaken(find_task("digits")), key=key)
    with served(folder, "--refresh", "0.1") as (client, process, log):
        bodies = {"row": DIGITS[0].tolist()}
        before = client.post("/predict", json=bodies).json()["model"]
        failures: list[int] = []
        seen: set[str] = set()
        stop = threading.Event()

        def ask() -> None:
            with httpx.Client(
                base_url=client.base_url, timeout=patience(30), trust_env=False
            ) as own:
                while not stop.wait(0.01):
                    answer = own.post("/predict", json=bodies)
                    if answer.status_code != 200:
                        failures.append(answer.status_code)
                    seen.add(answer.json()["model"])

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        newer = release(folder, 2, key=key)
        corrupt = release(folder, 3, key=key)
        corrupt.write_bytes(corrupt.read_bytes()[:-4])
        corrupt.unlink()
        Path(f"{corrupt}.sig").unlink()
        expected = load(newer, Trust()).digest
        assert wait_for(lambda: client.get("/model").json()["model"] == expected), log.read_text()
        corrupt.write_bytes(b"nonsense")
        Path(f"{corrupt}.sig").write_bytes(b"nonsense")
        assert wait_for(lambda: "keeping round 2" in log.read_text()), log.read_text()
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert {before, expected} <= seen | {before}
        assert client.post("/predict", json=bodies).json()["model"] == expected
        process.send_signal(signal.SIGTERM)
        assert process.wait(patience(20)) == 0


def malformed(random_: random.Random) -> bytes:
    """A request's body that is broken somewhere, with a marked value in it."""
    row: list[Any] = [random_.randrange(17) for _ in range(64)]
    kind = random_.randrange(8)
    if kind == 0:
        row[random_.randrange(64)] = random_.choice(
            ["SECRET", None, {}, [], True, 1e308, 10**30, ""]
        )
    elif kind == 1:
        row = row[: random_.randrange(64)]
    text = json.dumps(
        random_.choice([{"row": row}, {"rows": [row]}, {"rows": row}, row, {"x": row}])
    )
    body = bytearray(text.encode())
    if kind == 2:
        body = body[: random_.randrange(len(body))]
    elif kind >= 3:
        for _ in range(random_.randrange(1, 6)):
            body[random_.randrange(len(body))] = random_.randrange(256)
    return bytes(body)


def bombard(client: httpx.Client, count: int) -> set[int]:
    random_ = random.Random(0)
    return {client.post("/predict", content=malformed(random_)).status_code for _ in range(count)}


def raw(client: httpx.Client, content: bytes) -> bytes:
    """Bytes on the socket, well-formed HTTP or not."""
    with socket.create_connection(
        (client.base_url.host, client.base_url.port or 80), patience(5)
    ) as plain:
        plain.settimeout(patience(5))
        with contextlib.suppress(OSError):
            plain.sendall(content)
            plain.shutdown(socket.SHUT_WR)
            return plain.recv(65536)
    return b""


def _unharmed(client: httpx.Client, log: Path) -> None:
    assert client.post("/predict", json={"row": DIGITS[0].tolist()}).json()["prediction"] == "0"
    text = log.read_text()
    assert "Traceback" not in text
    assert "SECRET" not in text


def test_malformed_requests_neither_crash_nor_leak(run: Path) -> None:
    with served(run) as (client, process, log):
        assert bombard(client, 80) <= {200, 400, 413, 422}
        for content in (
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"GET\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: SECRET\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\nSECRET",
            b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ",
            b"A" * 100_000,
        ):
            raw(client, content)
        _unharmed(client, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(patience(20)) == 0


@pytest.mark.slow
def test_ten_thousand_malformed_requests_neither_crash_nor_leak(run: Path) -> None:
    with served(run) as (client, _, log):
        assert bombard(client, 10_000) <= {200, 400, 413, 422}
        _unharmed(client, log)


def test_the_command_refuses_what_it_cannot_serve(run: Path) -> None:
    for where in ("0.0.0.0:0", "nowhere"):
        answer = command("serve", "--model", run, "--listen", where)
        assert (answer.code, "expected" in answer.err) == (2, True)
