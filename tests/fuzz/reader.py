"""A reader of what others send, as the fuzzer sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reader:
    """`read` takes bytes and returns, or raises one of `errors`; `form` is bytes or json."""

    name: str
    examples: tuple[bytes, ...]
    read: Callable[[bytes], Any]
    errors: tuple[type[BaseException], ...]
    form: str = "bytes"
