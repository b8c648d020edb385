"""`init` never touches a folder that holds any of its files; a restored coordinator serves on."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from client.agent.credentials import Enrolled, EnrolmentError, enroll, join
from privacy.archive import backup, restore
from server.registry import sites as members
from server.registry.sites import Home, MembersError
from tests.support.federation import answers, ask, coordinator, linked, now, running
from tests.support.patience import patience, wait_for

FILES = (
    "ca.pem",
    "ca.key",
    "server.pem",
    "server.key",
    "signing.key",
    "sites.json",
    "heads",
    "runs",
)


@pytest.mark.parametrize("count", range(1, len(FILES) + 1))
def test_init_on_any_subset_of_a_coordinators_files_changes_no_byte(
    tmp_path: Path, count: int
) -> None:
    home, _ = coordinator(tmp_path, "north")
    (home / "heads").mkdir(exist_ok=True)
    (home / "runs").mkdir(exist_ok=True)
    for number, subset in enumerate(itertools.combinations(FILES, count)):
        folder = tmp_path / f"part-{number}"
        folder.mkdir()
        for name in subset:
            source = home / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        with pytest.raises(MembersError, match="nothing was changed"):
            members.create(folder, ["127.0.0.1"], now())
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_enroll_never_replaces_keys(tmp_path: Path) -> None:
    enroll(tmp_path / "site", "north")
    key = (tmp_path / "site" / "site.key").read_bytes()
    (tmp_path / "site" / "site.json").unlink()
    with pytest.raises(EnrolmentError, match="nothing was changed"):
        enroll(tmp_path / "site", "north")
    assert (tmp_path / "site" / "site.key").read_bytes() == key


def test_sites_connect_to_a_restored_coordinator_without_a_new_bundle(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "north")
    backup(home, tmp_path / "backup.tar.gz", kind="coordinator")
    shutil.rmtree(home)
    restore(tmp_path / "backup.tar.gz", tmp_path / "elsewhere", kind="coordinator")
    assert list(Home(tmp_path / "elsewhere").check().members().sites) == ["north"]
    with linked(tmp_path / "elsewhere") as grid, running(sites["north"], grid.address):
        assert wait_for(lambda: grid.names())
        found = answers(grid, ask(grid, np.zeros(2, np.float32)), patience(20))
        assert set(found) == {"north"}


def test_a_bundle_of_another_authority_than_expected_is_not_taken_in(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path)
    csr, key = enroll(tmp_path / "north", "north")
    _, bundle = members.sign(home, csr, now(), expect=key)
    before = {p: p.read_bytes() for p in (tmp_path / "north").iterdir()}
    with pytest.raises(EnrolmentError, match="its authority is"):
        join(tmp_path / "north", bundle, now(), expect="ab" * 32)
    after = {p: p.read_bytes() for p in (tmp_path / "north").iterdir() if p != bundle}
    assert after == {p: c for p, c in before.items() if p != bundle}
    right = members.Certificate.read(Home(home).ca.read_bytes()).fingerprint
    spaced = " ".join(right[i : i + 4] for i in range(0, len(right), 4)).upper()
    join(tmp_path / "north", bundle, now(), expect=spaced)
    assert Enrolled(tmp_path / "north").joined().name == "north"
