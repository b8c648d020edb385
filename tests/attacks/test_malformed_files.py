"""Two hundred broken files of rows and of models: one line each, no traceback, no value told."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as parquet
import pytest

from privacy.report.bundle.verify import verify
from privacy.report.bundle.write import file_report
from tests.support.models import command, digits_csv, own_key, release
from tests.support.run_folders import run_folder

MARK = "777.777secret"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One good file of each form."""
    folder = tmp_path_factory.mktemp("whole")
    source = digits_csv(folder / "d.csv", 40)
    table = pacsv.read_csv(source)
    values = np.stack([table.column(name).to_numpy() for name in table.column_names[:-1]], 1)
    parquet.write_table(table, folder / "d.parquet")
    np.savez_compressed(folder / "d.npz", x=values, y=np.zeros(40, np.int64))
    np.savez(folder / "e.npz", x=values)
    np.save(folder / "d.npy", values)
    (folder / "d.csv.gz").write_bytes(gzip.compress(source.read_bytes()))
    head = b"\x00\x00\x08\x03" + (40).to_bytes(4, "big") + 2 * (8).to_bytes(4, "big")
    (folder / "d-idx3-ubyte").write_bytes(head + values.astype(np.uint8).tobytes())
    pa_text = table.cast(pa.schema([(name, pa.string()) for name in table.column_names]))
    parquet.write_table(pa_text, folder / "text.parquet")
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    release(folder, 5, key=own_key(folder))
    return folder


def broken(content: bytes, random_: random.Random) -> bytes:
    """Cut, changed, doubled, filled, or with a marked value put in."""
    body = bytearray(content)
    kind = random_.randrange(6)
    if kind == 0:
        return bytes(body[: random_.randrange(len(body))])
    if kind == 1:
        at = random_.randrange(len(body))
        return bytes(body[:at] + MARK.encode() + body[at:])
    if kind == 2:
        return bytes(body + body[random_.randrange(len(body)) :])
    if kind == 3:
        at = random_.randrange(len(body))
        return bytes(body[:at] + bytes(64) + body[at + 64 :])
    for _ in range(random_.choice([1, 5, 50])):
        body[random_.randrange(len(body))] = random_.randrange(256)
    return bytes(body)


def judged(answer_code: int, err: str) -> None:
    assert answer_code in (0, 2)
    assert "Traceback" not in err
    assert "secret" not in err
    assert err.count("tacit-client: ") == (1 if answer_code == 2 else 0)
    assert all(len(line) < 5000 for line in err.splitlines())


def assault(run: Path, whole: dict[str, bytes], tmp_path: Path, seed: int, count: int) -> None:
    random_ = random.Random(seed)
    for i in range(count):
        name = random_.choice(list(whole))
        path = tmp_path / f"{i}-{name}"
        path.write_bytes(broken(whole[name], random_))
        further = random_.choice([[], ["--skip-bad"], ["--json"]])
        what = random_.choice(["predict", "predict", "evaluate"])
        answer = command(what, "--model", run, "--data", path, *further)
        judged(answer.code, answer.err)
        path.unlink()


def test_forty_broken_files_give_one_line_each(
    run: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    assault(run, whole, tmp_path, 1, 40)


@pytest.mark.slow
def test_two_hundred_broken_files_give_one_line_each(
    run: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    for seed in range(2, 6):
        assault(run, whole, tmp_path, seed, 200)


def test_broken_models_give_one_line_each(run: Path, tmp_path: Path) -> None:
    data = digits_csv(tmp_path / "d.csv", 3)
    random_ = random.Random(3)
    unsigned = tmp_path / "unsigned"
    content = {"m.safetensors": release(unsigned).read_bytes()}
    out = tmp_path / "m.onnx"
    command("export", "--model", run, "--format", "onnx", "--out", out)
    content["m.onnx"] = out.read_bytes()
    for i in range(60):
        name = random_.choice(list(content))
        bad = broken(content[name], random_)
        path = unsigned / "checkpoints" / "000009.safetensors"
        if name == "m.onnx":
            from client.models.trusted_keys import sign_beside

            path = tmp_path / f"{i}.onnx"
            sign_beside(path, bad, "00aa11bb22cc33dd", 5, None)
        path.write_bytes(bad)
        answer = command("predict", "--model", path, "--data", data)
        judged(answer.code, answer.err)


def test_signatures_of_any_bytes_give_one_line(run: Path, tmp_path: Path) -> None:
    data, random_ = digits_csv(tmp_path / "d.csv", 3), random.Random(4)
    path = next((run / "checkpoints").glob("*.safetensors"))
    beside = path.with_name(path.name + ".sig")
    good = beside.read_bytes()
    for bad in (
        *(broken(good, random_) for _ in range(20)),
        b"",
        b"[]",
        b"[" * 4000,
        json.dumps({**json.loads(good), "round": True}).encode(),
    ):
        beside.write_bytes(bad)
        answer = command("predict", "--model", path, "--data", data)
        judged(answer.code, answer.err)
    beside.write_bytes(good)


@pytest.mark.parametrize(
    "change",
    [
        {"certificate": 1e308},
        {"filing": {"sources": None}},
        {"filing": {"sources": [{}]}},
        {"files": {"report.json": 1}},
        {"lines": {"a.jsonl": {"x": 1}}},
        {"lines": {"a.jsonl": [[]]}},
    ],
    ids=str,
)
def test_a_malformed_seal_is_told_and_no_traceback(
    tmp_path: Path, change: dict[str, object]
) -> None:
    _, out, _ = file_report([run_folder(tmp_path / "run")])
    path = out / "report.sig"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (problem,) = verify(out).differences
    assert problem.code == "signature-invalid"
