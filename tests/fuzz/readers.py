"""Every reader of what others send, with examples to begin from and the errors it may raise."""

import asyncio
import datetime
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from client.agent.credentials import Enrolled, EnrolmentError, enroll, join
from client.models.loading import ModelError, header, load
from client.models.provenance import OriginError, Trust
from client.round_request import Refused, read_round_request
from client.serving.request import RequestError, encoder
from client.site import Site
from client.tasks.registry import task
from client.tasks.rows import TaskError
from client.tasks.table import schema
from client.tasks.table import task as table_task
from privacy.accounting.events import Event
from privacy.arrays import WireError, decode, encode
from privacy.contract.decision import judge
from privacy.contract.plan import PlanError
from privacy.contract.plan_file import from_json, load_plan
from privacy.contract.policy import Policy, PolicyError, parse_policy
from privacy.files import DocumentError, parse_json, parse_toml
from privacy.http.exchange import HttpLimits
from privacy.http.http_connection import HttpConnection
from privacy.identity.certificates import Certificate, read_request
from privacy.identity.keys import IdentityError
from privacy.ledger.chain import LedgerError
from privacy.ledger.entries import verify as verify_ledger
from privacy.ledger.heads import GENESIS, HeadError, Proof, accept, fold
from privacy.ledger.ledger import Ledger
from privacy.message_objects import MalformedMessage, decode_arrays, gather
from server.dashboard.run_status import Runs
from server.registry import sites as members
from server.registry.sites import MembersError
from server.rounds import checkpoint
from server.rounds.checkpoint import CheckpointError
from server.rounds.messages import ReplyError, Request
from server.rounds.reply_check import read_reply
from tests.fuzz.file_readers import file_readers
from tests.fuzz.reader import Reader
from tests.support.models import own_key, release
from tests.support.run_folders import make_plan, run_folder

NOW = datetime.datetime.now(datetime.UTC)
SHAPES = {"weight": (10, 4), "bias": (10,)}
SCHEMA = b"""label = "y"
hidden = [16]
[columns.y]
type = "category"
values = ["a", "b"]
[columns.x]
type = "number"
min = 0
max = 1
knots = [0.5]
missing = "indicator"
"""


def text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


