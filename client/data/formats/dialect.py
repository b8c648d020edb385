"""How a text file is written, and where it cannot be read."""

from dataclasses import dataclass

from client.tasks.rows import TaskError


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a text file is written; `quote` and `escape` are "" where the file has none."""

    delimiter: str = ","
    quote: str = '"'
    escape: str = ""
    encoding: str = "utf-8"
    decimal: str = "."
    multiline: bool = False


class Malformed(TaskError):
    """A file that cannot be read as the rows that it holds; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
