"""Files a report: evidence first, then the figures, the page, the registry entry, and the seal."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from privacy.files import naming
from privacy.identity.certificates import Authority, Request
from privacy.identity.keys import IdentityError, new_signing_key, public_of, signing_public
from privacy.report.bundle.data_protection import impact_assessment, processing_record
from privacy.report.bundle.evidence import collect
from privacy.report.bundle.registry_entry import to_yaml
from privacy.report.bundle.seal import NAME, seal
from privacy.report.html import first_page, to_html
from privacy.report.languages.translation import LANGUAGES
from privacy.report.report import Report, build
from privacy.report.sources import FEDERATION, SITE, ReportError, kind_of, read

FIRST_PAGES: Final = {code: f"first-page.{code}.html" for code in LANGUAGES}
DRAFTS: Final = ("registry.yaml", "dpia.md", "processing-record.md")
FILES: Final = ("report.json", "report.html", *FIRST_PAGES.values(), *DRAFTS, NAME, "evidence")
_LIBRARIES: Final = ("tacit", "dp-accounting", "numpy", "scipy", "cryptography")


def file_report(
    folders: Sequence[Path], out: Path | None = None, *, now: datetime | None = None
) -> tuple[Report, Path, dict[str, str]]:
    """Write the report on `folders` into `out`, by default `report/` in the first of them.

    Returns the report, its folder, and a coordinator's pseudonyms by site. An earlier report there
    is replaced in one step; a folder with anything else in it is refused.
    """
    kinds = [kind_of(folder) for folder in folders]
    out = out or folders[0] / "report"
    _check_free(out)
    now = now or datetime.now(UTC)
    key, certificate, signer = _signer(folders[0], kinds[0], now)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ReportError(f"{out}: expected a place to write a report ({error})") from None
    try:
        with naming(out):
            report, names = _write(making, folders, now, signer)
            sealed = seal(making, report.content["filing"], key, certificate)
            (making / NAME).write_text(sealed.to_json(), "utf-8")
        making.chmod(0o700 if kinds[0] == SITE else 0o755)
        if out.exists():
            shutil.rmtree(out)
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return report, out, names


def _write(
    making: Path, folders: Sequence[Path], now: datetime, signer: str
) -> tuple[Report, dict[str, str]]:
    names: dict[str, str] = {}
    places: list[str] = []
    for folder in folders:
        place = folder.resolve().name
        while place in places:
            place += "-again"
        places.append(place)
        names |= collect(folder, making / "evidence" / place)
    filing: Mapping[str, Any] = {
        "at": now.isoformat(timespec="seconds"),
        "signer": signer,
        "sources": places,
        "versions": _versions(),
    }
    report = build([read(making / "evidence" / place) for place in places], filing)
    (making / "report.json").write_text(report.to_json(), "utf-8")
    content = json.loads(report.to_json())
    (making / "report.html").write_text(to_html(content), "utf-8")
    for language, name in FIRST_PAGES.items():
        (making / name).write_text(first_page(content, language), "utf-8")
    for name, draft in zip(DRAFTS, (to_yaml, impact_assessment, processing_record), strict=True):
        (making / name).write_text(draft(content), "utf-8")
    return report, names


def _check_free(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir() or any(p.name not in FILES for p in out.iterdir()):
        raise ReportError(f"--out {out}: expected a new folder or an earlier report's")


def _signer(folder: Path, kind: str, now: datetime) -> tuple[bytes, bytes | None, str]:
    """The key that signs, the certificate that names it, and the signer in words."""
    home = folder.resolve().parent.parent if kind == FEDERATION else folder
    key_path = home / "signing.key"
    try:
        if kind == FEDERATION and key_path.is_file():
            key = key_path.read_bytes()
            named = _coordinator(home, key, now)
            return key, named, f"the coordinator, key {signing_public(key)[:16]}"
        if kind == SITE and key_path.is_file():
            key = key_path.read_bytes()
            pem = home / "site.pem"
            named = pem.read_bytes() if pem.is_file() else None
            return key, named, f"the site, key {signing_public(key)[:16]}"
        key = _key_of(folder / ("report.key" if kind == SITE else "signing.key"))
    except IdentityError as error:
        raise ReportError(f"{key_path}: {error}") from None
    return key, None, f"a key made in this folder, {signing_public(key)[:16]}"


def _coordinator(home: Path, key: bytes, now: datetime) -> bytes | None:
    """A certificate of the federation's authority for the coordinator's signing key."""
    ca, ca_key, server = home / "ca.pem", home / "ca.key", home / "server.key"
    if not all(path.is_file() for path in (ca, ca_key, server)):
        return None
    authority = Authority(ca.read_bytes(), ca_key.read_bytes())
    wish = Request("coordinator", public_of(server.read_bytes()), signing_public(key))
    return authority.issue(wish, now)


def _key_of(path: Path) -> bytes:
    """The key in a file, which only its owner can read; made if it is not there."""
    if not path.is_file():
        try:
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ReportError(f"{path}: expected a place for a key ({error.strerror})") from None
        with os.fdopen(opened, "wb") as file:
            file.write(new_signing_key())
    return path.read_bytes()


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions
