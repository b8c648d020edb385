"""Who can take part: what each answer means for a round, and when a run can never be reached."""

import pytest

from server.service.attendance import AWAY, NOT_ASKED, attendance
from server.service.queue import SiteAnswer


def answered(
    site: str, status: str, reason: str = "", rounds: int = 5, since: int = 1
) -> SiteAnswer:
    return SiteAnswer(site, status, reason, since, rounds, 0.0)


def test_permanent_answers_are_told_from_those_that_wait() -> None:
    answers = {
        "a": answered("a", "approved"),
        "b": answered("b", "declined", "plan-denied"),
        "c": answered("c", "declined", "plan-not-approved"),
        "d": answered("d", "declined", "paused"),
        "e": answered("e", "failed", "no-answer"),
        "f": answered("f", "approved"),
    }
    found = attendance("abcdefg", set("abcdeg"), answers, 1)
    assert found.able == {"a"}
    assert found.refused == {"b": "plan-denied"}
    assert found.waiting == {
        "c": "plan-not-approved",
        "d": "paused",
        "e": "no-answer",
        "f": AWAY,
        "g": NOT_ASKED,
    }
    assert found.reachable(6)
    assert not found.reachable(7)
    assert found.unreachable(7)[0] == "failed"


@pytest.mark.parametrize(("number", "able"), [(1, True), (17, True), (18, False)])
def test_a_forecast_of_17_rounds_ends_before_round_18(number: int, able: bool) -> None:
    found = attendance(["va"], {"va"}, {"va": answered("va", "approved", rounds=17)}, number)
    assert (found.able == {"va"}) == able
    if not able:
        assert found.unreachable(1) == ("budget", "every site's budget is spent")


def test_a_forecast_counts_from_the_round_in_which_it_was_given() -> None:
    answers = {"va": answered("va", "approved", rounds=2, since=18)}
    assert attendance(["va"], {"va"}, answers, 19).able == {"va"}
    assert attendance(["va"], {"va"}, answers, 20).refused == {"va": "budget-exhausted"}


def test_the_sites_are_listed_with_their_reasons() -> None:
    answers = {"b": answered("b", "declined", "paused")}
    assert str(attendance("ab", {"b"}, answers, 1)) == "0 can take part (a: away; b: paused)"
