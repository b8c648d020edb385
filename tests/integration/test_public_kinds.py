"""Five kinds of public data as task packages: from `new` to a simulation, and three sites over TLS.

Each package has at most 60 lines and is written as somebody writes it who has read
docs/own-models.md and nothing else; what is typed is what stands there.
"""

import gzip
import json
import os
import time
import wave
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from PIL import Image
from typer.testing import CliRunner

from client.app import make_app
from client.data.site_rows import SiteRows, Source
from client.dpsgd.weights import trained_of
from client.site import Site
from client.tasks.packages import store
from client.tasks.packages.package_task import package_task
from client.tasks.packages.store import Packages
from client.tasks.registry import provided_package
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.contract.policy import Policy
from privacy.ledger.ledger import Ledger
from privacy.task_package.archive import Package, load_package
from server.evaluation import frozen_base, initial_weights
from server.rounds.job import Attempts, Job, Model
from server.rounds.loop import Outcome, federate
from server.rounds.run_folder import RunFolder
from simulations.__main__ import app as simulate_app
from simulations.__main__ import new_app
from tests.support import public_kinds as kinds
from tests.support.federation import coordinator, linked, running
from tests.support.patience import patience

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif("TACIT_DATA" not in os.environ, reason="needs the published files"),
]
SITES = ("north", "south", "east")


def published(name: str) -> Path:
    return Path(os.environ["TACIT_DATA"]) / name


def pictures(folder: Path) -> list[Path]:
    """Fashion-MNIST as folders: SITE/CLASS/NUMBER.png, 40 pictures of each class at each site."""
    with gzip.open(published("fashion_mnist") / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(published("fashion_mnist") / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    names = kinds.CLOTHES_MANIFEST.split("classes = ")[1].split("\n")[0]
    for label, name in enumerate(json.loads(names)):
        for place, i in enumerate(np.flatnonzero(labels == label)[:120]):
            where = folder / SITES[place % 3] / name
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i]).save(where / f"{i}.png")
    return [folder / site for site in SITES]


