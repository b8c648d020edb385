"""Ask and judge: requests go out to the sites, judged answers come back one at a time."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from flwr.app import Message

from privacy.contract.plan import Plan
from privacy.ledger.heads import HeadError
from privacy.statistics.release import SUMS
from server.rounds.aggregation import State
from server.rounds.job import Heads
from server.rounds.messages import Answer, ReplyError, Request
from server.rounds.reply_check import read_reply
from server.rounds.site_grid import LATE, SiteGrid

NO_ANSWER: Final = "no-answer"
_PATIENCE: Final = 0.05

Shapes = Mapping[str, tuple[int, ...]]


def replies(
    grid: SiteGrid,
    pending: dict[str, Request],
    timeout: float | None,
    waiting: Callable[[], None] = lambda: None,
    overdue: dict[str, Request] | None = None,
) -> Iterator[tuple[Request, Message]]:
    """Replies as they arrive, each taken out of `pending`, for at most `timeout` seconds.

    `waiting` is called between looks; what it raises ends the wait. Whatever is left in `pending`
    was not answered in time. Replies to the `overdue` requests of earlier rounds come as well, but
    nobody waits for them, unless they are all that there is. A reply that its grid calls late joins
    them at the end.
    """
    older, late = overdue or {}, dict[str, Request]()
    deadline = time.monotonic() + timeout if timeout is not None else None
    alone = not pending
    try:
        while pending or (alone and older):
            arrived = deque(grid.pull_messages([*pending, *older]))
            answered = bool(arrived)
            while arrived:  # given away one by one: no reply stays in memory here
                number = arrived[0].metadata.reply_to_message_id
                request = pending.pop(number, None) or older.pop(number, None)
                if request is not None and overdue is not None and _is_late(arrived[0]):
                    late[number] = request
                elif request is not None:
                    yield request, arrived.popleft()
                    continue
                arrived.popleft()
            if deadline is not None and time.monotonic() >= deadline:
                return
            waiting()
            if (pending or older) and not answered:
                grid.wait(_PATIENCE)
    finally:
        if overdue is not None:
            overdue |= late


def there_already(grid: SiteGrid, overdue: dict[str, Request]) -> Iterator[tuple[Request, Message]]:
    """The replies to overdue requests that have come, each taken out of `overdue`."""
    while overdue:
        arrived = list(grid.pull_messages(list(overdue)))
        if not arrived:
            return
        for message in arrived:
            request = overdue.pop(message.metadata.reply_to_message_id, None)
            if request is not None:
                yield request, message


def _is_late(message: Message) -> bool:
    return message.has_error() and message.error.code == LATE


def judged(
    message: Message,
    request: Request,
    plan: Plan,
    shapes: Shapes,
    heads: Heads | None,
    check: Callable[[Answer], None] = lambda answer: None,
) -> Answer:
    """The site's answer; "failed" where it is malformed, unpaid, or its ledger's proof is wrong.

    `check(answer)` raises ReplyError where a paid update must not count: it stays paid.
    """
    site = request.site
    try:
        answer = read_reply(message, request, plan, shapes)
        paid = answer.status == "trained" and plan.noised_at_site
        if paid and not answer.events:
            return Answer(site, "failed", "unpaid")
        if heads is not None and answer.proof is not None:
            heads.accept(site, request.round, answer)
        elif heads is not None and paid:
            return Answer(site, "failed", "ledger-untrusted")
    except ReplyError as error:
        return Answer(site, "failed", str(error))
    except HeadError:
        return Answer(site, "failed", "ledger-untrusted")
    try:
        check(answer)
    except ReplyError as error:
        return replace(answer, status="failed", reason=str(error), arrays=None, metrics=None)
    return answer


def shapes_of(state: State, plan: Plan) -> Shapes:
    """The shapes that every update must have; of statistics the sums alone come back."""
    names = state.weights if plan.statistics is None else (SUMS,)
    return {name: state.weights[name].shape for name in names}


def without_arrays(answer: Answer) -> Answer:
    """The answer for the record: what was released is not part of it."""
    return replace(answer, arrays=None, below=None, proof=None, words=None)
