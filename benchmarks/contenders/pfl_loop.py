"""pfl's loop around Tacit's trainer: its backend, its federated averaging, its cohorts.

The trainer is `client.dpsgd.training.train` itself, so that only the loop differs. pfl keeps no
ledgers and writes no checkpoints; epsilon is not accounted here at all.

    python benchmarks/contenders/pfl_loop.py MODEL ROUNDS
"""

import sys

import torch
from product import plan_of
from turns import CLIENTS, COHORT, LR, RATE, SIGMA, STEPS, Turns
from workload import accuracy, data, model


def main() -> None:
    """One simulation, a turn a round."""
    name, rounds = sys.argv[1], int(sys.argv[2])
    turns = Turns()
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    from client.dpsgd.training import train
    from client.tasks.losses import cross_entropy
    from client.tasks.rows import Rows
    from privacy.accounting.events import Event

    torch.set_num_threads(1)
    training, tested = data("train"), data("test")
    plan = plan_of("clothes", rounds)
    event = Event("record", SIGMA, RATE, STEPS)

    class Loss:  # all that `train` asks of a task
        loss = staticmethod(cross_entropy)

    class Private(FederatedAveraging):  # type: ignore[type-arg]
        def train_one_user(self, initial_model_state, model, user_dataset, central_context):  # type: ignore[no-untyped-def]
            train(
                model.pytorch_model,
                Rows(*user_dataset.raw_data),
                Loss,  # type: ignore[arg-type]
                plan,
                site=str(user_dataset.user_id),
                event=event,
                round=central_context.current_central_iteration + 1,
            )
            return model.get_model_difference(initial_model_state), Metrics()

    class Turn(TrainingProcessCallback):  # type: ignore[type-arg]
        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):  # type: ignore[no-untyped-def]
            turns.end(accuracy(model.pytorch_model, tested))
            return False, Metrics()

    net = model(name)
    net.loss = net.metrics = lambda *_, **__: {}  # type: ignore[assignment]
    users = list(range(CLIENTS))
    federated = FederatedDataset(
        lambda user: Dataset(training.part(user), user_id=str(user)),
        get_user_sampler("random", users),
    )
    turns.begin()
    Private().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=COHORT,
            val_cohort_size=None,
        ),
        SimulatedBackend(federated, federated),
        PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=None),
        callbacks=[Turn()],
    )


if __name__ == "__main__":
    main()
