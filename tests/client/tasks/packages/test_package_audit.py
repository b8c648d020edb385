"""A package's model examined and attacked, here in this process; sites do it in a closed one."""

from typing import Any

import pytest

from client.audit.audit import DELTA
from client.tasks.packages import audit
from client.tasks.packages.audit import audited
from client.tasks.packages.examine import made_up_rows, report
from client.tasks.packages.package_task import package_task
from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.mechanism import noise
from tests.support.task_packages import MODEL, READ, packed


def examined(model: str) -> dict[str, Any]:
    return report(packed(READ + model), {"options": {}})


def test_an_honest_model_is_told_by_its_size_and_layers() -> None:
    facts = examined(MODEL)
    assert facts["refused"] == ""
    assert facts["parameters"] == facts["trained"] == (3 + 1) * 4 + (4 + 1) * 2
    assert facts["layers"] == ["Linear", "Sequential", "Tanh"]
    assert facts["milliseconds_a_step_of_24_rows"] > 0


def test_a_model_that_is_another_each_time_is_refused() -> None:
    own_dice = MODEL.replace("    width", "    torch.seed()\n    width", 1)
    assert "must be the same for the same seed" in examined("import torch\n" + own_dice)["refused"]


def test_a_model_that_mixes_rows_is_refused() -> None:
    mixing = MODEL.replace("nn.Tanh()", "nn.BatchNorm1d(width)")
    assert "BatchNorm" in examined(mixing)["refused"]


def test_what_a_strangers_code_raises_is_told_with_its_line() -> None:
    source = MODEL.replace('options["width"]', 'options["widht"]')
    line = (READ + source).splitlines().index('    width = options["widht"]') + 1
    assert examined(source)["refused"] == f"task.py: KeyError: 'widht' (line {line})"


def test_a_model_that_takes_other_rows_than_its_manifest_says_is_refused() -> None:
    assert examined(MODEL.replace("nn.Linear(3, width)", "nn.Linear(5, width)"))["refused"]


def test_an_honest_package_passes_its_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Event("record", 1.0, 0.5, 10)
    monkeypatch.setattr(audit, "_canaries", lambda *_: ((), event, {}))
    found = audited(packed(READ + MODEL), {"options": {}, "epsilon": 4.0})
    assert found["verdict"] == "no violation found", found
    assert {one["name"] for one in found["checks"]} >= {
        *("the model keeps examples apart", "a record is bounded"),
        *("noise of an empty sample", "the package changes nothing"),
    }


def test_halved_noise_under_a_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    learning = package_task(packed(READ + MODEL), {})
    rows = made_up_rows(learning, 40)
    honest = audit._noise_alone(learning, rows)
    assert honest.passed and honest.statistic == pytest.approx(1.0, rel=0.2)
    privatise = noise.privatise
    monkeypatch.setattr(
        noise, "privatise", lambda sums, std, **more: privatise(sums, std / 2, **more)
    )
    halved = audit._noise_alone(learning, rows)
    assert not halved.passed and halved.statistic == pytest.approx(0.5, rel=0.2)


@pytest.mark.slow
def test_canaries_under_a_package_are_scored_at_its_epsilon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "_CANARIES", 200)
    learning = package_task(packed(READ + MODEL), {})
    lower, event, more = audit._canaries(learning, made_up_rows(learning, 40), 4.0)
    assert spent([event], DELTA) <= 4.0
    assert all(bound.epsilon < 4.0 for bound in lower)
    assert more["canaries"]["count"] == 200


def test_a_model_that_mixes_rows_is_not_attacked_but_refused() -> None:
    mixing = MODEL.replace("nn.Tanh()", "nn.BatchNorm1d(width)")
    found = audited(packed(READ + mixing), {"options": {}, "epsilon": 4.0})
    assert found["verdict"] == "violation found"
    assert found["bounds"] == []
