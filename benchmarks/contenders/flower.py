"""Flower's own simulation (Ray, two actors for two cores) of a ClientApp with stock Opacus.

python benchmarks/contenders/flower.py MODEL ROUNDS
"""

import os
import sys
import warnings
from functools import cache
from typing import Any

from turns import CLIENTS, CLIP, COHORT, LR, RATE, SIGMA, STEPS, Turns
from workload import Data, data, model
from workload import accuracy as share

os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
warnings.filterwarnings("ignore")


@cache
def training() -> Data:
    """All rows, loaded once by each actor."""
    return data("train")


def client_app(name: str) -> Any:
    """The app that Flower's and Opacus' tutorials show: a private engine around torch's loop."""
    from flwr.app import ArrayRecord, MetricRecord, RecordDict
    from flwr.app import Message as Reply
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Any, context: Any) -> Any:
        import torch
        from opacus import PrivacyEngine
        from torch.nn import functional
        from torch.utils.data import DataLoader, TensorDataset

        torch.set_num_threads(1)
        net = model(name)
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        x, y = training().part(int(context.node_config["partition-id"]))
        net, optimizer, loader = PrivacyEngine().make_private(
            module=net.train(),
            optimizer=torch.optim.SGD(net.parameters(), lr=LR),
            data_loader=DataLoader(TensorDataset(x, y), batch_size=round(RATE * len(x))),
            noise_multiplier=SIGMA,
            max_grad_norm=CLIP,
        )
        steps = 0
        for rows, labels in loader:
            optimizer.zero_grad()
            functional.cross_entropy(net(rows), labels).backward()
            optimizer.step()
            steps += 1
        if steps != STEPS:
            raise ValueError(f"steps: expected {STEPS}, got {steps}")
        arrays = ArrayRecord(net._module.state_dict())
        metrics = MetricRecord({"num-examples": len(x)})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Reply(content, reply_to=message)

    return app


def main() -> None:
    """One simulation, a turn a round."""
    name, rounds = sys.argv[1], int(sys.argv[2])
    turns = Turns()
    import flower  # by its name, since Ray's workers know no __main__ of ours
    from flwr.app import ArrayRecord, MetricRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    tested = data("test")
    net = model(name)
    app = ServerApp()

    def evaluate(number: int, arrays: Any) -> MetricRecord:
        net.load_state_dict(arrays.to_torch_state_dict())
        found = share(net, tested)
        if number:
            turns.end(found)
        else:
            turns.begin()
        return MetricRecord({"accuracy": found})

    @app.main()
    def play(grid: Any, context: Any) -> None:
        strategy = FedAvg(
            fraction_train=COHORT / CLIENTS,
            fraction_evaluate=0.0,
            min_train_nodes=COHORT,
            min_available_nodes=CLIENTS,
        )
        arrays = ArrayRecord(net.state_dict())
        strategy.start(grid, arrays, num_rounds=rounds, evaluate_fn=evaluate)

    run_simulation(
        app,
        flower.client_app(name),
        CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False},
        },
    )


if __name__ == "__main__":
    main()
