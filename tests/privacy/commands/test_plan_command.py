"""`tacit-privacy plan` says what a person has, and what a plan says and does not do."""

import json
from pathlib import Path

from typer.testing import CliRunner

from privacy.__main__ import app
from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.rounding import spent_text

SCHEMA = 'label = "sick"\nsubject = "person"\n[columns.sick]\ntype = "category"\n'
PLAN = """
task = "table"
schema = "schema.toml"
sites = 1
rounds = 4
rate = 1.0
rows = 100
lr = 1.0
clip = 1.0
sigma = 20.0
delta = 1e-5
"""
POLICY = 'epsilon = 20.0\ndelta = 1e-5\napprove = "within-limits"\nrecords_per_subject = 3\n'
EVENTS = [Event("record", 20.0, 1.0, 1, 4)]


def files(folder: Path, more: str = "") -> tuple[str, str]:
    (folder / "schema.toml").write_text(SCHEMA)
    (folder / "plan.toml").write_text(PLAN + more)
    (folder / "policy.toml").write_text(POLICY)
    return str(folder / "plan.toml"), str(folder / "policy.toml")


def test_with_a_cap_the_forecast_says_the_epsilon_of_a_person(tmp_path: Path) -> None:
    plan, policy = files(tmp_path)
    person = spent(EVENTS, 1e-5, records=3)
    assert person > 2 * spent(EVENTS, 1e-5)
    shown = CliRunner().invoke(app, ["plan", plan, "--policy", policy])
    text = f"epsilon of a person with 3 records, after all rounds: {spent_text(person)}"
    assert text in shown.stdout
    found = json.loads(CliRunner().invoke(app, ["plan", plan, "--policy", policy, "--json"]).stdout)
    assert found["sites"]["site-0"]["epsilon_person"] == person
    assert found["sites"]["site-0"]["epsilon"] == spent(EVENTS, 1e-5)


def test_without_a_cap_a_schema_with_subjects_is_pointed_out(tmp_path: Path) -> None:
    plan, _ = files(tmp_path)
    shown = CliRunner().invoke(app, ["plan", plan])
    assert "these figures are for one record, and the schema names subjects" in shown.stdout
    (tmp_path / "schema.toml").write_text(SCHEMA.replace('subject = "person"\n', ""))
    assert "for one record" not in CliRunner().invoke(app, ["plan", plan]).stdout


def test_where_people_are_the_unit_the_figures_are_said_to_be_a_persons(tmp_path: Path) -> None:
    plan, _ = files(tmp_path)
    text = PLAN.replace("rows = 100", 'subjects = 100\nunit = "subject"')
    (tmp_path / "plan.toml").write_text(text)
    shown = CliRunner().invoke(app, ["plan", plan])
    assert "these figures are for one person, with all their rows at a site" in shown.stdout


def test_warnings_go_to_stderr_and_leave_the_json_alone(tmp_path: Path) -> None:
    plan, _ = files(tmp_path, 'optimizer = "adam"\n')
    shown = CliRunner().invoke(app, ["plan", plan, "--json"])
    assert "with steps = 1 it is sign descent" in shown.stderr
    assert json.loads(shown.stdout)["rounds"] == 4
