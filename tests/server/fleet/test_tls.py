"""A flood of refused connections cannot flood the log."""

from typing import Any

import pytest

from server.fleet.tls import Refusals


def test_ten_lines_a_second_and_then_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []
    now = [100.0]
    monkeypatch.setattr("server.fleet.tls.time.monotonic", lambda: now[0])
    refuse = Refusals(lambda event, **facts: lines.append(facts))
    for _ in range(250):
        refuse("tls: handshake", ("127.0.0.1", 5))
    assert len(lines) == 10
    now[0] = 101.0
    refuse("no certificate", None)
    assert lines[10:] == [
        {"why": "tls: handshake", "more": 240},
        {"why": "no certificate", "peer": ""},
    ]
