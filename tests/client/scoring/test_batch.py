"""Rows in, predictions out: nothing dropped unseen, nothing repeated, whatever the form."""

import csv
import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as parquet
import pytest
import torch

from client.commands.shared import opened
from client.data.input_files import chunks
from client.tasks.registry import task as find_task
from client.tasks.rows import TaskError
from tests.support.models import command, digits_csv, own_key, plan_for, release, shaken


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    release(folder, 5, key=own_key(folder))
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_of_a_file_agree_with_the_model(run: Path, tmp_path: Path) -> None:
    answer = command("predict", "--model", run, "--data", digits_csv(tmp_path / "d.csv"),
                     "--out", tmp_path / "p.csv")  # fmt: skip
    assert answer.code == 0
    found = read_csv(tmp_path / "p.csv")
    model = opened(str(run), None, None, quiet=True)
    rows = find_task("digits").load(None, "all")
    assert model.network is not None
    with torch.inference_mode():
        expected = torch.softmax(model.network(rows.x), 1)
    assert [int(row["row"]) for row in found] == list(range(1, len(rows) + 1))
    assert [row["prediction"] for row in found] == [str(c) for c in expected.argmax(1).tolist()]
    stated = np.array([float(row["probability"]) for row in found])
    assert np.abs(stated - expected.max(1).values.numpy()).max() < 1e-5


def test_every_form_of_the_same_rows_gives_the_same_predictions(run: Path, tmp_path: Path) -> None:
    source = digits_csv(tmp_path / "d.csv", 50)
    table = pacsv.read_csv(source)
    parquet.write_table(table, tmp_path / "d.parquet")
    with gzip.open(tmp_path / "d.csv.gz", "wb") as file:
        file.write(source.read_bytes())
    values = np.stack([table.column(name).to_numpy() for name in table.column_names[:-1]], 1)
    np.savez(tmp_path / "flat.npz", x=values)
    np.savez_compressed(
        tmp_path / "square.npz", x=values.reshape(-1, 8, 8).astype(np.uint8), y=[0] * 50
    )
    np.save(tmp_path / "d.npy", values.astype(np.float32))
    swapped = table.select(table.column_names[::-1])
    pacsv.write_csv(swapped, tmp_path / "swapped.csv")
    (tmp_path / "crlf.csv").write_bytes(
        b"\xef\xbb\xbf" + source.read_bytes().replace(b"\n", b"\r\n")
    )
    head = np.array([8, 8], dtype=">i4").tobytes()
    idx = b"\x00\x00\x08\x03" + (50).to_bytes(4, "big") + head + values.astype(np.uint8).tobytes()
    (tmp_path / "d-images-idx3-ubyte").write_bytes(idx)
    names = ["d.csv", "d.parquet", "d.csv.gz", "flat.npz", "square.npz", "d.npy", "swapped.csv"]
    answers = []
    for name in [*names, "crlf.csv", "d-images-idx3-ubyte"]:
        answer = command("predict", "--model", run, "--data", tmp_path / name, "--json")
        answers.append(answer.json["predictions"])
        assert answers[-1] == answers[0], name
    assert len(answers[0]) == 50


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_predictions_are_written_in_each_form_with_a_card_beside(
    run: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"p{suffix}"
    data = digits_csv(tmp_path / "d.csv", 20)
    answer = command("predict", "--model", run, "--data", data, "--out", out, "--json")
    assert answer.json["rows"] == 20
    if suffix == ".parquet":
        rows = parquet.read_table(out).to_pylist()
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        rows = [dict(row) for row in read_csv(out)]
    assert [int(row["row"]) for row in rows] == list(range(1, 21))
    assert set(rows[0]) == {"row", "prediction", "probability"}
    card = json.loads((tmp_path / f"p{suffix}.card.json").read_text())
    assert card["card"]["epsilon"] == 1.25
    assert card["model"] == answer.json["model"]


def test_rows_that_do_not_fit_are_named_by_line_and_field_and_never_by_value(
    run: Path, tmp_path: Path
) -> None:
    lines = digits_csv(tmp_path / "d.csv", 12).read_text().splitlines()
    lines[3] = lines[3].replace(lines[3].split(",")[1], "secret", 1)
    lines[5] = "1,2,3"
    lines.insert(8, "")
    lines[10] = ",".join([lines[10].split(",")[0], "topsecret", *lines[10].split(",")[2:]])
    (tmp_path / "bad.csv").write_text("\n".join(lines))
    out = tmp_path / "p.csv"
    answer = command("predict", "--model", run, "--data", tmp_path / "bad.csv", "--out", out)
    assert answer.code == 2
    assert not out.exists()
    assert not list(tmp_path.glob(".*.tmp"))
    for told in (
        "line 4, column pixel_0_0",
        "line 6: expected 65 values, got 3",
        "line 11, column pix",
    ):
        assert told in answer.err
    assert "secret" not in answer.err
    again = command(
        "predict", "--model", run, "--data", tmp_path / "bad.csv", "--out", out, "--skip-bad"
    )
    assert again.code == 0
    assert "9 rows predicted, 3 skipped" in again.err
    assert [int(row["row"]) for row in read_csv(out)] == [1, 2, 4, 6, 7, 8, 10, 11, 12]


def test_quoted_line_breaks_do_not_move_the_line_of_a_fault(run: Path, tmp_path: Path) -> None:
    lines = digits_csv(tmp_path / "d.csv", 4).read_text().splitlines()
    lines = [lines[0] + ",note", *(line + ',"two\nlines"' for line in lines[1:])]
    lines[3] = "x" + lines[3]
    (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n")
    answer = command("predict", "--model", run, "--data", tmp_path / "bad.csv")
    assert "line 6, column pixel_0_0" in answer.err


def test_bytes_that_are_no_text_spoil_only_their_own_row(run: Path, tmp_path: Path) -> None:
    content = digits_csv(tmp_path / "d.csv", 4).read_bytes().splitlines()
    content[2] = b"\xff\xfe" + content[2]
    (tmp_path / "bad.csv").write_bytes(b"\n".join(content))
    answer = command(
        "predict", "--model", run, "--data", tmp_path / "bad.csv", "--skip-bad", "--json"
    )
    assert [row["row"] for row in answer.json["predictions"]] == [1, 3, 4]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "header"),
        (b"a,b\n1,2\n", "expected a column named 'pixel_0_0'"),
        (b"pixel_0_0,pixel_0_1\n1,2\n", "expected a column named 'pixel_0_2'"),
        (b"pixel_0_0,pixel_0_0\n1,2\n", "twice"),
        (b"PK\x03\x04 no zip", "expected"),
        (b"\x93NUMPY\x01\x00", "expected"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x09", "expected"),
        (b"\x1f\x8b\x08\x00 no gzip", "expected"),
    ],
)
def test_a_file_of_another_kind_gives_one_line(
    run: Path, tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "d.csv").write_bytes(content)
    answer = command("predict", "--model", run, "--data", tmp_path / "d.csv")
    assert answer.code == 2
    assert told in answer.err
    assert answer.err.count("tacit-client: ") == 1


