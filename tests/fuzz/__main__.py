"""`python -m tests.fuzz [--seconds N] [--reader NAME] [--seed N] [--coverage]`.

Mutates what each reader reads for its share of the time; exit 1 where a reader raises what it
should not, or takes longer than 5 s. With `--coverage`, atheris (libFuzzer) guides the mutations.
"""

import argparse
import logging
import os
import random
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

SLOWEST = 5.0
CORPUS = Path(__file__).parent / "corpus"


def main() -> int:
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--reader", action="append", default=[])
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--coverage", action="store_true")
    options = parser.parse_args()
    if options.coverage:
        return guided(options.reader, options.seconds)
    from tests.fuzz.readers import readers

    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    with readers() as known:
        chosen = [one for one in known if not options.reader or one.name in options.reader]
        each = options.seconds / max(len(chosen), 1)
        total, faults = 0, list[str]()
        for reader in chosen:
            tried, found = fuzz(reader, each, random.Random(f"{seed}/{reader.name}"))
            total += tried
            faults += found
    print(f"{total} inputs, {len(faults)} faults")
    return int(bool(faults))


def fuzz(reader: object, seconds: float, source: random.Random) -> tuple[int, list[str]]:
    """Mutate a reader's examples for so long; how many inputs, and the faults in one line each."""
    from tests.fuzz.mutations import mutated_bytes, mutated_json
    from tests.fuzz.reader import Reader

    assert isinstance(reader, Reader)
    mutate = mutated_json if reader.form == "json" else mutated_bytes
    examples = [*reader.examples, *corpus(reader.name)]
    counts: Counter[str] = Counter()
    faults: dict[str, str] = {}
    slowest, tried, end = 0.0, 0, time.monotonic() + seconds
    for example in examples:
        tried += 1
        attempt(reader, example, counts, faults)
    while time.monotonic() < end:
        example = source.choice(reader.examples)
        content = mutate(example, source)
        began = time.process_time()
        attempt(reader, content, counts, faults)
        took = time.process_time() - began
        slowest = max(slowest, took)
        tried += 1
        if took > SLOWEST:
            faults["slow"] = f"{reader.name}: {took:.1f} s for {content[:200]!r}"
    print(f"{reader.name:<12} {tried:>9} {dict(counts)} slowest {slowest:.2f} s", flush=True)
    for line in faults.values():
        print("   ", line, flush=True)
    return tried, list(faults.values())


def attempt(reader: object, content: bytes, counts: Counter[str], faults: dict[str, str]) -> None:
    """One input: accepted, refused, or a fault."""
    from tests.fuzz.reader import Reader

    assert isinstance(reader, Reader)
    try:
        reader.read(content)
        counts["accepted"] += 1
    except reader.errors:
        counts["refused"] += 1
    except Exception as error:  # noqa: BLE001 - every other error is a fault
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        counts[place] += 1
        known = f"{reader.name}: {place}: {str(error)[:100]!r} for {content[:300]!r}"
        faults.setdefault(place, known)


def corpus(name: str) -> list[bytes]:
    """Inputs that once were faults."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def guided(names: list[str], seconds: float) -> int:
    """Coverage-guided runs, a process for each reader, since libFuzzer ends its process."""
    if not names:
        from tests.fuzz.readers import readers

        with readers() as known:
            names = [one.name for one in known]
    if len(names) > 1:
        each = max(1, int(seconds / len(names)))
        words = [sys.executable, "-m", "tests.fuzz", "--coverage", "--seconds", str(each)]
        ended = {n: subprocess.run([*words, "--reader", n], check=False) for n in names}
        failed = [name for name, one in ended.items() if one.returncode]
        print(f"failed: {', '.join(failed) or 'none'}")
        return int(bool(failed))
    import atheris  # type: ignore[import-not-found]

    packages = ["privacy", "client", "server"]
    with atheris.instrument_imports(include=packages):
        from tests.fuzz.readers import readers
    with readers() as known:
        (reader,) = [one for one in known if one.name == names[0]]

        def one_input(content: bytes) -> None:
            try:
                reader.read(content)
            except reader.errors:
                return

        seeds = Path(os.environ.get("TMPDIR", "/tmp")) / f"tacit-fuzz-{os.getpid()}"
        seeds.mkdir()
        for number, example in enumerate(reader.examples):
            (seeds / str(number)).write_bytes(example)
        limits = [f"-max_total_time={int(seconds)}", "-timeout=10", "-rss_limit_mb=4096"]
        atheris.Setup([sys.argv[0], str(seeds), *limits, "-verbosity=0"], one_input)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
