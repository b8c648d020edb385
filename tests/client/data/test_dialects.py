"""Random tables, written by pandas and polars in random dialects: declared, the same rows back."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.tasks.registry import task
from client.tasks.rows import TaskError

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")

CITIES = ["Oslo", "Tromsø", 'New "York"', "a,b", "x;y", "São Paulo"]
SCHEMA = f"""
label = "ill"
[columns.age]
type = "number"
min = -2000
max = 2000
missing = "indicator"
[columns.city]
type = "category"
values = {CITIES!r}
[columns.ill]
type = "category"
values = [false, true]
"""
TABLE = task("table", SCHEMA)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=12)
ROW = st.tuples(
    st.none() | st.decimals(-1999, 1999, places=2).map(float),
    st.sampled_from(CITIES),
    st.booleans(),
    TEXT,
)


def expected(rows: list[tuple[Any, ...]]) -> list[list[float]]:
    """Features by hand: the scaled age and its indicator, the city, the label."""
    found = []
    for age, city, ill, _ in rows:
        number = [0.0, 1.0] if age is None else [age / 2000, 0.0]
        found.append([*number, *(float(city == one) for one in CITIES), 0.0, float(ill)])
    return found


def read(path: Path) -> list[list[float]]:
    rows = TABLE.load(path, "all")
    return [[*x, float(y)] for x, y in zip(rows.x.tolist(), rows.y.tolist(), strict=True)]


@pytest.mark.long
@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_declared_dialect_gives_the_same_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("dialect")
    rows = data.draw(st.lists(ROW, min_size=1, max_size=12))
    delimiter = data.draw(st.sampled_from([",", ";", "\t", "|"]))
    decimal = data.draw(st.sampled_from([".", ","])) if delimiter != "," else "."
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]))
    code = data.draw(st.sampled_from(["", "-999", "n/a"]))
    quote = data.draw(st.sampled_from(['"', "'"]))
    frame = {
        "alter": [row[0] for row in rows],
        "city": [row[1] for row in rows],
        "ill": [row[2] for row in rows],
        "note": [row[3] for row in rows],
    }
    if data.draw(st.booleans()):
        text = pandas.DataFrame(frame).to_csv(
            sep=delimiter,
            decimal=decimal,
            na_rep=code,
            quotechar=quote,
            quoting=data.draw(st.sampled_from([0, 1, 2])),
            lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])),
            index=data.draw(st.booleans()),
        )
    else:
        sink = io.BytesIO()
        polars.DataFrame(frame, schema_overrides={"alter": polars.Float64}).write_csv(
            sink,
            separator=delimiter,
            quote_char=quote,
            null_value=code,
            decimal_comma=decimal == ",",
            quote_style=data.draw(st.sampled_from(["necessary", "always", "non_numeric"])),
        )
        text = sink.getvalue().decode()
    try:
        content = text.encode(encoding)
    except UnicodeEncodeError:
        content, encoding = text.encode(), "utf-8"
    (folder / "d.csv").write_bytes(content)
    said = {"delimiter": delimiter, "decimal": decimal, "encoding": encoding, "quote": quote}
    lines = [f"{key} = {json.dumps(value)}" for key, value in said.items()]
    lines += [f"missing = {json.dumps([code])}"] if code else []
    (folder / "source.toml").write_text("\n".join([*lines, "[rename]", 'alter = "age"', ""]))
    try:
        found = read(folder / "d.csv")
    except TaskError as error:
        assert "\n" not in str(error)
        assert "multiline" in str(error) or "quote" in str(error)
        return
    wanted = expected(rows)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