def test_a_missing_file_an_unknown_form_and_an_unknown_device_are_bad_input(
    run: Path, tmp_path: Path
) -> None:
    data = digits_csv(tmp_path / "d.csv", 3)
    (tmp_path / "empty").mkdir()
    for further in (
        ["--data", tmp_path / "none.csv"],
        ["--data", data, "--out", tmp_path / "p.xls"],
        ["--data", data, "--out", tmp_path / "no" / "such" / "p.csv"],
        ["--data", data, "--device", "cuda:99"],
        ["--data", tmp_path / "empty"],
    ):
        answer = command("predict", "--model", run, *further)
        assert answer.code == 2, further
        assert "expected" in answer.err or "cannot write to" in answer.err


def test_files_of_pickled_objects_are_refused(run: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], dtype=object))
    answer = command("predict", "--model", run, "--data", tmp_path / "d.npz")
    assert (answer.code, "expected numbers" in answer.err) == (2, True)


def test_a_folder_of_images_is_read_by_name(run: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    rows = find_task("digits").load(None, "all").x[:6].reshape(-1, 8, 8)
    for i, row in enumerate(rows):
        pixels = (row.numpy() * 8 + 5).round().astype(np.uint8)
        image.fromarray(pixels).save(tmp_path / f"{i}.png")
    answer = command("predict", "--model", run, "--data", tmp_path, "--json")
    data = digits_csv(tmp_path / "d.csv", 6)
    same = command("predict", "--model", run, "--data", data, "--json")
    assert answer.json["predictions"] == same.json["predictions"]


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.data.formats.records.BLOCK", 2**18)
    task = find_task("digits")
    header, *lines = digits_csv(tmp_path / "d.csv", 1000).read_text().splitlines()
    peaks = []
    for times in (10, 60):
        with (tmp_path / "big.csv").open("w") as file:
            file.write(header + "\n")
            for _ in range(times):
                file.write("\n".join(lines) + "\n")
        tracemalloc.start()
        rows = sum(len(chunk.rows) for chunk in chunks(task, tmp_path / "big.csv"))
        peaks.append(tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes())
        tracemalloc.stop()
        assert rows == 1000 * times
    assert peaks[1] < 1.3 * peaks[0] + 2**20


@pytest.mark.slow
def test_a_million_rows_predict_within_constant_memory(run: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    header, *lines = digits_csv(tmp_path / "d.csv", 1000, labels=False).read_text().splitlines()
    peaks = []
    for rows in (100, 1000):
        with (tmp_path / "big.csv").open("w") as file:
            file.write(header + "\n" + ("\n".join(lines) + "\n") * rows)
        code = (
            "from tests.support.models import command\n"
            f"a = command('predict', '--model', {str(run)!r}, '--data', "
            f"{str(tmp_path / 'big.csv')!r}, '--out', {str(tmp_path / 'p.csv')!r}, '--json')\n"
            "peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"
            "print(a.json['rows'], peak)"
        )
        root = Path(__file__).parents[3]
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
        )
        count, peak = (int(word) for word in done.stdout.split())
        assert count == 1000 * rows
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 100_000


def test_values_of_a_regression_come_in_the_labels_unit(tmp_path: Path) -> None:
    schema = (
        'kind = "regression"\nlabel = "price"\n'
        '[columns.size]\ntype = "number"\nmin = 0\nmax = 100\n'
        '[columns.price]\ntype = "number"\nmin = 0\nmax = 1000\n'
    )
    plan = plan_for("table", schema=schema)
    release(tmp_path / "run", plan=plan, network=shaken(find_task("table", schema)))
    (tmp_path / "d.csv").write_text("size,price\n10,100\n50,500\n99,990\n")
    out = tmp_path / "p.parquet"
    answer = command("predict", "--model", tmp_path / "run", "--data", tmp_path / "d.csv",
                     "--out", out)  # fmt: skip
    assert answer.code == 0, answer.err
    rows = parquet.read_table(out).to_pylist()
    assert all(row["probability"] is None and -500 < row["prediction"] < 1500 for row in rows)


def test_a_chunk_without_the_columns_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "d.parquet")
    with pytest.raises(TaskError, match="expected a column named"):
        list(chunks(find_task("digits"), tmp_path / "d.parquet"))


