"""One run of `gpu.py`: the device, the sizes, the time that is left, and what was found."""

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders.gpu_cases import LARGE, TINY

Turn = Callable[[], object]


class Bench:
    """One run: the device, the sizes, the time that is left, and what was found."""

    def __init__(self, device: str, seconds: float, out: Path) -> None:
        self.on, self.tiny = torch.device(device), device == "cpu"
        self.cases = TINY if self.tiny else LARGE
        self.end, self.out = time.monotonic() + seconds, out
        self.result: dict[str, Any] = {"environment": self.environment()}

    def environment(self) -> dict[str, Any]:
        """What this ran on: no name of the machine, nothing of its owner."""
        facts = {"torch": torch.__version__, "python": sys.version.split()[0]}
        if not self.tiny:
            card = torch.cuda.get_device_properties(self.on)
            facts |= {"card": card.name, "cuda": str(torch.version.cuda)}
            facts["tf32 convolutions"] = str(torch.backends.cudnn.allow_tf32)
        return facts

    def left(self) -> float:
        """Seconds until the script should end."""
        return self.end - time.monotonic()

    def wait(self) -> None:
        """Until the device has done what it was asked."""
        if not self.tiny:
            torch.cuda.synchronize()

    def seconds(self, turns: dict[str, Turn], most: float) -> dict[str, list[float]]:
        """Elapsed time of interleaved turns, at least 3 of each, for about `most` seconds."""
        for turn in turns.values():
            turn()
            self.wait()
        times: dict[str, list[float]] = {name: [] for name in turns}
        end = time.monotonic() + most
        while len(next(iter(times.values()))) < 3 or time.monotonic() < end:
            if times and self.left() < 15 and next(iter(times.values())) and not self.tiny:
                break
            for name, turn in turns.items():
                begin = time.perf_counter()
                turn()
                self.wait()
                times[name].append(time.perf_counter() - begin)
        return times

    def peak(self, turn: Turn) -> int:
        """MB that a turn needs on the device at most, with what lies there before it."""
        if self.tiny:
            turn()
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        turn()
        self.wait()
        return torch.cuda.max_memory_allocated() // 2**20

    def save(self) -> None:
        """Write what there is."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu.json").write_text(json.dumps(self.result, indent=1) + "\n")

    def part(self, name: str, run: Callable[["Bench"], Any]) -> None:
        """Run a part; what it raises is its result."""
        begin = time.monotonic()
        print(f"== {name}, {self.left():.0f} s left", flush=True)
        try:
            self.result[name] = run(self)
        except Exception as error:  # noqa: BLE001 - a part's fault must not cost the others
            traceback.print_exc()
            self.result[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        self.result.setdefault("seconds", {})[name] = round(time.monotonic() - begin, 1)
        print(json.dumps(self.result[name], indent=1), flush=True)
        self.save()


def milliseconds(times: list[float], steps: int = 1) -> float:
    """The median, for one step."""
    return round(statistics.median(times) / steps * 1e3, 4)
