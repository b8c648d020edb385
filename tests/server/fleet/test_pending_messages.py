"""The messages that wait: those of a node and those that are settled are found without a search."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.fleet.pending_message import PendingMessage, PendingMessages

steps = st.lists(
    st.tuples(st.sampled_from(["add", "settle", "pop"]), st.integers(0, 5), st.integers(0, 2)),
    max_size=30,
)


def item(node: int) -> PendingMessage:
    message: Any = None
    return PendingMessage(message, node, f"site-{node}", frozenset(), 0)


@given(steps)
def test_a_registry_says_what_a_search_through_all_would_say(
    taken: list[tuple[str, int, int]],
) -> None:
    pending, plain = PendingMessages(), dict[str, PendingMessage]()
    settled: list[str] = []
    for what, which, node in taken:
        number = str(which)
        if what == "add" and number not in plain:
            plain[number] = item(node)
            pending.add(number, plain[number])
        elif what == "settle":
            pending.settle(number)
            if number in plain and number not in settled:
                settled.append(number)
        elif what == "pop":
            assert pending.pop(number) is plain.pop(number, None)
            settled = [one for one in settled if one != number]
        assert dict(pending.items()) == plain
        assert (list(pending.settled), len(pending)) == (settled, len(plain))
        for one in range(3):
            of_node = {n: i for n, i in plain.items() if i.node == one}
            assert dict(pending.of_node(one)) == of_node
        assert all((str(n) in pending) == (str(n) in plain) for n in range(6))
        assert pending.get(number) is plain.get(number)
