"""What keeps a site out of rounds is found by itself; its next step cures it and harms nothing."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.__main__ import app as client_app
from client.agent import populations, received_plans
from client.agent.credentials import Enrolled
from client.agent.process import alone
from client.doctor.doctor import examine
from privacy.accounting.epsilon import spent
from privacy.commands.checks import Check
from privacy.contract.policy import load_policy
from privacy.ledger.ledger import Ledger
from server.registry import sites as members
from tests.client.agent.test_residents import SCHEMAS, plan
from tests.support.federation import coordinator, linked, now
from tests.support.patience import wait_for

ASKED = plan(SCHEMAS["heart"])
OTHER = plan(SCHEMAS["heart"], sigma=6.0)
FOREIGN = plan(SCHEMAS["lung"])


class Hospital:
    """A site that has approved one plan, with rows that fit it, and its coordinator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, sites = coordinator(folder, "north")
        self.site = sites["north"]
        self.data, self.ledger = folder / "heart.csv", self.site / "heart.jsonl"
        rows = "".join(f"{n % 100},{'yes' if n % 3 else 'no'}\n" for n in range(120))
        self.data.write_text(f"age,ill\n{rows}")
        populations.add(self.site, "heart", self.ledger, self.data, SCHEMAS["heart"])
        self.run("tacit-client policy new --epsilon 5 --delta 1e-4")
        received_plans.remember(self.site, ASKED)
        self.run(f"tacit-client approve {ASKED.digest}")
        self.server = ""

    def run(self, command: str) -> None:
        """A command as a person types it, in the site's folder."""
        words = shlex.split(command)
        if words[0] != "tacit-client":
            subprocess.run(words, check=True)
            return
        more = [] if "--dir" in words else ["--dir", str(self.site)]
        done = CliRunner().invoke(client_app, [*words[1:], *more])
        assert done.exit_code == 0, (command, done.output, done.exception)

    def wrong(self) -> list[Check]:
        """What is not fine, while its client runs."""
        with alone(self.site):
            checks = examine(self.site, self.server, "", None, "none")
        kernel = "closed processes"  # of this machine, not of its site
        return [one for one in checks if one.state != "fine" and one.what != kernel]


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    found = Hospital(tmp_path)
    with linked(found.home) as grid:
        found.server = f"127.0.0.1:{grid.address[1]}"
        yield found


def loose_key(h: Hospital) -> None:
    Enrolled(h.site).key.chmod(0o640)


def paused(h: Hospital) -> None:
    h.run("tacit-client pause")


def waiting(h: Hospital) -> None:
    received_plans.remember(h.site, OTHER)


def data_moved(h: Hospital) -> None:
    shutil.move(h.data, h.folder / "new.csv")


def ledger_moved(h: Hospital) -> None:
    (h.folder / "disk").mkdir()
    for path in h.site.glob("heart.jsonl*"):
        shutil.move(path, h.folder / "disk" / path.name)


def foreign_file(h: Hospital) -> None:
    os.chown(h.site / "policy.toml", 12345, 12345)


def foreign_plan(h: Hospital) -> None:
    received_plans.remember(h.site, FOREIGN)
    h.run(f"tacit-client approve {FOREIGN.digest}")


def no_policy(h: Hospital) -> None:
    (h.site / "policy.toml").unlink()
    received_plans.remember(h.site, ASKED)


def old_copy(h: Hospital) -> None:
    ledger = Ledger.open(h.ledger)
    copies = {path: path.read_bytes() for path in h.site.glob("heart.jsonl")}
    for number in (1, 2):  # of one alone the anchor would know enough to complete the copy
        event = ASKED.events_of_round("north")
        ledger.spend_all(event, None, run="r", round=number, plan=ASKED.digest)
    for path, content in copies.items():
        path.write_bytes(content)


CASES: dict[str, tuple[Callable[[Hospital], None], str, str]] = {
    "keys that others can read": (loose_key, "keys", "{then}"),
    "paused": (paused, "paused", "{then}"),
    "a plan that waits": (waiting, "plan", "{before:, or}"),
    "rows that moved": (data_moved, "data", "{then}"),
    "a ledger that moved": (ledger_moved, "ledger", "{after:elsewhere:}"),
    "a plan for no data here": (foreign_plan, "plan", "{after:else}"),
    "a file of another user": (foreign_file, "owner", "{then}"),
}


def command_of(check: Check, how: str, h: Hospital) -> str:
    """The command that the next step names, with its placeholders filled in."""
    text = check.next_step
    if how.startswith("{before"):
        text = text.split(how[8:-1])[0]
    if how.startswith("{after"):
        text = text.split(how[7:-1])[1].split(";")[0]
    text = text.replace("--data PATH", f"--data {h.folder / 'new.csv'}")
    return text.replace("--ledger PATH", f"--ledger {h.folder / 'disk' / 'heart.jsonl'}").strip()