def test_nothing_is_on_stdout_where_a_later_row_does_not_fit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.data.formats.records.BLOCK", 4096)
    data = digits_csv(tmp_path / "d.csv", 300, labels=False)
    with data.open("a") as file:
        file.write("secret" + ",0" * 63 + "\n")
    for further in ([], ["--json"]):
        answer = command("predict", "--model", run, "--data", data, *further)
        assert (answer.code, answer.out) == (2, "")
        assert "d.csv: line 302, column pixel_0_0: expected a number" in answer.err
        assert "secret" not in answer.err


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_an_id_and_all_probabilities_are_carried_along(
    run: Path, tmp_path: Path, suffix: str
) -> None:
    header, *lines = digits_csv(tmp_path / "d.csv", 20).read_text().splitlines()
    ids = [f'p "{i}", x' for i in range(20)]
    quoted = ['"' + one.replace('"', '""') + '"' for one in ids]
    body = [f"{one},{line}" for one, line in zip(quoted, lines, strict=True)]
    (tmp_path / "d.csv").write_text("\n".join(["who," + header, *body]) + "\n")
    out = tmp_path / f"p{suffix}"
    answer = command("predict", "--model", run, "--data", tmp_path / "d.csv", "--out", out,
                     "--id", "who", "--probabilities")  # fmt: skip
    assert answer.code == 0, answer.err
    if suffix == ".parquet":
        rows = parquet.read_table(out).to_pylist()
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        rows = [dict(row) for row in read_csv(out)]
    assert [row["who"] for row in rows] == ids
    for row in rows:
        every = {name: float(row[f"p_{name}"]) for name in "0123456789"}
        assert sum(every.values()) == pytest.approx(1, abs=1e-5)
        assert max(every, key=lambda name: every[name]) == row["prediction"]
    told = command("predict", "--model", run, "--data", tmp_path / "d.csv", "--id", "nobody")
    assert (told.code, "expected a column named 'nobody'" in told.err) == (2, True)


def test_a_source_file_names_the_id_and_the_spelling(run: Path, tmp_path: Path) -> None:
    header, *lines = digits_csv(tmp_path / "d.csv", 5).read_text().splitlines()
    plain = command("predict", "--model", run, "--data", tmp_path / "d.csv", "--json")
    body = [f"p{i};{line.replace(',', ',0;')},0" for i, line in enumerate(lines)]
    text = "\n".join(["who;" + header.replace(",", ";").replace("pixel_0_0", "Ecke"), *body])
    (tmp_path / "d.csv").write_text(text)
    (tmp_path / "source.toml").write_text(
        'delimiter = ";"\ndecimal = ","\nid = "who"\n[rename]\nEcke = "pixel_0_0"\n'
    )
    answer = command("predict", "--model", run, "--data", tmp_path / "d.csv", "--json")
    assert answer.code == 0, answer.err
    same = [{k: v for k, v in row.items() if k != "who"} for row in answer.json["predictions"]]
    assert same == plain.json["predictions"]
    assert [row["who"] for row in answer.json["predictions"]] == [f"p{i}" for i in range(5)]
