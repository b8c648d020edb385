"""The drafts for GDPR articles 35 and 30 hold what the report knows, and mark what it does not."""

import json
from pathlib import Path
from typing import Any

from privacy.report.bundle.data_protection import (
    FILL_IN,
    columns_of,
    impact_assessment,
    processing_record,
    text,
)
from privacy.report.report import build
from privacy.report.sources import read
from tests.support.run_folders import edited, run_folder

SCHEMA = 'label = "ill"\n[columns.age]\nlow = 0\n[columns."<b>weight"]\nlow = 0\n'


def content(folder: Path) -> dict[str, Any]:
    report = build([read(folder)], {"at": "2026-01-02T03:04:05"})
    return json.loads(report.to_json())


def test_an_assessment_has_the_articles_four_parts_and_the_reports_figures(tmp_path: Path) -> None:
    known = content(run_folder(tmp_path / "run"))
    draft = impact_assessment(known)
    for part in ("35(7)(a)", "35(7)(b)", "35(7)(c)", "35(7)(d)", "35(2)"):
        assert part in draft
    assert f"epsilon {known['plain']['epsilon']:.4g}" in draft
    assert known["runs"][0]["identity"]["purpose"].rstrip(".") in draft.replace("\\", "")
    assert draft.count(FILL_IN) >= 6
    assert "not sound" not in draft


def test_a_record_has_every_item_of_the_article(tmp_path: Path) -> None:
    draft = processing_record(content(run_folder(tmp_path / "run")))
    for letter in "abcdefg":
        assert f"({letter})" in draft
    assert "status and refusal code: to coordinator" in draft


def test_the_schemas_columns_are_the_categories_of_data(tmp_path: Path) -> None:
    known = content(run_folder(tmp_path / "run"))
    known["runs"][0]["plan"] = json.dumps({"schema": SCHEMA})
    assert columns_of(known["runs"][0]) == ["age", "<b>weight", "ill"]
    assert "age, \\<b\\>weight, ill" in processing_record(known)
    for broken in ("{", json.dumps({"schema": "= ="}), "null", json.dumps({"schema": 3})):
        known["runs"][0]["plan"] = broken
        assert FILL_IN in processing_record(known)


def test_an_unsound_report_is_called_so_in_its_drafts(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    edited(folder / "history.jsonl", '"delta": 0.0001', '"delta": 0.1')
    assert "**The report is not sound" in impact_assessment(content(folder))


def test_outside_words_are_one_line_and_no_markup() -> None:
    assert text("a\nb\x1b[2J # *c* <script>") == "a b \\[2J \\# \\*c\\* \\<script\\>"
