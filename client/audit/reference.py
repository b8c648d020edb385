"""What an optimizer makes of noisy means, written down once more, apart from the trainer.

SGD, momentum, weight decay and the proximal term are linear, so that the noise of T steps adds up
with known factors. Adam is not: its releases are compared with draws of this reference.
"""

import math

import numpy as np
from numpy.typing import NDArray

from client.audit.settings import ROUNDS, Setting

Vector = NDArray[np.float64]


def change(setting: Setting, start: Vector, means: Vector) -> Vector:
    """New minus old weights [d] after the steps of `setting`, from mean gradients [steps, d].

    `start` [d] are the weights before. Adam: Kingma and Ba 2015, with torch's constants.
    """
    at, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(setting.steps):
        g = means[step] + setting.mu * (at - start) + setting.l2 * at
        lr = rate(setting, step)
        if setting.optimizer == "adam":
            first = 0.9 * first + 0.1 * g
            second = 0.999 * second + 0.001 * g * g
            unbiased = np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
            at = at - lr * first / (1 - 0.9 ** (step + 1)) / unbiased
        else:
            first = setting.momentum * first + g
            at = at - lr * first
    return at - start


def rate(setting: Setting, step: int) -> float:
    """The learning rate of a local step (from 0)."""
    if setting.schedule == "constant":
        return setting.lr
    done = (setting.round - 1) * setting.steps + step
    return setting.lr * 0.5 * (1 + math.cos(math.pi * done / (ROUNDS * setting.steps)))


def gain(setting: Setting) -> float:
    """What a mean gradient of 1 in every step changes a weight at 0 by (a negative number)."""
    return float(change(setting, np.zeros(1), np.ones((setting.steps, 1)))[0])


def spread(setting: Setting) -> float:
    """The standard deviation of a weight's change for noise of deviation 1 in every mean."""
    impulses = np.eye(setting.steps)  # step t of weight t alone
    return float(np.linalg.norm(change(setting, np.zeros(setting.steps), impulses)))
