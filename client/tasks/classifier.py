"""Tasks whose rows are a table's, by public columns, and whose label is one of public classes."""

from typing import Any

from client.tasks import losses
from client.tasks.preprocessing import Columns
from client.tasks.task import Task


def classifier(
    columns: Columns,
    classes: tuple[str, ...],
    *,
    width: int | None = None,
    **more: Any,
) -> Task:
    """The task of telling `classes` apart; its `name`, `load` and `wanted` are in `more`.

    By softmax regression of `width` numbers, those of the columns unless given. `more` are fields
    of `Task`; `inputs`, `encode` and `features` are the columns' own, unless they are among them.
    """
    numbers = columns.width if width is None else width
    fields: dict[str, Any] = {
        "inputs": tuple(column.name for column in columns.inputs),
        "encode": columns.encode,
        "features": columns.features,
    }
    return Task(
        kind="classification",
        classes=classes,
        label=columns.label.name,
        shape=(numbers,),
        model=losses.seeded(lambda: losses.linear(numbers, len(classes))),
        columns=columns,
        loss=losses.cross_entropy,
        metrics=losses.classification_metrics,
        decode=losses.probabilities,
        **fields | more,
    )
