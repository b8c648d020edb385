"""Every sentence of the report's first page has its translation, with the same places to fill."""

import re
from pathlib import Path

import pytest

from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.report.html import first_page, to_html
from privacy.report.languages.translation import LANGUAGES, catalogue, numerals, translator
from privacy.report.report import VIEWS, build
from privacy.report.sources import read
from privacy.report.text import GLOSSARY, not_covered, unit_words
from tests.support.run_folders import run_folder

FOLDER = Path(__file__).parents[4] / "privacy" / "report"
PLACES = re.compile(r"\{[a-z]+\}")
LINKS = {
    "This is a translation of the first page of report.html, which is in English and has all "
    "figures."
}


def plans() -> list[Plan]:
    return [
        load_plan("digits"),
        load_plan("digits", ["unit=client", "sigma=2"]),
        load_plan("digits", ["unit=none"]),
    ]


def sentences() -> set[str]:
    templates = "".join(
        (FOLDER / name).read_text() for name in ("first_page.html", "first_page_alone.html")
    )
    written = set(re.findall(r'\bt\("([^"]+)"', templates))
    drawn = set(re.findall(r'\bt\(\s*"([^"]+)"', (FOLDER / "figures.py").read_text()))
    risks = {
        text for plan in plans() for groups in (True, False) for text in not_covered(plan, groups)
    }
    words = {unit_words(unit) for unit in ("record", "subject", "client", "none")}
    terms = {text for pair in GLOSSARY for text in pair}
    return written | drawn | risks | words | terms | set(VIEWS.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_catalogue_has_every_sentence_and_no_other(language: str) -> None:
    known = catalogue(language)
    assert sentences() - set(known) == set()
    assert set(known) - sentences() == set()
    for sentence, text in known.items():
        assert text.strip()
        assert sorted(PLACES.findall(text)) == sorted(PLACES.findall(sentence)), sentence
        if len(sentence) > 30:
            assert text != sentence


def test_values_are_escaped_and_what_is_not_known_stays_english() -> None:
    t = translator("de")
    assert t("What could anybody learn about {unit}?", unit="<b>{p}") == (
        "Was könnte jemand erfahren über: &lt;b&gt;{p}?"
    )
    assert t("no sentence <i>") == "no sentence &lt;i&gt;"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_first_page_has_the_reports_figures_and_no_outside_resource(
    language: str, tmp_path: Path
) -> None:
    content = build([read(run_folder(tmp_path / "run"))], {"at": "2026-01-02T03:04:05"}).content
    page, whole = first_page(content, language), to_html(content)
    figures = re.compile(r"\d+\.\d+")
    tiles = re.search(r'<dl class="tiles">.*?</dl>', page, re.S)
    assert tiles is not None
    written = tiles[0] if language == "zh" else tiles[0].replace(",", ".")
    assert set(figures.findall(written)) <= set(figures.findall(whole))
    assert figures.findall(written)
    assert language == "zh" or not figures.search(tiles[0])
    assert f'<html lang="{language}">' in page
    assert "What could anybody learn" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    ("text", "german"),
    [
        ("95.3", "95,3"),
        ("10,000", "10\u202f000"),
        ("1,234,567.5", "1\u202f234\u202f567,5"),
        ("1e-05", "1e-05"),
        ("1.5e-05", "1,5e-05"),
        ("–", "–"),
        ("run 1.5, 2", "run 1.5, 2"),
    ],
)
def test_numbers_are_written_as_a_language_reads_them(text: str, german: str) -> None:
    assert {numerals(text, language) for language in ("de", "es", "fr")} == {german}
    assert numerals(text, "en") == numerals(text, "zh") == text
