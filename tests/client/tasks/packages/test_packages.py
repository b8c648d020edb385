"""A package becomes a task: rows from a closed process, the store's approval, a simulated run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from client.data.site_rows import SiteRows, Source
from client.site import Site, SiteError
from client.tasks.features.backbones import digest_of
from client.tasks.packages import store
from client.tasks.packages.package_task import package_task
from client.tasks.packages.review import shown
from client.tasks.packages.source import fingerprint, load_source
from client.tasks.packages.store import Packages
from client.tasks.rows import Rows, TaskError
from client.tasks.task import Task
from privacy.contract.plan import Plan, PlanError
from privacy.contract.policy import Policy
from privacy.task_package.archive import PackageError
from tests.support.forks import fork_closed_processes
from tests.support.task_packages import MANIFEST, MODEL, READ, package, packed, rows


@pytest.fixture(autouse=True)
def _forks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh interpreter takes seconds: one test here starts it as a site does."""
    if request.node.name != "test_a_packages_numbers_are_those_of_a_task_with_the_same_model":
        fork_closed_processes(monkeypatch)


def plan(code: str | None, **changes: object) -> Plan:
    base = Plan(
        task="mine",
        rounds=2,
        rate=0.5,
        rows="actual",
        lr=1.0,
        split="natural",
        clip=1.0,
        epsilon=8.0,
        delta=1e-4,
        code=code,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_rows_come_from_a_closed_process_and_each_fits_or_is_told(tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.csv", 80)
    with file.open("a") as lines:
        lines.write("north,x,1,1,yes\nnorth,1,nan,1,yes\nnorth,1,1,1,maybe\n")
    task = package_task(packed(), {"width": 6})
    whole = task.load(file, "all")
    assert len(whole) == 80 and whole.x.shape == (80, 3) and whole.x.dtype == torch.float32
    assert set(whole.site or ()) == {"north", "south"} and set(whole.y.tolist()) == {0, 1}
    assert whole.reading is not None and whole.reading.left_out == 3
    told = {one.expected for one in whole.reading.omissions}
    assert told == {f"a row that encode takes ({k})" for k in ("ValueError", "KeyError")}
    train, test = task.load(file, "train"), task.load(file, "test")
    assert len(train) + len(test) == 80 and 5 < len(test) < 40
    model = task.model(1)
    assert isinstance(model, nn.Sequential) and model[0].out_features == 6
    assert task.code.startswith("sha256:") and task.options == '{"width":6}'


def test_a_row_more_changes_what_is_held_out_by_that_row_alone(tmp_path: Path) -> None:
    task = package_task(packed(), {})
    held = {tuple(x) for x in task.load(rows(tmp_path / "a.csv", 60), "test").x.tolist()}
    more = {tuple(x) for x in task.load(rows(tmp_path / "b.csv", 61), "test").x.tolist()}
    assert len(held ^ more) <= 1


def test_a_package_that_promises_people_gives_one_for_every_row(tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.csv", 40)
    declared = MANIFEST.replace("test = 0.25", "test = 0.25\nsubjects = true")
    whose = READ.replace('"site": record["site"]', '"site": record["site"], "subject": record["a"]')
    task = package_task(packed(whose + MODEL, declared), {})
    assert task.subjects
    whole = task.load(file, "all")
    assert whole.subject is not None and len(whole.subject) == 40
    assert not package_task(packed(), {}).subjects
    for source, manifest in ((READ + MODEL, declared), (whose + MODEL, MANIFEST)):
        with pytest.raises(TaskError, match=r"got none among .*Subject(Missing|NotDeclared)"):
            package_task(packed(source, manifest), {}).load(file, "all")


def test_a_row_of_nobody_or_beyond_float32_is_left_out_alone(tmp_path: Path) -> None:
    file = rows(tmp_path / "rows.csv", 40)
    with file.open("a") as lines:
        lines.write(",1,1,1,yes\nnorth,1e300,1,1,yes\n")
    declared = MANIFEST.replace("test = 0.25", "test = 0.25\nsubjects = true")
    site = '"site": record["site"]'
    whose = READ.replace(site, f'{site}, "subject": record["site"] and record["a"]')
    whole = package_task(packed(whose + MODEL, declared), {}).load(file, "all")
    assert len(whole) == 40 and whole.reading is not None and whole.reading.left_out == 2
    told = {one.expected for one in whole.reading.omissions}
    assert told == {f"a row that encode takes ({k})" for k in ("SubjectMissing", "ValueError")}


def test_options_and_names_that_the_package_does_not_know_are_refused() -> None:
    with pytest.raises(TaskError, match="width must be an integer"):
        package_task(packed(), {"width": 1000})
    with pytest.raises(TaskError, match="task must be mine"):
        package_task(packed(), {}, name="other")
    needy = MANIFEST.replace('licence = "MIT"', 'licence = "MIT"\nneeds = ["numpy>=999"]')
    with pytest.raises(TaskError, match="numpy: must be numpy>=999"):
        package_task(packed(manifest=needy), {})


def test_metrics_are_plain_numbers_and_nothing_else() -> None:
    leaky = READ + MODEL + "\ndef metrics(outputs, y):\n    return {'rows': outputs.tolist()}\n"
    task = package_task(packed(leaky), {})
    with pytest.raises(TaskError, match="metrics must give plain numbers"):
        task.metrics(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
    many = READ + MODEL + "\ndef metrics(o, y):\n    return {f'a{i}': 1.0 for i in range(99)}\n"
    with pytest.raises(TaskError, match="at most 64 numbers"):
        package_task(packed(many), {}).metrics(torch.zeros(2, 2), torch.zeros(2))


def test_whatever_a_module_remembers_changes_its_fingerprint() -> None:
    source = READ + MODEL + (
        "\nSEEN = []\nclass Box:\n    held = {}\n"
        "def keep(x, into=[]):\n    into.append(x)\n"
        "def tell():\n    count = [0]\n    def more():\n        count[0] += 1\n    return more\n"
        "more = tell()\n"
    )  # fmt: skip
    module = load_source(packed(source))
    before = fingerprint(module)
    module.model({"width": 2})
    assert fingerprint(module) == before
    for act in (
        lambda: module.SEEN.append(1),
        lambda: module.Box.held.update(a=1),
        lambda: module.keep(1),
        module.more,
        lambda: setattr(module.model, "count", 1),
    ):
        act()
        after = fingerprint(module)
        assert after != before
        before = after


def test_only_approved_bytes_of_the_store_are_loaded(tmp_path: Path) -> None:
    found = packed()
    approved: list[str] = []
    packages = Packages(tmp_path, lambda: approved)
    with pytest.raises(TaskError, match="must be approved first"):
        packages(plan(found.code))
    approved.append(found.code)
    with pytest.raises(TaskError, match="must be added first"):
        packages(plan(found.code))
    path = store.add(tmp_path, found)
    assert path.stat().st_mode & 0o077 == 0
    task = packages(plan(found.code))
    assert packages(plan(found.code)) is task
    assert packages(plan(found.code, task_options={"width": 9})) is not task
    changed = bytearray(path.read_bytes())
    changed[-40] ^= 1
    path.write_bytes(bytes(changed))
    with pytest.raises(TaskError):
        packages(plan(found.code))
    assert store.known(tmp_path) == (found.digest,)
    assert store.find(tmp_path, found.digest[:8]) == found.digest
    with pytest.raises(PackageError, match="must be the hash of a package here"):
        store.find(tmp_path, "ffffffff")
    store.remove(tmp_path, found.digest)
    assert store.known(tmp_path) == ()


def test_what_a_coordinator_shows_is_read_apart_and_only_its_approval_brings_it_in(
    tmp_path: Path,
) -> None:
    package = packed()
    assert store.keep_shown(tmp_path, package) and not store.keep_shown(tmp_path, package)
    assert store.find(tmp_path, package.digest[:8]) == package.digest
    assert store.readable(tmp_path, package.digest).content == package.content
    assert store.is_shown(tmp_path, package.digest)
    packages = Packages(tmp_path, lambda: [package.code])
    with pytest.raises(TaskError, match="must be added first"):
        packages(plan(package.code))
    store.take_shown(tmp_path, package)
    assert packages(plan(package.code)).code == package.code
    assert not store.is_shown(tmp_path, package.digest)
    assert not store.keep_shown(tmp_path, package), "it is here"
    for number in range(store.SHOWN_MAX + 3):
        other = packed(READ + MODEL + f"\n# {number}\n")
        assert store.keep_shown(tmp_path, other)
    assert len(list(store.shown_folder(tmp_path).iterdir())) == store.SHOWN_MAX
    assert package.digest in store.known(tmp_path)
    path = store.shown_folder(tmp_path) / f"{other.digest}.tacit-task"
    path.write_bytes(package.content)
    with pytest.raises(PackageError, match="it holds other bytes"):
        store.readable(tmp_path, other.digest)


def test_a_frozen_model_is_taken_by_its_digest_from_what_the_site_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "backbones" / "tiny"
    place.mkdir(parents=True)
    save_file({"weight": np.eye(3, dtype=np.float32) * 2}, place / "model.safetensors")
    (place / "config.json").write_text("{}")
    (place / "tokenizer.json").write_text('{"scale": 3}')
    source = (
        "import json\n"
        + READ.replace(
            "    return {",
            '    with open(BACKBONES["tiny"] / "tokenizer.json") as file:\n'
            '        scale = json.load(file)["scale"]\n'
            "    x = [scale * value for value in x]\n    return {",
        )
        + "\nfrom safetensors.numpy import load_file\nimport torch\nfrom torch import nn\n"
        "def model(options):\n"
        "    base = nn.Linear(3, 3, bias=False)\n"
        '    weight = load_file(BACKBONES["tiny"] / "model.safetensors")["weight"]\n'
        "    base.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)\n"
        "    return nn.Sequential(base, nn.Linear(3, 2))\n"
    )
    monkeypatch.setenv("TACIT_BACKBONES", str(place.parent))
    declared = MANIFEST + f'[backbones]\ntiny = "{digest_of(place)}"\n'
    needy = packed(source, declared)
    task = package_task(needy, {})
    assert torch.equal(task.model(0)[0].weight, torch.eye(3) * 2)  # type: ignore[index,arg-type]
    file = rows(tmp_path / "rows.csv", 30)
    plain = package_task(packed(), {}).load(file, "all")
    assert torch.allclose(task.load(file, "all").x, plain.x * 3)
    assert len(task.pretrained) == 1 and "tiny" in task.pretrained[0]
    assert task.changed() == ""
    assert any(digest_of(place) in line for line in shown(needy))
    (place / "tokenizer.json").write_text('{"scale": 4}')
    with pytest.raises(TaskError, match="backbone tiny: digest must be sha256:"):
        package_task(needy, {})
    monkeypatch.delenv("TACIT_BACKBONES")
    with pytest.raises(TaskError, match="backbone tiny: must be installed"):
        package_task(needy, {})
    with pytest.raises(TaskError, match="backbones"):
        package_task(packed(source, MANIFEST + '[backbones]\ntiny = "abc"\n'), {})


def test_a_plan_with_a_package_has_it_in_its_digest_and_others_keep_theirs() -> None:
    found = packed()
    without = plan(None)
    assert "task_options" not in without.to_json() and "code" not in without.to_json()
    digests = {
        without.digest,
        plan(found.code).digest,
        plan(found.code, task_options={"width": 3}).digest,
        plan(packed(READ + MODEL + "\n").code).digest,
    }
    assert len(digests) == 4
    with pytest.raises(PlanError, match="task_options must be left out unless code"):
        plan(None, task_options={"width": 3})
    with pytest.raises(PlanError, match="schema must be left out where code"):
        plan(found.code, schema="label = 'a'")
    with pytest.raises(PlanError, match="code must be"):
        plan("sha256:12")


def test_a_sites_answer_to_a_package_that_is_not_approved_spends_nothing(tmp_path: Path) -> None:
    from tests.support.packaged_site import asked

    found = packed()
    file = rows(tmp_path / "rows.csv", 60)
    answers, ledgers = [], []
    for case in ("not-listed", "not-added", "changed", "approved"):
        site, ledger = _site(tmp_path / case, found, file, case)
        answers.append(asked(site, plan(found.code, rows=60, sites=1, split="iid")))
        ledgers.append(len(ledger.entries()))
    assert answers == [("declined", "task-not-approved")] * 3 + [("trained", "")]
    assert ledgers == [0, 0, 0, 1]


def test_the_owners_least_rows_and_most_unfit_ones_hold_for_a_package(tmp_path: Path) -> None:
    found, policy = packed(), Policy(epsilon=8.0, delta=1e-3, approve="within-limits")
    file = rows(tmp_path / "rows.csv", 40)
    with file.open("a") as lines:
        lines.write("north,x,1,1,yes\n" * 10)
    task = package_task(found, {})

    def check(*tasks: Task, **rules: object) -> None:
        owner = replace(policy, **rules)  # type: ignore[arg-type]
        held = SiteRows(Source.parse(str(file)), None, lambda: owner, lambda *_, **__: None)
        held.check(tasks)

    check(task, min_rows=20, max_unfit=0.25)
    with pytest.raises(SiteError, match="fewer rows than min_rows = 60"):
        check(task, min_rows=60)
    with pytest.raises(SiteError, match=r"0\.200 does not fit, more than max_unfit = 0\.1"):
        check(task, max_unfit=0.1, tasks=("mine",))
    check(min_rows=60)  # no package is approved
    check(task, replace(task, name="other"), min_rows=60)  # whose rows they are is not known
    packages = Packages(tmp_path, lambda: [found.code, "sha256:" + "0" * 64])
    assert packages.usual() == []
    store.add(tmp_path, found)
    assert [one.name for one in packages.usual()] == ["mine"]


def _site(folder: Path, found: object, file: Path, case: str) -> tuple[Site, object]:
    from tests.support.packaged_site import packaged_site

    return packaged_site(folder, found, file, case)


def test_a_folder_is_simulated_as_it_is_and_errors_say_where(tmp_path: Path) -> None:
    from simulations import OwnCodeError, simulate

    place = tmp_path / "task"
    found = package(place)
    file = rows(tmp_path / "rows.csv", 160)
    result = simulate(plan(None, rounds=8), task=place, data=file)
    assert result.plan.code == found.code
    assert result.metrics["accuracy"] > 0.7
    assert isinstance(result.model, nn.Sequential)
    with pytest.raises(PlanError, match="code must be"):
        simulate(plan("sha256:" + "0" * 64), task=place, data=file)
    package(place, READ.replace("float(record[name])", "record[name].upper().no") + MODEL)
    with pytest.raises(TaskError, match="AttributeError: 'str' object has no attribute 'no'"):
        simulate(plan(None), task=place, data=file)
    package(place, READ + MODEL.replace("nn.Linear(3, width)", "nn.Linear(5, width)"))
    with pytest.raises(OwnCodeError, match="made-up rows"):
        simulate(plan(None), task=place, data=file)


def test_a_packages_numbers_are_those_of_a_task_with_the_same_model(tmp_path: Path) -> None:
    task = package_task(packed(), {})
    file = rows(tmp_path / "rows.csv", 50)
    found = task.load(file, "all")
    table = np.genfromtxt(file, delimiter=",", skip_header=1, dtype=str)
    expected = Rows(
        torch.from_numpy(table[:, 1:4].astype(np.float32)),
        torch.from_numpy((table[:, 4] == "yes").astype(np.int64)),
    )
    assert torch.equal(found.x, expected.x) and torch.equal(found.y, expected.y)
