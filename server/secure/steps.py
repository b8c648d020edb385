"""The messages of secure aggregation that bring no weights, and their answers."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from privacy.contract.outputs import PUBLIC, REASONS
from server.rounds.messages import REPLY, REQUEST, ReplyError, Request


class Declined(ReplyError):
    """A site that says with a code of its own that it does not go on."""


def step(grid: Grid, node: int, request: Request, more: Mapping[str, str]) -> Message:
    """A message of secure aggregation that brings no weights."""
    fields: dict[str, Any] = {
        "run": request.run,
        "round": request.round,
        "site": request.site,
        "plan": request.plan,
        **more,
    }
    content = RecordDict({REQUEST: ConfigRecord(fields)})
    return grid.create_message(content, "query.secure", node, str(request.round))


def read_step(message: Message, request: Request) -> str:
    """The text that a site answers to a step; Declined, or ReplyError."""
    if message.has_error():
        raise ReplyError("no-answer")
    fields = message.content.get(REPLY)
    if not isinstance(fields, ConfigRecord) or set(message.content) != {REPLY}:
        raise ReplyError("bad-reply")
    status, reason, text = fields.get("status"), fields.get("reason"), fields.get("message")
    if fields.get("run") != request.run or fields.get("round") != request.round:
        raise ReplyError("old-reply")
    if fields.get("site") != request.site or set(fields) - {*PUBLIC}:
        raise ReplyError("bad-reply")
    if status == "declined" and isinstance(reason, str) and reason in REASONS and reason:
        raise Declined(reason)
    if status != "ready" or not isinstance(text, str):
        raise ReplyError("bad-reply")
    return text
