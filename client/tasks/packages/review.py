"""What a person sees who must decide on a package: everything that it is, says and would do."""

import difflib
from collections.abc import Mapping
from typing import Any

from client.tasks.packages.closed_process import Closed
from client.tasks.packages.confinement import Bounds
from client.tasks.packages.source import backbones_of
from client.tasks.rows import TaskError
from privacy.printable import printable
from privacy.task_package.archive import MANIFEST, SOURCE, Package
from privacy.task_package.manifest import Manifest, manifest_of
from privacy.task_package.source_check import findings, imports

AUDITING = Bounds(memory=6 * 2**30, cpu=1800, silence=1800.0)
EXAMINING = Bounds(memory=4 * 2**30, cpu=180, silence=180.0)


def examined(
    package: Package, options: Mapping[str, Any] | None = None, *, bounds: Bounds = EXAMINING
) -> dict[str, Any]:
    """The examination's report, made in a closed process; `refused` says why not, or is ""."""
    manifest = manifest_of(package)
    refused = [str(one) for one in findings(package, manifest) if one.refused]
    if refused:
        return {"refused": refused[0], "missing": []}
    if missing := manifest.missing():
        return {"refused": missing[0], "missing": []}
    request = {"mode": "examine", "options": dict(options or {})}
    try:
        backbones = backbones_of(manifest).values()
        with Closed(package, backbones=backbones, bounds=bounds) as closed:
            frames = list(closed.ask(request, {}))
    except TaskError as error:
        return {"refused": str(error), "missing": []}
    facts = frames[-1].facts
    report = facts.get("report")
    if not isinstance(report, dict) or not isinstance(report.get("refused"), str):
        return {"refused": f"{SOURCE}: gave no report", "missing": []}
    return {**report, "missing": facts.get("missing", [])}


def audit_package(package: Package, epsilon: float) -> dict[str, Any]:
    """The audit's result, made in a closed process; TaskError where there is none."""
    request = {"mode": "audit", "options": {}, "epsilon": epsilon}
    manifest = manifest_of(package)
    refused = [str(one) for one in findings(package, manifest) if one.refused]
    if refused:
        raise TaskError(refused[0])
    backbones = backbones_of(manifest).values()
    with Closed(package, backbones=backbones, bounds=AUDITING) as closed:
        frames = list(closed.ask(request, {}))
    report = frames[-1].facts.get("report")
    if not isinstance(report, dict) or not isinstance(report.get("verdict"), str):
        raise TaskError(f"{SOURCE}: gave no audit")
    return report


def shown(package: Package, report: Mapping[str, Any] | None = None) -> list[str]:
    """A package for a person, line by line; nothing in it can hide what stands here."""
    manifest = manifest_of(package)
    remarks = findings(package, manifest)
    refused = [one for one in remarks if one.refused]
    lines = [
        f"{manifest.name} {printable(manifest.version)}  {package.code}",
        f"licence: {printable(manifest.licence)}",
    ]
    if manifest.description:
        lines.append(f"it says of itself: {printable(manifest.description, 300)}")
    lines += [f"learns: {_learnt(manifest)}", "files:"]
    lines += [f"  {name}: {len(data)} bytes" for name, data in sorted(package.files.items())]
    lines.append(f"imports: {', '.join(printable(n) for n in imports(package)) or 'nothing'}")
    if manifest.needs:
        lines.append(f"needs: {', '.join(printable(n) for n in manifest.needs)}")
    for name, digests in sorted(manifest.packages.items()):
        lines.append(f"needs the files of {printable(name)}: {' or '.join(digests)}")
    for name, code in sorted(manifest.backbones.items()):
        lines.append(f"needs the frozen model {printable(name)}: {code}")
    for name, rule in sorted(manifest.options.items()):
        lines.append(f"option {name}: {printable(rule.expected, 200)}, {rule.default} if not set")
    lines.append(f"refused: {len(refused) or 'nothing'}")
    lines += [f"  {one}" for one in refused]
    judged = [one for one in remarks if not one.refused]
    lines.append(f"for you to judge: {len(judged) or 'nothing'}")
    lines += [f"  {one}" for one in judged]
    lines += [
        "reads and encodes: in a process without network, secrets and write access",
        "trains: its model and loss run beside the product; once approved they are trusted like it",
        "would leave: what the plan says (tacit-client run --dry-run), and nothing else",
    ]
    if report is not None:
        lines += _examination(report)
    return lines


def _learnt(manifest: Manifest) -> str:
    x = ", ".join(f"{n} {list(a.shape)} {a.dtype}" for n, a in manifest.x.items())
    what = f"{manifest.kind} of {printable(manifest.label)}"
    if manifest.classes:
        names = ", ".join(printable(c, 30) for c in manifest.classes[:8])
        what += f" ({names}{', ..' if manifest.classes[8:] else ''})"
    return f"{what} from {x}"


def _examination(report: Mapping[str, Any]) -> list[str]:
    lines = []
    if report.get("missing"):
        names = ", ".join(printable(n) for n in report["missing"])
        lines.append(f"NOT CLOSED WHOLLY: this machine has no {names}")
    if report["refused"]:
        return [*lines, f"examined: REFUSED: {printable(report['refused'], 300)}"]
    facts = [f"{printable(k)} {printable(v, 200)}" for k, v in report.items() if k != "refused"]
    return [*lines, "examined: the model can be trained", *(f"  {f}" for f in facts if f)]


def difference(old: Package, new: Package) -> list[str]:
    """What another package changes, line by line, with both sides' text."""
    lines = [f"from {old.code}", f"to   {new.code}"]
    for name in sorted({*old.files, *new.files}):
        before, after = old.files.get(name), new.files.get(name)
        if before == after:
            continue
        if before is None or after is None:
            lines.append(f"{name}: {'new' if before is None else 'gone'}")
        if name in (MANIFEST, SOURCE) and before is not None and after is not None:
            a, b = (part.decode("utf-8", "replace").splitlines() for part in (before, after))
            changes = difflib.unified_diff(a, b, f"a/{name}", f"b/{name}", lineterm="")
            lines += [printable(line, 400) for line in changes]
        elif before is not None and after is not None:
            lines.append(f"{name}: {len(before)} -> {len(after)} bytes, other contents")
    first, then = (
        {str(one).split(": ", 1)[1] for one in findings(p, manifest_of(p))} for p in (old, new)
    )
    lines += [f"now does: {text}" for text in sorted(then - first)]
    return lines
