"""A CycloneDX 1.6 bill of materials of what an install brings: sbom.py requirements.lock > FILE.

Versions and hashes are the lock's; licences are those that the installed packages declare. A
package has one hash for each of its files, as an index offers them for different machines.
"""

import json
import re
import sys
import uuid
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any

_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def components(lock: str) -> list[dict[str, Any]]:
    """One component for each pin of a lock, in its order."""
    found: list[dict[str, Any]] = []
    for line in lock.splitlines():
        if pin := _PIN.match(line):
            found.append(_component(pin[1], pin[2]))
        for digest in _HASH.findall(line):
            found[-1].setdefault("hashes", []).append({"alg": "SHA-256", "content": digest})
    return found


def _component(name: str, release: str) -> dict[str, Any]:
    plain = re.sub(r"[-_.]+", "-", name).lower()
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{plain}@{release}",
        "name": plain,
        "version": release,
        "purl": f"pkg:pypi/{plain}@{release}",
    }
    licence = _licence(plain)
    if licence:
        component["licenses"] = [licence]
    return component


def _licence(name: str) -> dict[str, Any] | None:
    try:
        about = metadata(name)
    except PackageNotFoundError:  # for another operating system
        return None
    if expression := about.get("License-Expression"):
        return {"expression": expression}
    told = about.get("License") or ""
    if told and len(told) < 60 and "\n" not in told:
        return {"license": {"name": told}}
    classes = [one for one in about.get_all("Classifier") or [] if one.startswith("License")]
    return {"license": {"name": classes[0].split(" :: ")[-1]}} if classes else None


def main() -> None:
    """Print the bill of materials."""
    lock = Path(sys.argv[1]).read_text(encoding="utf-8")
    parts = components(lock)
    parts.append(_component("torch", version("torch").split("+")[0]))
    release = version("tacit")
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, lock)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": f"pkg:pypi/tacit@{release}",
                "name": "tacit",
                "version": release,
                "licenses": [{"expression": "Apache-2.0"}],
            }
        },
        "components": parts,
    }
    print(json.dumps(bill, indent=1))


if __name__ == "__main__":
    main()
