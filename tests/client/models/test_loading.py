"""Which model files are used, and which are refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from client.models.loading import ModelError, find, load
from client.models.provenance import MADE_HERE, RECEIVED, SELF_SIGNED, UNSIGNED, Trust
from client.models.received import keeper
from client.models.store import keep
from client.models.trusted_keys import COORDINATOR, known_keys, sign_beside
from privacy.identity.keys import new_signing_key
from privacy.ledger.ledger import Ledger
from privacy.model_card import Card
from server.registry.signing import own_key as own_key_of
from server.registry.signing import signer
from tests.support.models import RUN, know, own_key, plan_for, release, sign


def opened(path: Path, directory: Path | None = None) -> str:
    return load(path, known_keys(directory)).origin.words


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    key = own_key(folder)
    release(folder, 4, key=key)
    release(folder, 5, key=key)
    return folder


def test_a_run_folder_means_its_newest_round(run: Path) -> None:
    assert find(str(run)).name == "000005.safetensors"


def test_a_round_whose_signature_is_still_to_come_waits(run: Path) -> None:
    release(run, 6)
    assert find(str(run)).name == "000005.safetensors"


def test_a_run_that_signs_itself_is_accepted_with_its_origin_unknown(run: Path) -> None:
    assert opened(find(str(run))) == SELF_SIGNED


def test_a_run_without_a_key_is_said_to_be_unsigned(tmp_path: Path) -> None:
    path = release(tmp_path / "run")
    assert opened(path) == UNSIGNED
    (tmp_path / "site").mkdir()
    with pytest.raises(ModelError, match="expected its signature"):
        opened(path, tmp_path / "site")


def test_a_site_knows_its_coordinator_and_refuses_a_stranger(tmp_path: Path) -> None:
    coordinator, stranger, site = new_signing_key(), new_signing_key(), tmp_path / "site"
    know(site, coordinator)
    known = release(tmp_path / "a", key=coordinator)
    assert opened(known, site) == COORDINATOR
    other = release(tmp_path / "b", key=stranger)
    with pytest.raises(ModelError, match="unknown key"):
        opened(other, site)


def test_the_card_says_what_the_run_spent(run: Path) -> None:
    model = load(find(str(run)), Trust())
    card = model.card
    assert (card.task, card.run, card.round, card.unit) == ("digits", RUN, 5, "record")
    assert card.epsilon == 1.25
    assert card.sites["site-1"] == {"epsilon": 1.0, "delta": 1e-4}
    assert card.model == model.digest
    assert Card.from_json(card.to_json()) == card
    assert "epsilon 1.25" in card.privacy


def test_a_model_without_privacy_says_so(tmp_path: Path) -> None:
    plan = plan_for("digits", unit="none", sigma=None, delta=None, clip=None)
    model = load(release(tmp_path / "run", plan=plan), Trust())
    assert "without differential privacy" in model.card.privacy
    assert model.card.epsilon is None


def test_a_run_signs_its_own_rounds(tmp_path: Path) -> None:
    path = release(tmp_path / "run")
    signer(own_key_of(tmp_path / "run"))(path)
    assert opened(path) == SELF_SIGNED
    assert own_key_of(tmp_path / "run").stat().st_mode & 0o077 == 0
    signer(new_signing_key())(path)
    with pytest.raises(ModelError, match="another key's"):
        opened(path)


def test_a_changed_byte_is_noticed(run: Path) -> None:
    path = find(str(run))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="changed one"):
        opened(path)


def test_a_signature_is_not_taken_over_from_another_round(run: Path) -> None:
    older, newer = (run / "checkpoints" / f"00000{n}.safetensors.sig" for n in (4, 5))
    newer.write_bytes(older.read_bytes())
    with pytest.raises(ModelError, match="changed one"):
        opened(find(str(run)))


def test_a_signature_names_the_round_it_is_for(tmp_path: Path) -> None:
    key = own_key(tmp_path / "run")
    path = release(tmp_path / "run", 5)
    sign(path, 4, key)
    with pytest.raises(ModelError, match="signed as round 4"):
        opened(path)


def test_a_forged_signature_is_refused(run: Path) -> None:
    path = find(str(run)).with_name("000005.safetensors.sig")
    values = json.loads(path.read_text())
    values["signature"] = "00" * 64
    path.write_text(json.dumps(values))
    with pytest.raises(ModelError, match="false one"):
        opened(find(str(run)))


def test_a_run_with_a_key_has_no_unsigned_rounds(run: Path) -> None:
    path = find(str(run))
    path.with_name(path.name + ".sig").unlink()
    with pytest.raises(ModelError, match="expected its signature"):
        opened(path)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"expected a \.safetensors or \.onnx file"):
        find(str(tmp_path / "model.pt"))
    path = release(tmp_path / "run")
    path.write_bytes((tmp_path / "model.pt").read_bytes())
    with pytest.raises(ModelError, match="damaged"):
        opened(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"task": "adult"}, "expected a model of task digits"),
        ({"plan": "0" * 64}, "another plan's"),
        ({"plan_json": "{}"}, "must"),
        ({"round": "-1"}, "round: expected a number"),
        ({"history": "[]"}, "expected a JSON object"),
        ({"history": '{"sites": 3}'}, "table of sites"),
        ({"history": '{"sites": {"a": {"events": [1]}}}'}, "events and delta"),
        ({"changes": "3"}, "changes"),
    ],
)
def test_metadata_that_contradict_each_other_are_refused(
    tmp_path: Path, change: dict[str, str], told: str
) -> None:
    path = release(tmp_path / "run", extra=change)
    with pytest.raises(ModelError, match=told):
        opened(path)


def test_tensors_that_are_not_the_tasks_are_refused(tmp_path: Path) -> None:
    path = release(tmp_path / "run")
    from client.models.loading import header

    metadata, tensors = header(path.read_bytes()), load_file(path)
    for name, changed, told in (
        ("weight", torch.zeros(10, 63), "shape"),
        ("weight", torch.full((10, 64), float("nan")), "finite"),
        ("extra", torch.zeros(1), "tensor extra"),
    ):
        save_file(tensors | {name: changed}, path, metadata=metadata)
        with pytest.raises(ModelError, match=told):
            opened(path)


def test_a_site_keeps_each_released_model_once_and_finds_the_latest(tmp_path: Path) -> None:
    site, key = tmp_path / "site", new_signing_key()
    know(site, key)
    with pytest.raises(ModelError, match="found none"):
        find("latest", site)
    paths = {number: release(tmp_path / "run", number, key=key) for number in (1, 2)}
    for number in (1, 2, 2):
        path = paths[number]
        signature = path.with_name(path.name + ".sig").read_bytes()
        kept = keep(site, path.read_bytes(), signature, run=RUN, round=number)
    assert find("latest", site) == kept
    assert len(list((site / "models").glob("*.safetensors"))) == 2
    assert load(kept, known_keys(site)).card.round == 2
    with (site / "models" / "index.jsonl").open("a") as index:
        index.write('{"model": "0123')
    assert find("latest", site) == kept


@pytest.mark.long
def test_a_model_received_from_the_coordinator_is_kept_and_used(tmp_path: Path) -> None:
    plan = plan_for("digits")
    book = Ledger.create(tmp_path / "ledger.jsonl", population="people", durable=False)
    for number in (1, 2, 3):
        book.spend_all(plan.nominal_events(), None, run=RUN, round=number, plan=plan.digest)
    weights = {"weight": np.ones((10, 64), np.float32), "bias": np.zeros(10, np.float32)}
    keep_model = keeper(tmp_path, "site", book)
    for number in (0, 3, 3):
        keep_model(plan, RUN, number, weights)
    model = load(find("latest", tmp_path), known_keys(tmp_path))
    assert model.card.round == 3
    assert model.card.epsilon == pytest.approx(plan.epsilon_after("site", 3))
    assert model.network is not None
    assert torch.equal(model.network.state_dict()["weight"], torch.ones(10, 64))
    assert len(list((tmp_path / "models").glob("*.safetensors"))) == 1


def test_what_a_site_makes_itself_it_accepts_and_others_do_not(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for site in (one, other):
        site.mkdir()
    path = tmp_path / "model.safetensors"
    path.write_bytes(release(tmp_path / "run").read_bytes())
    sign_beside(path, path.read_bytes(), RUN, 5, one)
    assert opened(path, one) == RECEIVED
    changed = release(tmp_path / "changed", extra={"changes": '["rounded"]'}).read_bytes()
    made = tmp_path / "made.safetensors"
    made.write_bytes(changed)
    sign_beside(made, changed, RUN, 5, one)
    assert opened(made, one) == MADE_HERE
    with pytest.raises(ModelError, match="unknown key"):
        opened(path, other)
    assert (one / "models" / "signing.pem").stat().st_mode & 0o077 == 0


def test_a_truncated_file_of_any_length_gives_one_line(tmp_path: Path) -> None:
    path = release(tmp_path / "run")
    content = path.read_bytes()
    for length in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError) as caught:
            opened(path)
        assert "\n" not in str(caught.value)
