"""Where quotes open and close, against a reader of one byte at a time."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from client.data.formats import quotes as module
from client.data.formats.quotes import line_breaks, quotes

PIECES = (b'"', b",", b"\n", b"\r", b"a", b'""', b'","', b'"\n"')
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1)


def slowly(content: bytes) -> tuple[list[int], list[int], int | None, int] | None:
    """Starts, ends, the open quote and the position after the last line outside of quotes."""
    edge, starts, ends, last = b",\n\r", [], [], 0
    opened: int | None = None
    at = 0
    while at < len(content):
        byte = content[at : at + 1]
        if opened is not None:
            if byte == b'"':
                after = content[at + 1 : at + 2]
                if after == b'"':
                    at += 1
                elif after and after not in edge:
                    return None
                else:
                    starts.append(opened)
                    ends.append(at)
                    opened = None
        elif byte == b'"':
            if at and content[at - 1 : at] not in edge:
                return None
            opened = at
        elif byte == b"\n":
            last = at + 1
        at += 1
    return starts, ends, opened, last


@given(TEXTS.map(b"".join))
@example(b'"a"')
@example(b"x" * 63 + b',"' + b"y" * 70 + b'"\n')
@example(b"x" * 61 + b',""\n"')
def test_quotes_are_those_that_a_slow_reader_finds(content: bytes) -> None:
    expected, found = slowly(content), quotes(content, '"', ",")
    assert (found is None) == (expected is None)
    if found is None or expected is None:
        return
    starts, ends, opened, last = expected
    assert found.spans.starts.tolist() == starts
    assert found.spans.ends.tolist() == ends
    assert found.unclosed == opened
    assert found.end() == last
    for end in {last, len(content) if opened is None else last}:
        spans = [at for at in zip(starts, ends, strict=True) if at[1] < end]
        within = [content[start:stop] for start, stop in spans]
        assert found.multiline(end) == any(b"\n" in value for value in within)
        assert found.lines(end) == content[:end].count(b"\n")


@pytest.mark.parametrize("size", [64, 128])
def test_where_a_slice_ends_changes_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b'"aa","b\nb",c\n' * 40 + b'"open'
    whole = quotes(content, '"', ",")
    monkeypatch.setattr(module, "SLICE", size)
    parts = quotes(content, '"', ",")
    assert whole is not None
    assert parts is not None
    assert whole.spans.starts.tolist() == parts.spans.starts.tolist()
    assert whole.spans.ends.tolist() == parts.spans.ends.tolist()
    assert whole.end() == parts.end()
    assert line_breaks(content) == content.count(b"\n")
