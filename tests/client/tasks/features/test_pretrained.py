"""Pictures and sounds through frozen backbones of transformers' forms, read from local folders."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from client.dpsgd.trees import joined
from client.tasks.described.described_task import task
from client.tasks.described.description import described
from client.tasks.features.backbones import Backbone, digest_of
from client.tasks.features.pretrained import FORMS, Form, Frozen, frozen
from client.tasks.rows import TaskError
from privacy.__main__ import app as privacy_app
from privacy.contract.plan_file import load_plan
from simulations.run import simulate

PICTURES = """
reader = "images"
classes = ["dark", "light"]
folders = ["site", "label"]
size = [32, 32]
channels = 3
backbone = "{name}"
digest = "{digest}"
vector = {vector}
test = {test}
"""
SOUNDS = """
reader = "sounds"
classes = ["low", "high"]
folders = ["label"]
rate = 8000
seconds = 0.2
backbone = "{name}"
digest = "{digest}"
vector = 16
"""
NONE = f"sha256:{'0' * 64}"
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
VIT |= {"intermediate_size": 16, "patch_size": 8}
WAV2VEC2 = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WAV2VEC2 |= {"intermediate_size": 16, "conv_dim": [8, 8], "conv_stride": [5, 4]}
WAV2VEC2 |= {"conv_kernel": [10, 8], "num_conv_pos_embeddings": 4}
WAV2VEC2 |= {"num_conv_pos_embedding_groups": 2, "feat_proj_dropout": 0.0, "vocab_size": 4}
SEEN = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.3]}
HEARD = {"sampling_rate": 8000, "do_normalize": True}


def saved(folder: Path, form: str, sizes: dict[str, Any], before: dict[str, Any]) -> str:
    """A tiny model of random weights as a backbone's folder; its digest."""
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = getattr(transformers, f"{form}Model")(
            getattr(transformers, f"{form}Config")(**sizes)
        )
        for name, buffer in model.named_buffers():  # as statistics of BatchNorm are after training
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(before))
    return digest_of(folder)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TACIT_BACKBONES", str(tmp_path / "backbones"))
    return tmp_path


