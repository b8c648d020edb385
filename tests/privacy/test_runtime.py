"""What is imported only when somebody asks for it."""

import importlib
import sys
from pathlib import Path

import pytest

from privacy.runtime import defer

BODY = """
from deferred_package.light import LIGHT
HEAVY = 2
__all__ = ["HEAVY", "LIGHT"]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "deferred_package"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(BODY)
    (tmp_path / name / "light.py").write_text("LIGHT = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in (name, f"{name}.light"):
        monkeypatch.setitem(sys.modules, module, None)  # what is taken back at the end
        del sys.modules[module]
    defer(name)
    return name


def test_a_submodule_is_imported_without_its_package(package: str) -> None:
    assert importlib.import_module(f"{package}.light").LIGHT == 1
    assert "HEAVY" not in vars(sys.modules[package])


def test_what_the_package_itself_has_is_there_for_whoever_asks(package: str) -> None:
    light = importlib.import_module(f"{package}.light")
    whole = importlib.import_module(package)
    assert (whole.HEAVY, whole.LIGHT, whole.light) == (2, 1, light)
    assert whole.__all__ == ["HEAVY", "LIGHT"]
    assert importlib.import_module(package) is whole


def test_a_name_that_it_lacks_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        importlib.import_module(package).nothing


def test_what_is_loaded_or_not_installed_stays_as_it_is(package: str) -> None:
    whole = importlib.import_module(package)
    defer(package)
    defer("no_such_package")
    assert sys.modules[package] is whole
    assert "no_such_package" not in sys.modules
