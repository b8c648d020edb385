"""The verdict on a round needs a ledger that can be relied on."""

from pathlib import Path

from tests.support.desk import Desk


def test_a_ledger_that_was_changed_is_told_by_its_code_and_no_row_is_looked_at(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path)
    assert desk.said(desk.ask()) == ("trained", "")
    looked, content = desk.looked, desk.path.read_bytes()
    desk.path.write_bytes(content.replace(b'"sigma": 2.0', b'"sigma": 9.0'))
    reply = desk.ask(round=2)
    assert desk.said(reply) == ("declined", "ledger-untrusted")
    assert desk.looked == looked
    assert desk.heard[-1][1]["reason"] == "ledger-untrusted"
    assert "events" not in reply.content.config_records["reply"]
