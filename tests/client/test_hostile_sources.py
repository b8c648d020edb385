"""Sources of every kind that differ by one hostile row: no other row goes or changes with it."""

import sqlite3
import wave
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from client.data.site_rows import SiteRows, Source
from client.tasks.registry import task
from client.tasks.rows import TaskError
from privacy.contract.policy import Policy

TABLE = """
label = "ill"
subject = "who"
[columns.age]
type = "number"
min = 0
max = 120
[columns.ill]
type = "category"
values = ["no", "yes"]
"""
TEXTS = """
reader = "texts"
text = "words"
label = "class"
kind = "classification"
classes = ["a", "b"]
subject = "who"
words = 64
length = 4
"""
POLICY = Policy(epsilon=50.0, delta=1e-4, approve="within-limits", min_sigma=0.0, min_rows=1)
PEOPLE: list[tuple[Any, ...]] = [(f"p{i}", 20 + i, "yes" if i % 3 else "no") for i in range(40)]


def trained_on(path: Path, name: str, schema: str | None = None) -> tuple[list[Any], str]:
    """The rows that a round trains on, in an order of their own, and what the owner is told."""
    told: list[str] = []
    tell = lambda event, **facts: told.append(facts["file"])  # noqa: E731
    rows = SiteRows(Source(path), schema, lambda: POLICY, tell)(task(name, schema))
    parts = [rows.x] if isinstance(rows.x, torch.Tensor) else list(rows.x.values())
    whose = [None] * len(rows) if rows.subject is None else rows.subject.tolist()
    values = zip(*(part.flatten(1).tolist() for part in parts), rows.y.tolist(), whose, strict=True)
    return sorted(map(repr, values)), " ".join(told)


def takes_none_with_it(plain: Path, hostile: Path, name: str, schema: str | None = None) -> str:
    """What the owner hears of the hostile row, which is left out or is a row itself."""
    before, _ = trained_on(plain, name, schema)
    after, told = trained_on(hostile, name, schema)
    assert not set(before) - set(after)
    assert len(before) <= len(after) <= len(before) + 1
    return told


def texts(values: Sequence[str | bytes]) -> Any:
    """A column of texts that nobody has checked for UTF-8."""
    raw = [one if isinstance(one, bytes) else one.encode() for one in values]
    ends = np.cumsum([0, *map(len, raw)]).astype(np.int32)
    content = pa.py_buffer(b"".join(raw))
    return pa.StringArray.from_buffers(len(raw), pa.py_buffer(ends.tobytes()), content)


def parquet(folder: Path, rows: Sequence[tuple[Any, ...]]) -> Path:
    folder.mkdir()
    who, age, ill = zip(*rows, strict=True)
    table = pa.table({"who": texts(who), "age": list(age), "ill": texts(ill)})
    pq.write_table(table, folder / "d.parquet")
    return folder / "d.parquet"


def database(folder: Path, rows: Sequence[tuple[Any, ...]]) -> Path:
    folder.mkdir()
    with sqlite3.connect(folder / "d.db") as connection:
        connection.execute("create table t(who, age, ill)")
        connection.executemany("insert into t values(?, ?, ?)", rows)
        connection.execute("update t set ill = cast(ill as text) where who = 'bytes as text'")
    connection.close()
    source = folder / "source.toml"
    source.write_text('database = "sqlite:///d.db"\nquery = "select who, age, ill from t"\n')
    return source


@pytest.mark.parametrize("row", [("q", 40, b"y\xff"), (b"q\xff", 40, "yes")], ids=["label", "who"])
def test_a_cell_that_is_no_text_in_a_file_of_columns(tmp_path: Path, row: tuple[Any, ...]) -> None:
    plain = parquet(tmp_path / "plain", PEOPLE)
    hostile = parquet(tmp_path / "hostile", [*PEOPLE[:9], row, *PEOPLE[9:]])
    assert "1 left out (row 10" in takes_none_with_it(plain, hostile, "table", TABLE)


