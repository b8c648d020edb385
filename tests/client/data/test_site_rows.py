"""A site's rows: the owner's schema decides, they are read again only where something changed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.data.site_rows import SiteRows, Source
from client.site import SiteError
from client.tasks.registry import task
from privacy.contract.plan_file import schema_digest
from privacy.contract.policy import Policy
from tests.support.models import plan_for

SCHEMA = """
label = "ill"
subject = "patient"
[columns.age]
type = "number"
min = 0
max = 120
[columns.ill]
type = "category"
values = ["no", "yes"]
"""
POLICY = Policy(epsilon=1.0, delta=1e-5, records_per_subject=2)


class Desk:
    """Rows of a file, and what their owner was told."""

    def __init__(self, folder: Path, schema: str | None = SCHEMA) -> None:
        self.file = folder / "people.csv"
        lines = [f"p{i // 4},{20 + i},{'yes' if i % 3 else 'no'}" for i in range(80)]
        self.file.write_text("\n".join(["patient,age,ill", *lines]) + "\n")
        self.policy, self.told = POLICY, list[tuple[str, dict[str, Any]]]()
        self.rows = SiteRows(Source(self.file), schema, lambda: self.policy, self.tell)

    def tell(self, event: str, **facts: Any) -> None:
        self.told.append((event, facts))


def test_a_plan_has_to_say_what_the_owners_schema_says_and_no_more(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    same = "# the same, laid out otherwise\n" + SCHEMA.replace('["no", "yes"]', '[ "no","yes" ]')
    assert desk.rows.accepts(plan_for("table", schema=SCHEMA))
    assert desk.rows.accepts(plan_for("table", schema=same))
    for other in (
        SCHEMA.replace("120", "60"),
        SCHEMA.replace('["no", "yes"]', '["yes", "no"]'),
        SCHEMA.replace('subject = "patient"\n', ""),
        SCHEMA.replace("max = 120", "max = 120\nknots = [40]"),
    ):
        assert not desk.rows.accepts(plan_for("table", schema=other))
    assert not desk.rows.accepts(plan_for("adult"))
    assert desk.told[0] == (
        "schema_differs",
        desk.told[0][1] | {"registered": schema_digest(SCHEMA)},
    )


def test_without_a_registered_schema_no_coordinator_brings_one(tmp_path: Path) -> None:
    desk = Desk(tmp_path, None)
    assert not desk.rows.accepts(plan_for("table", schema=SCHEMA))
    assert desk.rows.accepts(plan_for("adult"))
    assert not desk.rows.accepts(plan_for("digits"))


def test_rows_are_read_again_where_the_cap_or_the_file_changed(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    learning = task("table", SCHEMA)
    first = desk.rows(learning)
    assert desk.rows(learning) is first
    desk.policy = replace(POLICY, records_per_subject=1)
    capped = desk.rows(learning)
    assert len(capped) == len(set(first.subject.tolist()))  # type: ignore[union-attr]
    with desk.file.open("a") as file:
        file.writelines(f"q{i},50,no\n" for i in range(20))
    assert len(desk.rows(learning)) > len(capped)


def test_too_few_rows_are_refused_where_the_owner_starts_and_never_in_a_round(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path)
    desk.policy = replace(POLICY, min_rows=1000)
    with pytest.raises(SiteError, match="min_rows = 1000"):
        desk.rows.check()
    assert len(desk.rows(task("table", SCHEMA))) > 0


def test_a_cap_without_a_subject_column_is_refused_where_the_client_starts(tmp_path: Path) -> None:
    desk = Desk(tmp_path, SCHEMA.replace('subject = "patient"\n', ""))
    with pytest.raises(SiteError, match="records_per_subject is 2, but the rows do not"):
        desk.rows.check()
    desk.policy = replace(POLICY, records_per_subject=1)
    desk.rows.check()
    Desk(tmp_path).rows.check()


def test_where_the_policy_demands_the_person_all_rows_of_a_person_are_used(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    capped = desk.rows(task("table", SCHEMA))
    desk.policy = replace(POLICY, unit="subject")
    whole = desk.rows(task("table", SCHEMA))
    assert whole.subject is not None
    _, counts = whole.subject.unique(return_counts=True)
    assert set(counts.tolist()) == {4}
    assert len(whole) == 2 * len(capped)
