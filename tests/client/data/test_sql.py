"""Rows of a database: one query, read only, streamed, and none of its texts in a refusal."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from client.data.input_files import chunks
from client.tasks.registry import task
from client.tasks.rows import TaskError
from tests.support.postgres import fill, served

SCHEMA = """
label = "ill"
subject = "who"
[columns.age]
type = "number"
min = 0
max = 100
[columns.seen]
type = "date"
min = 2020-01-01
max = 2020-12-31
[columns.city]
type = "category"
values = ["Oslo", "Bergen"]
[columns.ill]
type = "category"
values = [false, true]
"""
TABLE = task("table", SCHEMA)
MADE = [(i, 20 + i % 70, f"2020-{1 + i % 12:02}-15", ("Oslo", "Bergen")[i % 2], i % 3 == 0)
        for i in range(500)]  # fmt: skip


def csv(folder: Path) -> Path:
    """The same rows as a file."""
    lines = [f"{who},{age},{seen},{city},{ill}" for who, age, seen, city, ill in MADE]
    path = folder / "same.csv"
    path.write_text("\n".join(["who,age,seen,city,ill", *lines]) + "\n")
    return path


def source(folder: Path, database: str, query: str, more: str = "") -> Path:
    path = folder / "source.toml"
    path.write_text(f'database = "{database}"\nquery = """{query}"""\n{more}')
    return path


def same(folder: Path, path: Path) -> None:
    expected, found = TABLE.load(csv(folder), "train"), TABLE.load(path, "train")
    assert found.x.equal(expected.x)
    assert found.y.equal(expected.y)
    assert found.subject is not None
    assert expected.subject is not None
    assert found.subject.equal(expected.subject)
    assert sum(len(chunk.rows) for chunk in chunks(TABLE, path, labels=True)) == 500


postgres = pytest.fixture(scope="module")(served)


@pytest.fixture
def lite(tmp_path: Path) -> Path:
    pytest.importorskip("adbc_driver_sqlite", reason="needs the extra tacit[sql]")
    with sqlite3.connect(tmp_path / "d.db") as database:
        database.execute("create table visits(who int, age real, seen text, city text, ill int)")
        database.executemany("insert into visits values (?, ?, ?, ?, ?)", MADE)
    database.close()
    return tmp_path


QUERY = "select who, age, seen, city, ill from visits order by who"


def test_a_query_of_sqlite_gives_the_rows_of_the_same_file(lite: Path) -> None:
    same(lite, source(lite, "sqlite:///d.db", QUERY))
    shutil.move(lite / "d.db", lite / "elsewhere.db")
    same(lite, source(lite, f"sqlite:///{lite / 'elsewhere.db'}", QUERY))


@pytest.mark.parametrize(
    ("database", "query", "said"),
    [
        ("sqlite:///none.db", QUERY, "expected an SQLite file at"),
        ("oracle://x", QUERY, "expected sqlite:///PATH or postgresql://"),
        ("sqlite:///d.db", "select hush from visits", "the database refused it"),
        ("sqlite:///d.db", "delete from visits", "the database refused it"),
        ("sqlite:///d.db", "select who from visits", "expected a column named 'age'"),
        ("postgresql://me:secret@127.0.0.1/x", QUERY, "expected no password in it"),
    ],
)
def test_what_a_database_refuses_is_one_line(
    lite: Path, database: str, query: str, said: str
) -> None:
    with pytest.raises(TaskError) as refused:
        TABLE.load(source(lite, database, query), "train")
    message = str(refused.value)
    assert said in message
    assert "\n" not in message
    assert "hush" not in message
    assert "secret" not in message
    with sqlite3.connect(lite / "d.db") as left:
        assert left.execute("select count(*) from visits").fetchone() == (500,)
    left.close()


@pytest.mark.slow
def test_a_query_of_postgresql_gives_the_rows_of_the_same_file(
    postgres: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, password = postgres
    values = ",".join(f"({w},{a},'{s}','{c}',{i})" for w, a, s, c, i in MADE)
    table = "create table visits(who int, age numeric(5,1), seen date, city text, ill boolean)"
    fill(
        address,
        password,
        f"drop table if exists visits; {table}; insert into visits values {values}",
    )
    (tmp_path / "pw").write_text(password + "\n")
    same(tmp_path, source(tmp_path, address, QUERY, 'password_file = "pw"\n'))
    monkeypatch.setenv("SITE_PASSWORD", password)
    same(tmp_path, source(tmp_path, address, QUERY, 'password_env = "SITE_PASSWORD"\n'))
    for query, said in (
        ("delete from visits returning *", "only reading is allowed"),
        ("select hush from visits", "a table, a column or the syntax is wrong"),
    ):
        with pytest.raises(TaskError, match=said) as refused:
            TABLE.load(source(tmp_path, address, query, 'password_file = "pw"\n'), "train")
        assert "hush" not in str(refused.value)
    (tmp_path / "pw").write_text("wrong\n")
    with pytest.raises(TaskError, match="query: expected rows") as refused:
        TABLE.load(source(tmp_path, address, QUERY, 'password_file = "pw"\n'), "train")
    assert "wrong" not in str(refused.value).replace("password are wrong", "")


@pytest.mark.slow
def test_a_million_rows_of_postgresql_are_streamed(
    postgres: tuple[str, str], tmp_path: Path
) -> None:
    address, password = postgres
    fill(
        address,
        password,
        "drop table if exists many; create table many as select i % 1000 as who, i % 90 as age, "
        "date '2020-06-01' as seen, case i % 2 when 0 then 'Oslo' else 'Bergen' end as city, "
        "i % 3 = 0 as ill from generate_series(1, 1000000) i",
    )
    (tmp_path / "pw").write_text(password + "\n")
    path = source(tmp_path, address, "select * from many", 'password_file = "pw"\n')
    counts = [len(chunk.rows) for chunk in chunks(TABLE, path, labels=True)]
    assert sum(counts) == 1_000_000
    assert max(counts) <= 65536


def kept(folder: Path, declared: str, values: list[object]) -> Path:
    """A database of ages as somebody kept them, and its query."""
    pytest.importorskip("adbc_driver_sqlite", reason="needs the extra tacit[sql]")
    with sqlite3.connect(folder / "k.db") as database:
        database.execute(
            f"create table kept(who int, age {declared}, seen date, city text, ill boolean)"
        )
        rows = [(i, age, "2020-03-04", "Oslo", i % 2 == 0) for i, age in enumerate(values)]
        database.executemany("insert into kept values (?, ?, ?, ?, ?)", rows)
    database.close()
    return source(folder, "sqlite:///k.db", "select * from kept order by who desc;")


MANY = 1500
"""More rows than the driver looks at before it says of which type a column is."""


@pytest.mark.parametrize(
    ("declared", "values", "left_out"),
    [
        ("decimal(9,2)", [63] * MANY + [40.25], 0),
        ("", [63.5] * MANY + [2**60], 0),
        ("", [None] * MANY + [40.25], MANY),
        ("text", [None] * MANY + ["40.25"], MANY),
        ("", [63] * MANY + ["NA", "hush", "40.25"], 2),
        ("boolean", [True, False] * MANY, 0),
        ("integer", [2**62, -(2**62), 2**53 + 1] * MANY, 0),
        ("numeric", ["63.50", 40, 12.25] * MANY, 0),
    ],
)
def test_columns_of_sqlite_hold_what_was_put_into_them(
    tmp_path: Path, declared: str, values: list[object], left_out: int
) -> None:
    path = kept(tmp_path, declared, values)
    found = TABLE.load(path, "all")
    assert found.reading is not None
    assert (found.reading.rows, found.reading.left_out) == (len(values), left_out)
    numbers = [float(v) for v in reversed(values) if v not in (None, "NA", "hush")]  # type: ignore[arg-type]
    expected = [min(max(v, 0), 100) / 50 - 1 for v in numbers]
    assert found.x[:, 0].tolist() == pytest.approx(expected)
    assert sum(len(chunk.rows) for chunk in chunks(TABLE, path, labels=True)) == len(expected)
    assert "hush" not in str(found.reading)


def test_bytes_in_a_column_of_sqlite_are_refused_by_its_name(tmp_path: Path) -> None:
    path = kept(tmp_path, "", [63] * MANY + [b"hush"])
    with pytest.raises(TaskError, match=r"column age: expected text, numbers or dates") as refused:
        TABLE.load(path, "train")
    assert "hush" not in str(refused.value)
