"""The report's first page in other languages: each English sentence has its translation in a file.

`CODE.toml` beside this module lists them as pairs of `en` and `text`; what stands in braces is
filled in. English needs no file.
"""

import re
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Final

from markupsafe import Markup, escape

LANGUAGES: Final = ("de", "es", "fr", "zh")
"""ISO 639 codes of the languages beside English."""

Translate = Callable[..., Markup]
NARROW_SPACE: Final = "\u202f"
"""Between thousands (ISO 80000-1), where no line breaks."""
_DECIMAL_COMMA: Final = ("de", "es", "fr")
_NUMBER: Final = re.compile(r"-?\d+(,\d{3})*(\.\d+)?(e[+-]?\d+)?")
_PLACE: Final = re.compile(r"\{([a-z]+)\}")


def numerals(text: str, language: str) -> str:
    """A number as a language writes it: 95.3 as 95,3 and 10,000 as 10 000 in German and the like.

    Where a comma is decimal, 10,000 would read as ten. A text that is no number stays.
    """
    if language not in _DECIMAL_COMMA or not _NUMBER.fullmatch(text):
        return text
    return text.replace(",", NARROW_SPACE).replace(".", ",")


@cache
def catalogue(language: str) -> dict[str, str]:
    """The translations by their English sentences; none for "en"."""
    if language == "en":
        return {}
    source = files("privacy").joinpath("report", "languages", f"{language}.toml")
    pairs = tomllib.loads(source.read_text("utf-8"))["sentences"]
    return {pair["en"]: pair["text"] for pair in pairs}


def translator(language: str) -> Translate:
    """A function `t(sentence, **values)`: the sentence in that language, values escaped.

    A sentence without translation stays English: it says what it has to all the same.
    """
    known = catalogue(language)

    def t(sentence: str, **values: object) -> Markup:
        text = str(escape(known.get(sentence, sentence)))
        shown = {name: str(escape(value)) for name, value in values.items()}
        return Markup(_PLACE.sub(lambda m: shown.get(m[1], m[0]), text))  # noqa: S704

    return t