def test_a_site_that_can_take_part_has_nothing_to_mend(hospital: Hospital) -> None:
    assert hospital.wrong() == []


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_found_by_itself_and_its_next_step_cures_it_and_harms_nothing(
    hospital: Hospital, name: str
) -> None:
    plant, what, how = CASES[name]
    if plant is foreign_file and os.getuid() != 0:
        pytest.skip("only root gives files away")
    approved = load_policy(hospital.site / "policy.toml").plans
    plant(hospital)
    (found,) = hospital.wrong()
    assert found.what == what, found
    hospital.run(command_of(found, how, hospital))
    assert hospital.wrong() == []
    assert set(approved) <= set(load_policy(hospital.site / "policy.toml").plans)
    (people,) = populations.known(hospital.site)
    assert Ledger.open(people.ledger).trusted()


def test_a_missing_policy_is_written_anew_and_the_plan_then_waits(hospital: Hospital) -> None:
    no_policy(hospital)
    (found,) = hospital.wrong()
    hospital.run(found.next_step)
    assert [one.what for one in hospital.wrong()] == ["plan"]


@pytest.mark.parametrize("text", ["epsilon = -1\n", "not toml", "epsilon = 1\nunheard = 2\n"])
def test_a_damaged_policy_is_to_be_edited_never_replaced(hospital: Hospital, text: str) -> None:
    (hospital.site / "policy.toml").write_text(text)
    (found,) = hospital.wrong()
    assert (found.what, found.state) == ("policy", "FAULT")
    assert found.next_step.startswith(f"edit {hospital.site / 'policy.toml'}")


def test_an_older_copy_of_a_ledger_is_named_with_both_ways_out(hospital: Hospital) -> None:
    old_copy(hospital)
    (found,) = [one for one in hospital.wrong() if one.what == "ledger"]
    assert found.state == "FAULT"
    assert "ledger recover" in found.next_step and "ledger acknowledge" in found.next_step


@pytest.mark.parametrize(("rounds", "state"), [(0, "FAULT"), (1, "warn"), (3, "")])
def test_how_many_rounds_the_budget_holds_is_told(
    hospital: Hospital, rounds: int, state: str
) -> None:
    events = [replace(event, count=rounds) for event in ASKED.events_of_round("north")]
    epsilon = spent(events, 1e-4) + 1e-6 if rounds else 1e-6
    policy = hospital.site / "policy.toml"
    policy.write_text(policy.read_text().replace("epsilon = 5.0", f"epsilon = {epsilon}"))
    found = [one for one in hospital.wrong() if one.what == "budget"]
    assert [one.state for one in found] == ([state] if state else [])
    if state:
        assert f"{rounds} of {ASKED.rounds} rounds" in found[0].finding


def test_rounds_that_were_played_are_not_asked_of_the_budget_again(hospital: Hospital) -> None:
    ledger = Ledger.open(hospital.ledger)
    for number in (1, 2):
        event = ASKED.events_of_round("north")
        ledger.spend_all(event, None, run="r", round=number, plan=ASKED.digest)
    with alone(hospital.site):
        checks = examine(hospital.site, hospital.server, "", None, "none")
    (found,) = [one for one in checks if one.what == "budget"]
    assert f"of {ASKED.rounds - 2} rounds" in found.finding


@pytest.mark.parametrize(
    ("content", "state"), [("age;ill\n1;no\n", "FAULT"), ("age,ill\n" + "old,no\n" * 50, "warn")]
)
def test_rows_of_another_form_are_found(hospital: Hospital, content: str, state: str) -> None:
    hospital.data.write_text(content)
    (found,) = hospital.wrong()
    assert (found.what, found.state) == ("rows", state)
    assert found.next_step.startswith("tacit-client data check --population heart")


def test_a_client_that_does_not_run_is_a_warning(hospital: Hospital) -> None:
    checks = examine(hospital.site, hospital.server, "", None, "none")
    assert [one.what for one in checks if one.state != "fine"] == ["process"]


def test_a_revoked_site_gets_new_keys_in_its_folder_and_is_well_again(hospital: Hospital) -> None:
    members.revoke(hospital.home, "north", now())
    assert wait_for(hospital.wrong), "the coordinator reads its list again within a second"
    (found,) = hospital.wrong()
    assert found.finding == "revoked"
    hospital.run(found.next_step.split(", then")[0])
    _, bundle = members.sign(hospital.home, hospital.site / "north.csr", now())
    hospital.run(f"tacit-client join {bundle}")
    assert wait_for(lambda: hospital.wrong() == [])