def pictures(folder: Path, count: int = 12) -> Path:
    draw = np.random.default_rng(0)
    for number in range(count):
        label, light = [("dark", 60), ("light", 190)][number % 2]
        place = folder / f"writer-{number % 3}" / label
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(light - 40, light + 40, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def sounds(folder: Path, count: int = 8) -> Path:
    draw = np.random.default_rng(0)
    for number in range(count):
        label, pitch = [("low", 200), ("high", 1500)][number % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        time = np.arange(1000 + 100 * number) / 8000
        sound = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * draw.normal(size=len(time))
        with wave.open(str(folder / label / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes((sound * 32767).astype("<i2").tobytes())
    return folder


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ('backbone = "a b"', "backbone must be the name of a backbone"),
        ('backbone = "x"', 'digest must be "sha256:"'),
        (f'backbone = "x"\ndigest = "{NONE}"', "vector must be how many numbers"),
        (f'digest = "{NONE}"', "digest must be left out without a backbone"),
        ("vector = 3", "vector must be left out without a backbone"),
        (f'backbone = "x"\nvector = 4\ndigest = "{NONE}"', "channels must be 3"),
    ],
)
def test_a_schema_of_a_backbone_is_refused_in_one_line(more: str, expected: str) -> None:
    with pytest.raises(TaskError, match=expected):
        described(f'reader = "images"\nclasses = ["a", "b"]\n{more}')


def test_texts_are_seen_through_backbones_in_tables_alone() -> None:
    how = f'backbone = "x"\nvector = 4\ndigest = "{NONE}"'
    with pytest.raises(TaskError, match="backbone must be left out unless reader is images or"):
        described(f'reader = "texts"\nclasses = ["a", "b"]\n{how}')


def test_a_backbone_that_is_not_here_ends_the_reading_at_once(home: Path) -> None:
    schema = PICTURES.format(name="absent", digest=NONE, vector=4, test=0.4)
    with pytest.raises(TaskError, match="backbone absent: must be installed, or be a folder"):
        task(schema).load(pictures(home / "data", 2), "all")


def test_a_form_that_is_not_known_is_refused(home: Path) -> None:
    folder = home / "backbones" / "odd"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(TaskError, match=r"config.json, model.safetensors and tokenizer.json or"):
        digest_of(folder)
    (folder / "config.json").write_text('{"model_type": "mystery"}')
    (folder / "preprocessor_config.json").write_text("{}")
    schema = PICTURES.format(name="odd", digest=digest_of(folder), vector=4, test=0.4)
    with pytest.raises(TaskError, match="model_type must be one of resnet,"):
        task(schema).load(pictures(home / "data", 2), "all")


IMAGE_FORMS = {"ResNet": (RESNET, 12), "ViT": (VIT, 16)}


@pytest.mark.slow
@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_pictures_train_a_head_on_a_frozen_backbone(form: str, home: Path) -> None:
    sizes, vector = IMAGE_FORMS[form]
    digest = saved(home / "backbones" / "tiny", form, sizes, SEEN)
    schema = PICTURES.format(name="tiny", digest=digest, vector=vector, test=0.4)
    data = pictures(home / "data", 24)
    rows = task(schema).load(data, "all")
    assert isinstance(rows.x, torch.Tensor) and rows.x.shape == (24, vector)
    assert torch.allclose(rows.x.norm(dim=1), torch.ones(24), atol=1e-5)
    read = task(schema).read
    assert read is not None
    apart = [next(read(file, False))[0].x for file in sorted(data.rglob("*.png"))]
    assert torch.equal(joined(apart), rows.x)  # no picture changes another's numbers
    (home / "schema.toml").write_text(schema)
    (home / "plan.toml").write_text(PLAN)
    result = simulate(load_plan(str(home / "plan.toml"), []), home / "run", data=data)
    assert result.outcome.reason == "done"
    filed = CliRunner().invoke(privacy_app, ["report", str(home / "run"), "--json"])
    assert filed.exit_code == 0, filed.output
    assert digest in (home / "run" / "report" / "report.json").read_text()


PLAN = """
task = "images"
schema = "schema.toml"
purpose = "a test"
split = "natural"
rounds = 3
rate = 1.0
rows = "actual"
lr = 4.0
clip = 1.0
unit = "record"
sigma = 1.0
delta = 1e-3
"""


@pytest.mark.slow
def test_batch_norm_of_a_frozen_backbone_stays_as_it_came(home: Path) -> None:
    digest = saved(home / "backbones" / "tiny", "ResNet", RESNET, SEEN)
    model = frozen("images", Backbone("tiny", digest), vector=12, size=(32, 32))
    kept = {n: b.clone() for n, b in model.model.named_buffers()}
    assert any(n.endswith("running_var") for n in kept) and not model.model.training
    draw = np.random.default_rng(1)
    light = draw.uniform(size=(3, 32, 32)).astype(np.float32)
    first = model.picture(light)
    model.picture(10 * light)
    assert np.array_equal(model.picture(light), first)
    assert all(torch.equal(b, kept[n]) for n, b in model.model.named_buffers())
    assert not any(p.requires_grad for p in model.model.parameters())


@pytest.mark.slow
def test_sounds_are_heard_at_the_backbones_rate_whatever_their_length(home: Path) -> None:
    digest = saved(home / "backbones" / "tiny", "Wav2Vec2", WAV2VEC2, HEARD)
    schema, data = SOUNDS.format(name="tiny", digest=digest), sounds(home / "data")
    learning = task(schema)
    rows = learning.load(data, "all")
    assert isinstance(rows.x, torch.Tensor) and rows.x.shape == (8, 16)
    assert learning.costly and digest in learning.pretrained[0]
    with pytest.raises(TaskError, match="rate must be 8000, the backbone's, got 16000"):
        task(schema.replace("8000", "16000")).load(data, "all")
    with pytest.raises(TaskError, match="backbone tiny: vector must be 16, got 15"):
        task(schema.replace("vector = 16", "vector = 15")).load(data, "all")


@pytest.mark.slow
def test_a_backbone_without_all_its_weights_is_refused(home: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = home / "backbones" / "tiny"
    saved(folder, "ViT", VIT, SEEN)
    weights = load_file(folder / "model.safetensors")
    lost = next(
        name for name in weights if name.endswith("attention.o_proj.weight") or "output" in name
    )
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TaskError, match="must hold every weight of its model, has no"):
        frozen("images", Backbone("tiny", digest_of(folder)), vector=16, size=(32, 32))


@pytest.mark.slow
def test_every_form_that_is_named_is_one_of_the_librarys() -> None:
    transformers = pytest.importorskip("transformers")
    for forms in FORMS.values():
        for kind, form in forms.items():
            assert getattr(transformers, form.name).config_class.model_type == kind


def test_a_sound_shorter_than_a_tenth_of_a_second_is_filled_with_silence() -> None:
    class Length(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[float(x.shape[1]), 60.0]])

    heard = Frozen(Length(), Form("", lambda out: out), rate=800)
    assert heard.sound(np.zeros(5)) == pytest.approx([0.8, 0.6])
