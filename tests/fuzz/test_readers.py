"""Every reader survives its corpus, and two minutes of mutations."""

import random

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.readers import readers


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_reader_raises_or_hangs_for_two_minutes() -> None:
    with readers() as known:
        results = [fuzz(one, 120 / len(known), random.Random(one.name)) for one in known]
    assert [fault for _, faults in results for fault in faults] == []
    assert sum(tried for tried, _ in results) > 5_000


@pytest.mark.long
def test_every_reader_accepts_its_examples_and_survives_its_corpus() -> None:
    with readers() as known:
        for reader in known:
            for example in reader.examples:
                reader.read(example)
            _, faults = fuzz(reader, 0.0, random.Random(0))
            assert faults == []
