"""A site's folder leaves as one archive and comes back as it was, and its log says so."""

from pathlib import Path

from typer.testing import CliRunner

from client.__main__ import app
from tests.support.federation import coordinator


def ran(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_a_sites_folder_comes_back_from_its_backup(tmp_path: Path) -> None:
    north = coordinator(tmp_path, "north")[1]["north"]
    archive = tmp_path / "north.backup"
    told = ran("backup", archive, "--dir", north)
    assert f"{archive}: north, " in told and "it holds private keys" in told
    again = tmp_path / "again"
    restored = ran("restore", archive, "--dir", again)
    assert "files restored" in restored and "tacit-client ledger recover" in restored
    assert (again / "site.json").read_bytes() == (north / "site.json").read_bytes()
    log = ran("audit-log", "--dir", again)
    assert "backup" in log and "restore" in log


def test_a_backup_of_no_sites_folder_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["backup", str(tmp_path / "x"), "--dir", str(tmp_path)])
    assert isinstance(result.exception, ValueError)
    assert not (tmp_path / "x").exists()
