"""A site whose task comes from its own store of packages, asked as a coordinator asks."""

from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.app import answer
from client.data.site_rows import SiteRows, Source
from client.reply import REPLY
from client.round_request import ARRAYS, REQUEST, STYPE
from client.site import Site
from client.tasks.packages import store
from client.tasks.packages.store import Packages
from privacy.arrays import Arrays, encode
from privacy.contract.plan import Plan
from privacy.contract.policy import Policy
from privacy.ledger.ledger import Ledger
from privacy.task_package.archive import Package


def packaged_site(
    folder: Path, package: Package, data: Path, case: str = "approved"
) -> tuple[Site, Ledger]:
    """A site that approved a package; in other cases its bytes changed, or it did not."""
    folder.mkdir(parents=True)
    ledger = Ledger.create(folder / "ledger.jsonl", population="people", durable=False)
    policy = Policy(
        epsilon=100.0,
        delta=1e-3,
        min_sigma=0.0,
        approve="within-limits",
        packages=() if case == "not-listed" else (package.code,),
    )
    path = store.add(folder, package)
    if case == "not-added":
        path.unlink()
    if case == "changed":
        path.write_bytes(path.read_bytes().replace(b"nn.Tanh()", b"nn.ReLU()"))
    rows = SiteRows(Source.parse(str(data)), None, lambda: policy, lambda *_, **__: None)
    site = Site(
        "north",
        policy,
        ledger,
        rows,
        check_head=lambda head: True,
        accepts=rows.accepts,
        tasks=Packages(folder, lambda: policy.packages),
    )
    return site, ledger


def asked(
    site: Site, plan: Plan, weights: Arrays | None = None, number: int = 1
) -> tuple[str, str]:
    """The status and the reason of the site's answer to one round."""
    fields = answer(site, request(site, plan, weights, number)).config_records[REPLY]
    return str(fields["status"]), str(fields["reason"])


def request(site: Site, plan: Plan, weights: Arrays | None = None, number: int = 1) -> RecordDict:
    """A TRAIN request of one round, with weights of the honest package's model."""
    if weights is None:
        width = int(plan.task_options.get("width", 4))
        model = torch.nn.Sequential(
            torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 2)
        )
        weights = {n: p.detach().numpy() for n, p in model.named_parameters()}
    blob = encode(weights)
    array = Array(dtype="uint8", shape=(len(blob),), stype=STYPE, data=blob)
    fields = {"run": "run", "round": number, "site": site.name, "plan": plan.to_json()}
    return RecordDict({ARRAYS: ArrayRecord({"weights": array}), REQUEST: ConfigRecord(fields)})
