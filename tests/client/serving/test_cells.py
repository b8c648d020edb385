"""The local service reads a cell as a file is read, and refuses what has two meanings."""

import json
from pathlib import Path

import pytest

from client.data.input_files import chunks
from client.serving.request import RequestError, encoder
from client.tasks.registry import task

TABLE = task(
    "table",
    """
label = "ill"
[columns.age]
type = "number"
min = 0
max = 100
[columns.city]
type = "category"
values = ["Oslo", "Bergen", "Ålesund"]
[columns.ill]
type = "category"
values = ["no", "yes"]
""",
)
CELLS = (
    *("41.8125", " 41.8125 ", "+4.18125e1", ".5", "5.", "-0", "007", "1e300", "-1e300", "true"),
    *("1e400", "-1e400", "1e-400", "nan", "NaN", "inf", "", "NA", "?", "1,5", "1 000", "1_7"),
    *("0x11", "\u0661\u0667", "\uff11\uff17", "\u22125", "4d1", "1.2.3", "41%", "2020-01-01"),
    *("\u200b5", "\u00a041\u00a0", "9" * 400),
)
PLACES = (
    *("Oslo", " Oslo ", "A\u030alesund", "Os\u00adlo", "oslo"),
    *("", "NA", "Qux7", "\u041eslo", "1"),
)


@pytest.mark.parametrize("place", PLACES)
def test_the_service_reads_a_cell_as_a_file_does(place: str, tmp_path: Path) -> None:
    encode = encoder(TABLE, 10)
    path = tmp_path / "t.csv"
    lines = ["age,city,ill", *(f'"{cell}","{place}",yes' for cell in CELLS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    fitting: dict[int, list[float]] = {}
    for chunk in chunks(TABLE, path):
        fitting |= dict(zip(chunk.rows.tolist(), chunk.x.tolist(), strict=True))
    for number, cell in enumerate(CELLS, 1):
        for row in ([cell, place], {"city": place, "age": cell}):
            body = json.dumps({"row": row}).encode()
            if number in fitting:
                assert encode(body, "").x.tolist() == [fitting[number]], cell
                continue
            with pytest.raises(RequestError) as refused:
                encode(body, "")
            assert refused.value.status == 422
            assert not cell.strip() or cell not in str(refused.value)


@pytest.mark.parametrize(
    "body",
    [
        '{"row": {"age": 1, "age": 2, "city": "Oslo"}}',
        '{"row": [1, "Oslo"], "row": [2, "Oslo"]}',
        '{"row": [NaN, "Oslo"]}',
        '{"row": [1e400, "Oslo"]}',
        '{"row": [1, ["Oslo"]]}',
        '{"row": [1, "Os\u0000lo"]}',
        '{"rows": []}',
    ],
)
def test_the_service_refuses_what_has_two_meanings(body: str) -> None:
    with pytest.raises(RequestError) as refused:
        encoder(TABLE, 10)(body.encode(), "")
    assert refused.value.status in (400, 422)
