"""Encoded copies of a site's rows: for exactly these contents, the owner's alone, and bounded."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from client.__main__ import app
from client.agent import populations
from client.data.cache import Cache
from client.data.contents import SETTLED, Contents
from client.data.site_rows import SiteRows, Source
from client.tasks.registry import task
from client.tasks.rows import Rows, cap
from privacy.archive import backup
from privacy.contract.policy import Policy
from tests.client.data.test_site_rows import SCHEMA

TASK = task("table", SCHEMA)
POLICY = Policy(epsilon=1.0, delta=1e-5, records_per_subject=2)


def write(path: Path, rows: int = 80, age: int = 20) -> None:
    lines = [f"p{i},{age},{'yes' if i % 3 else 'no'}" for i in range(rows)]
    path.write_text("\n".join(["patient,age,ill", *lines]) + "\n")


class Desk:
    """A site's rows with copies of any size; each look is a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.file, self.folder = folder / "people.csv", folder / "cache"
        write(self.file)
        self.reads = 0

    def rows(self, policy: Policy = POLICY) -> Rows:
        desk = self

        class Counted(Source):
            def rows(self, learning: Any, records: int) -> Rows:
                desk.reads += 1
                return super().rows(learning, records)

        cache = Cache(self.folder, least=0)
        return SiteRows(Counted(self.file), SCHEMA, lambda: policy, lambda *_, **__: None, cache)(
            TASK
        )


def same(one: Rows, other: Rows) -> bool:
    assert one.subject is not None
    assert other.subject is not None
    return (
        torch.equal(one.x, other.x)
        and torch.equal(one.y, other.y)
        and torch.equal(one.subject, other.subject)
        and str(one.reading) == str(other.reading)
    )


def test_a_second_process_maps_what_the_first_has_read(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    first, second = desk.rows(), desk.rows()
    assert desk.reads == 1
    assert same(first, second)
    assert same(second, cap(TASK.load(desk.file, "train"), 2))
    assert second.x.index_select(0, torch.tensor([3, 1])).equal(first.x[[3, 1]])
    for file in desk.folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(desk.folder.stat().st_mode) == 0o700


def test_contents_count_and_neither_times_nor_sizes_do(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.rows()
    before = desk.file.stat()
    write(desk.file, age=21)
    os.utime(desk.file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert desk.file.stat().st_size == before.st_size
    assert desk.rows().x.unique().tolist() == pytest.approx([2 * 21 / 120 - 1])
    assert desk.reads == 2
    os.utime(desk.file)
    desk.rows()
    assert desk.reads == 2
    write(desk.file)
    desk.rows()
    assert desk.reads == 2  # the contents that it had at first


def test_the_source_toml_and_the_cap_count(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.rows()
    (tmp_path / "source.toml").write_text('missing = ["20"]\n[columns.age]\nvalues = {20 = "30"}\n')
    assert len(desk.rows()) == 0  # none of them fits any more
    (tmp_path / "source.toml").unlink()
    desk.rows(Policy(epsilon=1.0, delta=1e-5, records_per_subject=1))
    assert desk.reads == 3


@pytest.mark.parametrize("damage", ["cut", "gone", "card", "other"])
def test_a_damaged_copy_is_read_anew(tmp_path: Path, damage: str) -> None:
    desk = Desk(tmp_path)
    desk.rows()
    first = cap(TASK.load(desk.file, "train"), 2)
    x = next(desk.folder.glob("*.x.npy"))
    if damage == "cut":
        os.truncate(x, x.stat().st_size - 1)
    elif damage == "gone":
        x.unlink()
    elif damage == "card":
        next(desk.folder.glob("*.json")).write_text("[1")
    else:
        next(desk.folder.glob("*.y.npy")).replace(x)
    assert same(desk.rows(), first)
    assert desk.reads == 2


def test_the_oldest_copies_go_and_what_a_kill_left_goes_too(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.folder.mkdir(mode=0o700)
    (desk.folder / "abc.x.npy").write_bytes(b"half")
    for age in range(20, 28):
        write(desk.file, age=age)
        desk.rows()
    assert len(list(desk.folder.glob("*.json"))) == 4
    assert not (desk.folder / "abc.x.npy").exists()
    size = sum(file.stat().st_size for file in desk.folder.iterdir())
    small = Cache(desk.folder, least=0, most=size // 3)
    small.rows(("another",), lambda: TASK.load(desk.file, "train"), lambda: True)
    assert len(list(desk.folder.glob("*.json"))) == 1


def test_rows_that_changed_while_they_were_read_are_not_kept(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    cache = Cache(desk.folder, least=0)
    rows = cache.rows(("key",), lambda: TASK.load(desk.file, "train"), lambda: False)
    assert len(rows) > 0
    assert not desk.folder.exists()


def test_a_full_or_read_only_place_costs_the_copy_and_nothing_else(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.folder.write_text("no folder")
    assert len(desk.rows()) > 0


def test_a_file_is_digested_again_only_where_it_may_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "people.csv"
    write(file)
    contents = Contents(file)
    first = contents.digest()
    assert contents.known == {}  # too fresh: its times prove nothing
    monkeypatch.setattr("client.data.contents.SETTLED", -SETTLED)
    assert contents.digest() == first
    assert set(contents.known) == {file}
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", None)
        assert contents.digest() == first
    write(file, age=21)
    assert contents.digest() != first


def test_removing_the_data_removes_the_copies_and_keeps_the_ledger(tmp_path: Path) -> None:
    site = tmp_path / "site"
    write(tmp_path / "people.csv")
    populations.add(site, "people", tmp_path / "l.jsonl", tmp_path / "people.csv", SCHEMA)
    cache = Cache(populations.cache_folder(site, "people"), least=0)
    cache.rows(("key",), lambda: TASK.load(tmp_path / "people.csv", "train"), lambda: True)
    done = CliRunner().invoke(app, ["data", "remove", "people", "--dir", str(site)])
    assert done.exit_code == 0, done.output
    assert "bytes of encoded copies removed" in done.output
    assert not cache.folder.exists()
    assert (tmp_path / "l.jsonl").exists()
    assert (tmp_path / "people.csv").exists()
    one = populations.choose(site, name="people")
    assert one.data is None
    assert one.schema is not None


def test_a_backup_leaves_the_copies_out(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "cache" / "people").mkdir(parents=True)
    (site / "cache" / "people" / "abc.x.npy").write_bytes(b"rows")
    (site / "policy.toml").write_text("x = 1")
    made = backup(site, tmp_path / "b.tar.gz", kind="site", without=(populations.CACHE,))
    assert [one["name"] for one in made["files"]] == ["policy.toml"]
