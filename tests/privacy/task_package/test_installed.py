"""Needed packages by their installed files: one changed byte, and the package does not run."""

import base64
import hashlib
import sys
from pathlib import Path

import pytest

from privacy.task_package.archive import PackageError
from privacy.task_package.installed import digest_of
from privacy.task_package.manifest import parse_manifest
from tests.support.task_packages import MANIFEST


def install(place: Path, monkeypatch: pytest.MonkeyPatch, version: str = "1.0") -> Path:
    """A small distribution as a wheel's installation leaves it; its one module."""
    module, info = place / "tinything.py", place / f"tinything-{version}.dist-info"
    info.mkdir(parents=True)
    module.write_text("answer = 42\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tinything\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    lines = []
    for file in (module, info / "METADATA", info / "INSTALLER"):
        digest = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest())
        name = file.relative_to(place).as_posix()
        lines.append(f"{name},sha256={digest.rstrip(b'=').decode()},{file.stat().st_size}")
    (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/RECORD,,"]) + "\n")
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])
    return module


def needing(digest: str) -> list[str]:
    return parse_manifest(MANIFEST + f'[packages]\n"tinything==1.0" = "{digest}"\n').missing()


def test_a_needed_package_is_known_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert needing("sha256:" + "0" * 64) == ["tinything: must be tinything==1.0, is not installed"]
    module = install(tmp_path / "a", monkeypatch)
    digest = digest_of("tinything")
    assert needing(digest) == []
    other = "sha256:" + "0" * 64
    assert needing(other) == [f"tinything: must be the files of {other}, got those of {digest}"]
    installer = tmp_path / "a" / "tinything-1.0.dist-info" / "INSTALLER"
    installer.write_text("uv\n")  # who installed it says nothing of what it is
    assert digest_of("tinything") == digest
    module.write_text("answer = 43\n")
    assert needing(digest) == ["tinything.py: must be as it was installed, got other bytes"]
    module.unlink()
    with pytest.raises(PackageError, match="must be there as it was installed"):
        digest_of("tinything")


def test_digests_of_several_platforms_and_wrong_ones() -> None:
    both = parse_manifest(
        MANIFEST + f'[packages]\n"numpy" = ["sha256:{"0" * 64}", "{digest_of("numpy")}"]\n'
    )
    assert both.missing() == []
    for wrong in ('"numpy" = "sha256:12"', '"numpy" = []', '"no name!" = "sha256:12"', '"a" = 3'):
        with pytest.raises(PackageError):
            parse_manifest(MANIFEST + f"[packages]\n{wrong}\n")