class _Transport(asyncio.Transport):
    """A socket that swallows what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None: ...

    def write_eof(self) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class _Owner:
    """A listener for one connection, whose application answers whatever comes."""

    limits, date = HttpLimits(), False

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        from privacy.http.exchange import read_body, respond

        body = await read_body(scope, receive, 10_000, self.limits)
        await respond(send, 200, body)

    def opened(self, connection: Any) -> None: ...

    def busy(self, connection: Any) -> None: ...

    def idle(self, connection: Any) -> None: ...

    def closed(self, connection: Any) -> None: ...

    def refusal(self, connection: Any, error: Any) -> bytes:
        return b"{}"

    def failed(self, error: Exception) -> None:
        raise error


def http(loop: asyncio.AbstractEventLoop) -> Callable[[bytes], None]:
    owner = cast(Any, _Owner())

    async def feed(content: bytes) -> None:
        connection = HttpConnection(owner, loop)
        connection.connection_made(_Transport())
        connection.data_received(content or b" ")
        await asyncio.sleep(0)
        connection.eof_received()
        await asyncio.sleep(0)
        working = connection.task
        connection.connection_lost(None)
        if working is not None:
            await asyncio.wait_for(working, 1)

    return lambda content: loop.run_until_complete(feed(content))


@contextmanager
def readers() -> Iterator[list[Reader]]:
    """All readers, over a folder that is removed in the end."""
    with tempfile.TemporaryDirectory() as name:
        loop = asyncio.new_event_loop()
        try:
            yield _readers(Path(name), loop)
        finally:
            loop.close()


def _readers(folder: Path, loop: asyncio.AbstractEventLoop) -> list[Reader]:
    plan = make_plan(metrics=("loss",), metrics_sigma=3.0, site={"a": {"rows": 200}})
    plan_json = plan.to_json().encode()
    policy = Policy(1.0, 1e-5)
    weights = {n: np.ones(shape, np.float32) for n, shape in SHAPES.items()}

    def file(name: str, content: bytes) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    book = Ledger.create(folder / "l.jsonl", population="p", durable=False)
    for number in range(4):
        book.spend(Event("record", 8.0, 0.5, 2), None, run="r", round=number + 1, plan="0" * 64)
    log = (folder / "l.jsonl.log").read_bytes()
    home = folder / "home"
    members.create(home, ["127.0.0.1"], NOW)
    csr, _ = enroll(folder / "s", "s")
    _, bundle = members.sign(home, csr, NOW)
    join(folder / "s", bundle, NOW)
    run = run_folder(folder / "run", plan)
    model = folder / "model"
    model.mkdir()
    released = release(model, 1, key=own_key(model))
    run_id = header(released.read_bytes())["run"]
    head = fold(GENESIS, ["0" * 64]).to_dict()
    proof = {
        "base": GENESIS.to_dict(), "leaves": ["0" * 64], "head": head, "acknowledged": False
    }  # fmt: skip
    event = {"unit": "record", "sigma": 8.0, "rate": 1.0, "steps": 2, "count": 1}
    noisy = {"unit": "record", "sigma": 3.0, "rate": 1.0, "steps": 1, "count": 1}
    reply = {
        "run": "r", "round": 1, "site": "a", "status": "trained", "reason": "", "sigma": 8.0,
        "events": json.dumps([event, noisy]), "head": json.dumps(proof),
        "metrics": json.dumps({"loss": 10.0}),
    }  # fmt: skip
    site = Site("a", policy, None, rows=cast(Any, None), check_head=lambda _: True)
    digits = partial(encoder(task("digits"), 100), name="application/json")
    table = partial(encoder(table_task(SCHEMA.decode()), 100), name="application/json")
    request = {"run": "r", "round": 1, "site": "a", "plan": plan.to_json()}
    asked = Request("r", 1, "a", plan.to_json())
    update = encode(weights)

    def read_plan(content: bytes) -> None:
        accepted = from_json(text(content))
        if from_json(accepted.to_json()).digest != accepted.digest:
            raise AssertionError("a plan that is another one when it is read again")

    def read_reply_fields(content: bytes) -> None:
        fields = _table(content)
        kinds = (bool, int, float, str, bytes)
        record = {str(k): v for k, v in fields.items() if isinstance(v, kinds)}
        array = Array(dtype="uint8", shape=(len(update),), stype="safetensors", data=update)
        try:
            contents = RecordDict(
                {"reply": ConfigRecord(record), "arrays": ArrayRecord({"update": array})}
            )
        except (TypeError, ValueError, OverflowError):
            return
        message = cast(Message, _Message(contents))
        answer = read_reply(message, asked, plan, SHAPES)
        if answer.metrics is not None and set(answer.metrics) - {"loss"}:
            raise AssertionError("metrics that the plan does not name")

    def read_head(content: bytes) -> None:
        accept(GENESIS, Proof.from_dict(parse_json(content)))

    def read_ledger(content: bytes) -> None:
        path = file("l2.jsonl", content)
        file("l2.jsonl.log", log)
        verify_ledger(path)

    def read_checkpoint(content: bytes) -> None:
        path = file("000001.safetensors", content)
        try:
            checkpoint.read(path)
        except CheckpointError:
            checkpoint.read_metadata(path)

    def read_model(content: bytes) -> None:
        path = file("m.safetensors", content)
        from client.models.trusted_keys import sign_beside

        sign_beside(path, content, run_id, 1, None)
        load(path, Trust())

    def read_state(content: bytes) -> None:
        (run / "history.jsonl").write_bytes(content)
        json.dumps(Runs(run).state(), allow_nan=False).encode()

    def read_objects(content: bytes) -> None:
        gathered = gather("root", {"root": content, "c": b"ArrayChunk  4\0abcd"}.get)
        if sum(len(one.data) for one in decode_arrays(gathered, 10_000).values()) > 10_000:
            raise AssertionError("more bytes than the limit")

    array_object = b'{"arraychunk_ids": [0, 0], "shape": [2], "dtype": "uint8", "stype": "x"}'
    whole = b"Array c %d\0" % len(array_object) + array_object
    no_rows = json.dumps({"rows": [[0.5] * 64]}).encode()
    one_row = json.dumps({"rows": [{"x": 1}]}).encode()
    pem = Enrolled(folder / "s").certificate.read_bytes()
    get = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"
    post = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    old = b"GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"
    history = (run / "history.jsonl").read_bytes()
    last = sorted((run / "checkpoints").glob("*.safetensors"))
    kept = last[-1].read_bytes() if last else encode(weights)
    return [
        Reader("json", (plan_json,), parse_json, (DocumentError,), "json"),
        Reader("toml", (plan.to_toml().encode(), SCHEMA), parse_toml, (DocumentError,)),
        Reader(
            "plan-toml",
            (plan.to_toml().encode(),),
            lambda content: load_plan(str(file("p.toml", content))),
            (PlanError,),
        ),
        Reader("plan", (plan_json,), read_plan, (PlanError,), "json"),
        Reader(
            "judge",
            (plan_json,),
            lambda c: judge(from_json(text(c)), Policy(1.0, 1e-5, approve="list"), [], site="a"),
            (PlanError,),
            "json",
        ),
        Reader(
            "policy", (policy.to_toml().encode(),), lambda c: parse_policy(text(c)), (PolicyError,)
        ),
        Reader("schema", (SCHEMA,), lambda content: schema(text(content)), (TaskError,)),
        Reader("ledger", ((folder / "l.jsonl").read_bytes(),), read_ledger, (LedgerError,)),
        *(
            Reader(
                f"wire-{kind}",
                (encode(weights, kind),),
                lambda content, kind=kind: decode(content, SHAPES, kind),
                (WireError,),
            )
            for kind in ("float32", "bfloat16", "int8")
        ),
        Reader("csr", (csr.read_bytes(),), read_request, (IdentityError,)),
        Reader("certificate", (pem,), Certificate.read, (IdentityError,)),
        Reader(
            "sign",
            (csr.read_bytes(),),
            lambda content: members.sign(home, file("m.csr", content), NOW),
            (MembersError,),
        ),
        Reader(
            "bundle",
            (bundle.read_bytes(),),
            lambda content: join(folder / "s", file("b.bundle", content), NOW),
            (EnrolmentError, IdentityError),
            "json",
        ),
        Reader(
            "head", (json.dumps(proof).encode(),), read_head, (HeadError, DocumentError), "json"
        ),
        Reader(
            "reply",
            (json.dumps(reply).encode(),),
            read_reply_fields,
            (ReplyError, ValueError),
            "json",
        ),
        Reader(
            "request",
            (json.dumps(request).encode(),),
            lambda content: read_round_request(site, cast(Any, _table(content))),
            (Refused,),
            "json",
        ),
        Reader("objects", (whole,), read_objects, (MalformedMessage,)),
        Reader("checkpoint", (kept,), read_checkpoint, (CheckpointError,)),
        Reader("model", (released.read_bytes(),), read_model, (ModelError, OriginError)),
        Reader("serve", (no_rows,), digits, (RequestError,), "json"),
        Reader("serve-table", (one_row,), table, (RequestError,), "json"),
        Reader("history", (history,), read_state, ()),
        Reader("http", (get, post, old, get + post), http(loop), ()),
        *file_readers(folder, released),
    ]


def _table(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class _Message:
    """A reply without an error."""

    def __init__(self, content: RecordDict) -> None:
        self.content = content

    def has_error(self) -> bool:
        return False