def sounds(folder: Path) -> list[Path]:
    """Spoken digits as recordings: SPEAKER/DIGIT_NUMBER.wav, 15 of each digit and speaker."""
    with np.load(published("fsdd") / "fsdd.npz") as held:
        clips = np.split(held["audio"], np.cumsum(held["length"])[:-1])
        facts = zip(held["digit"], held["speaker"], held["index"], clips, strict=True)
        names = [str(name) for name in held["speaker_names"]]
        for digit, speaker, index, clip in facts:
            if index < 15:
                where = folder / names[speaker]
                where.mkdir(parents=True, exist_ok=True)
                with wave.open(str(where / f"{digit}_{index}.wav"), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(8000)
                    file.writeframes(clip.astype("<i2").tobytes())
    return [folder / name for name in names[:3]]


def texts(folder: Path) -> list[Path]:
    """The lines of three roles of Shakespeare, a file each."""
    with gzip.open(published("tinyshakespeare") / "input.txt.gz", "rt") as file:
        blocks = file.read().strip().split("\n\n")
    folder.mkdir()
    paths = []
    for role in ("GLOUCESTER", "MENENIUS", "PETRUCHIO"):
        paths.append(folder / f"{role}.txt")
        paths[-1].write_text("\n\n".join(b for b in blocks if b.startswith(f"{role}:")))
    return paths


def ratings(folder: Path) -> list[Path]:
    """MovieLens: the ratings of 150 users as they came, and of three groups of them apart."""
    with gzip.open(published("movielens_latest_small") / "movies.csv.gz", "rt") as file:
        films = file.read()
    with gzip.open(published("movielens_latest_small") / "ratings.csv.gz", "rt") as file:
        head, *lines = file.read().strip().split("\n")
    users = sorted({line.partition(",")[0] for line in lines}, key=int)[:150]
    kept = [line for line in lines if line.partition(",")[0] in set(users)]
    paths = [folder.parent / "groups" / str(group) for group in range(3)]
    for place, group in ((folder, None), *zip(paths, range(3), strict=True)):
        place.mkdir(parents=True)
        mine = [line for line in kept if group in (None, int(line.partition(",")[0]) % 3)]
        (place / "movies.csv").write_text(films)
        (place / "ratings.csv").write_text("\n".join([head, *mine]))
    return paths


def hospitals(folder: Path) -> list[Path]:
    """Heart disease: the table of four hospitals."""
    folder.mkdir()
    for file in published("heart_disease").glob("processed.*.data"):
        (folder / file.name).write_bytes(file.read_bytes())
    return [folder / f"processed.{name}.data" for name in ("cleveland", "hungarian", "va")]


@dataclass(frozen=True)
class Kind:
    """What somebody has and wrote, what was typed, and what must come of it."""

    name: str
    template: str
    source: str
    manifest: str
    data: Callable[[Path], list[Path]]
    words: tuple[str, ...]
    better: Callable[[dict[str, float]], bool]


KINDS = (
    Kind(
        "clothes",
        "image",
        kinds.CLOTHES,
        kinds.CLOTHES_MANIFEST,
        pictures,
        (),
        lambda metrics: metrics["accuracy"] > 0.3,  # one class alone: 0.1
    ),
    Kind(
        "spoken",
        "audio",
        kinds.SPOKEN,
        kinds.SPOKEN_MANIFEST,
        sounds,
        ("--set", "lr=0.5"),
        lambda metrics: metrics["accuracy"] > 0.3,  # one digit alone: 0.1
    ),
    Kind(
        "play",
        "text",
        kinds.PLAY,
        kinds.PLAY_MANIFEST,
        texts,
        (),
        lambda metrics: metrics["accuracy"] > 0.18,  # the space alone: 0.17
    ),
    Kind(
        "films",
        "text",
        kinds.FILMS,
        kinds.FILMS_MANIFEST,
        ratings,
        ("--set", "lr=0.2"),
        lambda metrics: metrics["mse"] < 1.3,  # without training: 1.7
    ),
    Kind(
        "heart",
        "table",
        kinds.HEART,
        kinds.HEART_MANIFEST,
        hospitals,
        ("--set", "lr=0.5"),
        lambda metrics: metrics["accuracy"] > 0.65,  # nobody is ill: 0.49
    ),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_from_new_to_a_simulation_and_over_tls(kind: Kind, tmp_path: Path) -> None:
    wall, cpu = time.monotonic(), time.process_time()
    folder, data = tmp_path / kind.name, tmp_path / "data"
    paths = kind.data(data)
    run = CliRunner().invoke(new_app, [str(folder), "--kind", kind.template])
    assert run.exit_code == 0, run.output
    (folder / "task" / "task.py").write_text(kind.source)
    (folder / "task" / "task.toml").write_text(kind.manifest)
    lines = len(f"{kind.source}{kind.manifest}".strip().splitlines())
    assert lines <= 60, lines
    plan_file, runs = folder / "plan.toml", tmp_path / "runs"
    words = [str(plan_file), "--task", str(folder / "task"), "--data", str(data), *kind.words]
    done = CliRunner().invoke(simulate_app, [*words, "--json", "--runs", str(runs)])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["rounds"] == 20 and summary["epsilon"] <= 8.0
    assert kind.better(summary["metrics"]), summary["metrics"]
    simulated = time.monotonic() - wall, time.process_time() - cpu

    package = load_package(folder / "task")
    rows = 200
    plan = replace(
        load_plan(str(plan_file), [f"rows={rows}", "sites=3", "rounds=3", "sigma=8.0", *NO_SPLIT]),
        code=package.code,
    )
    outcome, _ = over_tls(tmp_path / "tls", plan, package, paths)
    assert outcome.reason == "done", outcome
    assert all(
        {site["status"] for site in line["sites"].values()} == {"trained"}
        for line in outcome.history
    )
    total = time.monotonic() - wall, time.process_time() - cpu
    print(f"\n{kind.name}: {lines} lines, {summary['metrics']}")
    print(
        f"  simulated in {simulated[0]:.1f} s ({simulated[1]:.1f} CPU), with TLS {total[0]:.1f} s"
    )


NO_SPLIT = ("split=iid",)


def over_tls(
    folder: Path, plan: Plan, package: Package, paths: list[Path]
) -> tuple[Outcome, dict[str, list[int]]]:
    """A federation of three sites over mutual TLS; its outcome, and the messages' bytes."""
    home, folders = coordinator(folder, *SITES)
    sent: dict[str, list[int]] = {"down": [], "up": []}
    with ExitStack() as stack:
        grid = stack.enter_context(linked(home))
        for name, path in zip(SITES, paths, strict=True):
            one = site(folders[name], name, package, path)
            handler = make_app(lambda context, content, one=one: one)
            stack.enter_context(running(folders[name], grid.address, handler))
        until = time.monotonic() + patience(60)
        while len(grid.names()) < len(SITES) and time.monotonic() < until:
            grid.wait(0.1)
        push, pull = grid.push_messages, grid.pull_messages

        def pushed(messages):  # type: ignore[no-untyped-def]
            messages = list(messages)
            sent["down"] += [size(message) for message in messages]
            return push(messages)

        def pulled(ids):  # type: ignore[no-untyped-def]
            messages = list(pull(ids))
            sent["up"] += [size(message) for message in messages]
            return messages

        grid.push_messages, grid.pull_messages = pushed, pulled  # type: ignore[method-assign]
        learning = package_task(package, plan.task_options)
        stack.enter_context(provided_package(package.code, lambda plan: learning))
        initial = initial_weights(plan)
        run = RunFolder.create(folder / "run", plan, kind="federation")
        job = Job(
            plan,
            run,
            grid,
            Model(lambda: initial),
            attempts=Attempts(most=3, round_timeout=patience(120)),
            base=frozen_base(plan),
        )
        return federate(job), sent


def size(message: Message) -> int:
    """The bytes of all that a message is made of."""
    return sum(len(one.deflate()) for one in get_all_nested_objects(message).values())


def site(folder: Path, name: str, package: Package, data: Path) -> Site:
    """A site that approved the package for its own rows."""
    policy = Policy(
        epsilon=100.0, delta=1e-2, min_sigma=0.0, approve="within-limits", packages=(package.code,)
    )
    store.add(folder, package)
    rows = SiteRows(Source.parse(str(data)), None, lambda: policy, lambda *_, **__: None)
    return Site(
        name,
        policy,
        Ledger.create(folder / "people.jsonl", population=name, durable=False),
        rows,
        check_head=lambda head: True,
        accepts=rows.accepts,
        tasks=Packages(folder, lambda: policy.packages),
    )


LORA = """
import torch
from torch import nn


def read(path, options):
    yield from [path]


def encode(record, options):
    return None


class Adapted(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.base.requires_grad_(False)
        self.down = nn.Linear(inputs, 8, bias=False)
        self.up = nn.Linear(8, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def model(options):
    return nn.Sequential(Adapted(256, 1024), nn.Tanh(), Adapted(1024, 256), nn.Tanh(),
                         Adapted(256, 16))
"""
LORA_MANIFEST = """
name = "adapters"
version = "1"
kind = "classification"
licence = "MIT"
classes = {classes}
[x.values]
shape = [256]
""".replace("{classes}", json.dumps([f"class {i}" for i in range(16)]))


def test_a_round_of_adapters_over_tls_moves_little_more_than_the_trained_numbers(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    reading = LORA.replace("return None", 'return {"x": [float(v) for v in record], "y": 0}')
    reading = reading.replace("yield from [path]", "yield from ([i] * 256 for i in range(40))")
    (folder / "task.py").write_text(reading)
    (folder / "task.toml").write_text(LORA_MANIFEST)
    package = load_package(folder)
    (tmp_path / "rows").write_text("")
    plan = Plan(
        task="adapters",
        rounds=3,
        rate=0.5,
        rows=30,
        lr=0.5,
        sites=3,
        clip=1.0,
        sigma=4.0,
        delta=1e-4,
        code=package.code,
    )
    outcome, sent = over_tls(tmp_path / "tls", plan, package, [tmp_path / "rows"] * 3)
    assert outcome.reason == "done"
    model = package_task(package, {}).model(0)
    trained = sum(p.numel() for p in trained_of(model).values())
    assert sum(p.numel() for p in model.parameters()) > 20 * trained
    for way in ("up", "down"):
        assert len(sent[way]) >= 9
        assert max(sent[way]) <= 1.2 * 4 * trained, (way, sent[way], 4 * trained)
        assert max(sent[way]) >= 4 * trained, "all trained numbers travel"
    print(f"\n{trained} trained: {sent} bytes, {max(sent['up']) / 4 / trained:.3f}")
