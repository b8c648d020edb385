"""From a sum over all parties to the next state: the step that one site takes otherwise."""

import numpy as np

from privacy.arrays import Arrays
from privacy.contract.plan import Plan
from privacy.secagg.ring import by_name
from server.rounds.aggregation import State, moved
from server.secure.sums import SecureSum


def combine_sum(state: State, result: SecureSum, plan: Plan) -> State:
    """The next state; everything here is post-processing of the noisy sum and public numbers.

    The mean gradient is the sum over the public number of units drawn at the survivors, on average;
    the step is that of SGD with weight decay. In the unit client it is the mean over all parties.
    """
    shapes = {name: array.shape for name, array in state.weights.items()}
    parts = by_name(result.total, shapes)
    if plan.per_example:
        over = sum(plan.denominator(site) for site in result.survivors)
        lr = plan.lr_at(state.round, plan.rounds)
        step: Arrays = {
            name: np.asarray(-lr * (part / over + plan.l2 * state.weights[name]), np.float32)
            for name, part in parts.items()
        }
    else:
        over = float(plan.terms.parties)
        step = {name: np.asarray(part / over, np.float32) for name, part in parts.items()}
    return moved(state, step, plan)