@pytest.mark.parametrize(
    "row",
    [
        ("q", 40, b"\xff"), ("q", b"\x01", "yes"), (b"q", 4, "yes"), ("bytes as text", 4, b"y\xff"),
        ("q", "forty", "yes"), ("q", float("inf"), "yes"), (None, None, None), ("q", "4\0", "yes"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_of_a_strange_kind_in_a_database(tmp_path: Path, row: tuple[Any, ...]) -> None:
    pytest.importorskip("adbc_driver_sqlite")
    plain = database(tmp_path / "plain", PEOPLE)
    hostile = database(tmp_path / "hostile", [*PEOPLE[:9], row, *PEOPLE[9:]])
    assert "1 left out (row 10" in takes_none_with_it(plain, hostile, "table", TABLE)


def written(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir()
    (folder / name).write_bytes(content)
    return folder


RATINGS = "userId,movieId,rating\n" + "".join(
    f"{u},{f},{f % 5}.5\n" for u in range(30) for f in (1, 2)
)


@pytest.mark.parametrize("place", [0.5, 1])
@pytest.mark.parametrize(
    "line",
    [
        b"77,3,good\n", b"77,3,nan\n", b"77,3\n", b",,\n", b"\xff7,3,3.0\n", b'"77,3,3.0\n',
        b"77,3,9\n", b"77,3," + b"4" * 200_000 + b"\n", b"7\0,3,3.0\n", b"77\r,3,3.0\n",
    ],
)  # fmt: skip
def test_a_line_that_is_no_rating(tmp_path: Path, line: bytes, place: float) -> None:
    body = RATINGS.encode()
    at = body.index(b"\n", int(len(body) * place) - 1) + 1
    plain = written(tmp_path / "plain", "ratings.csv", body)
    hostile = written(tmp_path / "hostile", "ratings.csv", body[:at] + line + body[at:])
    told = takes_none_with_it(plain, hostile, "movielens")
    assert "left out (line" in told or b"\0" in line


@pytest.mark.parametrize("block", [b"Q:\nh\xff\xfello\n\n", b"\xff:\nhello\n\n", b"Q:\nh\0\n\n"])
def test_a_role_that_is_no_text(tmp_path: Path, block: bytes) -> None:
    body = "".join(f"R{i}:\nHello there {i}, my lord.\n\n" for i in range(30)).encode()
    at = body.index(b"R15:")
    plain = written(tmp_path / "plain", "input.txt", body)
    hostile = written(tmp_path / "hostile", "input.txt", body[:at] + block + body[at:])
    takes_none_with_it(plain, hostile, "shakespeare")


def clips(folder: Path, **more: Any) -> Path:
    folder.mkdir()
    count = 6
    sound = np.random.default_rng(1).normal(0, 5000, (count, 1600)).astype(np.int16)
    arrays: dict[str, Any] = {
        "audio": sound.reshape(-1), "length": np.full(count, 1600), "digit": np.arange(count),
        "speaker": np.arange(count) % 2, "index": np.arange(count) + 5,
    }  # fmt: skip
    if more:
        more = {"audio": sound[0], "length": 1600, "digit": 1, "speaker": 0, "index": 9} | more
        arrays = {name: np.append(array, more[name]) for name, array in arrays.items()}
    np.savez(folder / "clips.npz", speaker_names=["ann", "bob"], **arrays)
    return folder


@pytest.mark.parametrize(
    "clip",
    [
        {"digit": 12}, {"digit": -1}, {"speaker": 9}, {"speaker": -9},
        {"audio": np.zeros(1600, np.int16)}, {"length": -1600, "audio": np.zeros(0, np.int16)},
    ],
)  # fmt: skip
def test_a_clip_that_is_none(tmp_path: Path, clip: dict[str, Any]) -> None:
    hostile = clips(tmp_path / "hostile", **clip)
    told = takes_none_with_it(clips(tmp_path / "plain"), hostile, "spoken-digits")
    assert "1 left out (clip 7" in told


def test_a_recording_that_ends_in_the_middle_of_a_number(tmp_path: Path) -> None:
    for folder in (tmp_path / "plain", tmp_path / "hostile"):
        folder.mkdir()
        for index in (7, 8):
            with wave.open(str(folder / f"3_ann_{index}.wav"), "wb") as sound:
                sound.setparams((2, 2, 8000, 0, "NONE", ""))
                noise = np.random.default_rng(index).normal(0, 5000, 3200)
                sound.writeframes(noise.astype("<i2").tobytes())
    whole = (tmp_path / "plain" / "3_ann_7.wav").read_bytes()
    (tmp_path / "hostile" / "3_ann_9.wav").write_bytes(whole[:-3])
    takes_none_with_it(tmp_path / "plain", tmp_path / "hostile", "spoken-digits")


@pytest.mark.parametrize("line", ["hi,a,\n", "hi,c,p\n", "hi,a\n"])
def test_a_record_of_nobody_after_a_whole_chunk(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.tasks.described.described_task._CHUNK", 16)
    body = "words,class,who\n" + "".join(f"word{i},{'ab'[i % 2]},p{i}\n" for i in range(32))
    plain = written(tmp_path / "plain", "d.csv", body.encode())
    hostile = written(tmp_path / "hostile", "d.csv", (body + line).encode())
    assert "1 left out" in takes_none_with_it(plain, hostile, "texts", TEXTS)


def idx(folder: Path, labels: Sequence[int]) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(3).integers(0, 256, (len(labels), 28, 28), np.uint8)
    for name, shape, content in (
        ("train-images-idx3-ubyte", pixels.shape, pixels.tobytes()),
        ("train-labels-idx1-ubyte", (len(labels),), bytes(labels)),
    ):
        sizes = b"".join(size.to_bytes(4, "big") for size in shape)
        (folder / name).write_bytes(bytes([0, 0, 8, len(shape)]) + sizes + content)
    return folder


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-scattering"])
def test_a_picture_of_no_class(tmp_path: Path, name: str) -> None:
    plain, hostile = idx(tmp_path / "plain", range(6)), idx(tmp_path / "hostile", [*range(6), 200])
    assert "1 left out (row 7, column kind" in takes_none_with_it(plain, hostile, name)


HEART = "".join(f"{40 + i},1,1,140,240,0,0,150,0,1.0,1,0,3,{i % 2}\n" for i in range(20))


def test_a_hospital_whose_only_row_does_not_fit(tmp_path: Path) -> None:
    for folder, last in (("plain", HEART), ("hostile", "this is no row\n")):
        for hospital in ("cleveland", "hungarian", "switzerland", "va"):
            (tmp_path / folder).mkdir(exist_ok=True)
            file = tmp_path / folder / f"processed.{hospital}.data"
            file.write_text(last if hospital == "va" else HEART)
    rows, _ = trained_on(tmp_path / "plain", "heart-disease")
    fewer, _ = trained_on(tmp_path / "hostile", "heart-disease")
    assert len(fewer) * 4 == len(rows) * 3


@pytest.mark.parametrize(
    "line", ["x\n", "age,1\n", "age,sex,age,140,240,0,0,150,0,1.0,1,0,3,1\n", "\0\n", '"open\n']
)
def test_a_first_line_that_is_no_row_of_a_file_without_a_header(tmp_path: Path, line: str) -> None:
    plain = written(tmp_path / "plain", "processed.va.data", HEART.encode())
    hostile = written(tmp_path / "hostile", "processed.va.data", (line + HEART).encode())
    told = takes_none_with_it(plain, hostile, "heart-disease")
    assert "1 left out (line 1" in told


def test_where_the_owner_starts_the_client_a_header_that_names_too_few_columns_is_refused(
    tmp_path: Path,
) -> None:
    names = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,ill\n"
    folder = written(tmp_path / "d", "processed.va.data", (names + HEART).encode())
    policy = replace(POLICY, tasks=("heart-disease",))
    rows = SiteRows(Source(folder), None, lambda: policy, lambda _, **__: None)
    with pytest.raises(TaskError, match="expected a column named 'num'"):
        rows.check()
