"""Fashion-MNIST through two levels of wavelets: dearer than `fashion-mnist`, and more accurate."""

from client.tasks.fashion_mnist import Filters
from client.tasks.features import wavelets
from client.tasks.task import Task


def task() -> Task:
    """Softmax regression of scattering features; they take a millisecond a picture, once."""
    return Filters("fashion-scattering", wavelets.WIDTH, wavelets.features, costly=True).task()
