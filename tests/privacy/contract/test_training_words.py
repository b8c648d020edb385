"""A report says what a plan's training leaves open: pretraining, class weights, views."""

from dataclasses import replace

from privacy.contract.keys.tables import AugmentPlan
from privacy.contract.plan_file import load_plan
from privacy.report.sources import FEDERATION
from privacy.report.text import mechanism, unprotected


def test_pretraining_stands_where_a_schema_names_a_frozen_model() -> None:
    plan = load_plan("sms-spam")
    items = {one["quantity"]: one for one in unprotected(plan, FEDERATION)}
    said = items["Pretraining"]
    assert said["status"] == "not covered" and "all-minilm-l6-v2 (sha256:b5d6a8e6" in said["how"]
    assert "flattered" in items["Contamination of the quality figures"]["how"]
    plain = {one["quantity"] for one in unprotected(load_plan("sms-spam-small"), FEDERATION)}
    assert "Pretraining" not in plain and len(plain) == len(items) - 2


def test_the_report_states_class_weights_instead_of_denying_them() -> None:
    plan = load_plan("sms-spam-small")
    how = {one["quantity"]: one["how"] for one in unprotected(plan, FEDERATION)}
    assert how["Class weights"] == "every record weighs the same"
    weighted = replace(plan, class_weights={"ham": 0.25})
    how = {one["quantity"]: one["how"] for one in unprotected(weighted, FEDERATION)}
    assert "ham 0.25; others 1" in how["Class weights"]


def test_the_mechanism_says_how_views_count() -> None:
    plan = load_plan("digits")
    assert "Contribution of a record" not in {one["what"] for one in mechanism(plan)}
    viewed = replace(plan, augment=AugmentPlan(views=4, flip=True))
    said = {one["what"]: one["value"] for one in mechanism(viewed)}
    assert "4 random views" in said["Contribution of a record"]
