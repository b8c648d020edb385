"""What a site's own code does around the trainer is audited too: the ledger, and paid metrics."""

import dataclasses
import json

import pytest

import client.app
from client.audit.audit import one_thread
from client.audit.reply_checks import paid_metrics_are_noised, replies_are_paid_for


@pytest.fixture(autouse=True)
def _threads():
    with one_thread():
        yield


@pytest.mark.parametrize("check", [paid_metrics_are_noised, replies_are_paid_for])
def test_a_sound_site_passes(check):
    found = check("cpu")
    assert found.passed, found


@pytest.mark.parametrize(
    "change",
    [
        lambda event: dataclasses.replace(event, steps=max(1, event.steps // 4)),
        lambda event: dataclasses.replace(event, sigma=event.sigma * 1.3),
    ],
    ids=["a quarter of the steps", "a third more noise than there was"],
)
def test_a_ledger_that_records_less_than_was_released_is_found(change, monkeypatch):
    spend = client.app._spend

    def planted(site, plan, events, *rest):
        paid = spend(site, plan, tuple(map(change, events)), *rest)
        return tuple(
            dataclasses.replace(entry, event=event)
            for entry, event in zip(paid, events, strict=True)
        )

    monkeypatch.setattr(client.app, "_spend", planted)
    monkeypatch.setattr("privacy.ledger.ledger.Ledger.contains", lambda self, entry: True)
    assert not replies_are_paid_for("cpu").passed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["accuracy", "class a", "loss"])
def test_a_metric_without_noise_is_found(kind, monkeypatch):
    metrics, exact = client.app.paid_metrics, {"accuracy": 12.0, "class a": 12.0}

    def planted(*words, **more):
        released = metrics(*words, **more)
        return released | {kind: exact.get(kind, 24 * 0.6931471805599453)}

    monkeypatch.setattr(client.app, "paid_metrics", planted)
    assert not paid_metrics_are_noised("cpu").passed


@pytest.mark.slow
def test_metrics_with_half_the_noise_are_found(monkeypatch):
    metrics = client.app.paid_metrics

    def planted(model, rows, task, plan, **more):
        quieter = dataclasses.replace(plan, metrics_sigma=plan.metrics_sigma / 2)
        return metrics(model, rows, task, quieter, **more)

    monkeypatch.setattr(client.app, "paid_metrics", planted)
    found = paid_metrics_are_noised("cpu")
    assert not found.passed, json.dumps(found.detail)
