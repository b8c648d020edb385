"""One budget for the same people: rows that are another population's are refused."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from client.agent import populations
from client.agent.populations import PopulationError
from client.agent.process import ledger
from client.commands import ledgers
from client.data.site_rows import Source

app = typer.Typer()
ledgers.register(app)


class Desk:
    """A site's folder and its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str) -> None:
        done = CliRunner().invoke(app, [*arguments, "--dir", str(self.folder)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output

    def add(self, name: str, data: Path, *options: str) -> None:
        path = self.folder / "ledgers" / f"{name}.jsonl"
        self("data", "add", name, "--ledger", str(path), "--data", str(data), *options)


@pytest.fixture
def people(tmp_path: Path) -> tuple[Desk, Path]:
    """A desk with a population whose rows lie in a folder."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.csv").write_text("age,ill\n30,no\n60,yes\n")
    desk = Desk(tmp_path / "site")
    desk.folder.mkdir()
    desk.add("people", data)
    return desk, data


@pytest.mark.parametrize("how", ["the same", "within", "around", "a copy", "a link", "as it was"])
def test_the_same_rows_under_another_name_have_no_second_budget(
    people: tuple[Desk, Path], tmp_path: Path, how: str
) -> None:
    desk, data = people
    copy = tmp_path / "elsewhere"
    if how in ("a copy", "as it was"):
        copy.mkdir()
        (copy / "rows.csv").write_bytes((data / "rows.csv").read_bytes())
    if how == "as it was":  # the first population's rows have changed since
        (data / "rows.csv").write_text("age,ill\n31,no\n")
        desk.add("people", data)
    if how == "a link":
        copy.symlink_to(data)
    place = {"the same": data, "within": data / "rows.csv", "around": tmp_path}.get(how, copy)
    with pytest.raises(PopulationError, match=r"these are the rows of people.*--separate-people"):
        desk.add("others", place)
    assert [one.name for one in populations.known(desk.folder)] == ["people"]
    assert not (desk.folder / "ledgers" / "others.jsonl").exists()
    desk.add("others", place, "--separate-people")
    assert populations.known(desk.folder)[1].separate == ("people",)
    desk.add("others", place)  # said once
    desk.add("people", data)


def test_rows_that_become_another_populations_are_refused_where_the_client_starts(
    people: tuple[Desk, Path], tmp_path: Path
) -> None:
    desk, data = people
    mine = tmp_path / "mine.csv"
    mine.write_text("age,ill\n44,no\n")
    desk.add("others", mine)
    mine.write_bytes((data / "rows.csv").read_bytes())
    digest = populations.fingerprint(mine)
    with pytest.raises(PopulationError, match="these are the rows of people"):
        ledger(desk.folder, Source(tmp_path / "data" / "rows.csv"), "others")
    file = tmp_path / "people.csv"
    file.write_bytes(mine.read_bytes())
    desk("data", "move", "people", "--data", str(file))
    desk.add("people", file)
    assert digest == populations.fingerprint(file)
    with pytest.raises(PopulationError, match="these are the rows of people"):
        ledger(desk.folder, Source(mine), "others")
    with pytest.raises(PopulationError, match="these are the rows of people"):
        desk("data", "move", "others", "--data", str(file))


def test_folders_without_files_are_nobodys(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        desk.add(name, tmp_path / name)
    assert len(populations.known(tmp_path)) == 2
