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
_PLACE: Final = re.compile(r"\{([a-z]+)\}")


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
