"""`tacit-privacy task check` and `pack`: a task package read, and made into its one file."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from packaging.requirements import Requirement

from privacy.commands.options import Json
from privacy.files import write_atomic
from privacy.printable import printable
from privacy.task_package.archive import SUFFIX, Package, PackageError, load_package
from privacy.task_package.installed import digest_of
from privacy.task_package.manifest import Manifest, manifest_of
from privacy.task_package.source_check import Finding, findings

Where = Annotated[Path, typer.Argument(metavar="PATH", help="The package's folder, or its file.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Read and pack a task package.", no_args_is_help=True)
    group.command()(check)
    group.command()(pack)
    app.add_typer(group, name="task")


def check(path: Where, as_json: Json = False) -> None:
    """Read a package without running any of it; exit 2 where a site would refuse it as it stands.

    `tacit-client task check` also examines its model and its encoding, in a closed process.
    """
    package = load_package(path)
    manifest = manifest_of(package)
    remarks = findings(package, manifest)
    missing = manifest.missing()
    if as_json:
        typer.echo(json.dumps(facts(package, manifest, remarks) | {"missing": missing}))
    else:
        typer.echo(f"{manifest.name} {printable(manifest.version)}: {package.code}")
        for one in remarks:
            typer.echo(f"{'REFUSED' if one.refused else 'judge'}: {one}")
        for text in missing:
            typer.echo(f"missing here: {text}")
        for text in manifest.needs:
            with suppress(PackageError):
                digest = digest_of(Requirement(text).name)
                typer.echo(f'needed, as it is here: [packages] "{text}" = "{digest}"')
    _refuse(remarks)
    if not as_json:
        typer.echo("read: nothing is refused; no line of it was run")


def pack(
    path: Where,
    out: Annotated[
        Path | None, typer.Option(help=f"Where, if not NAME-VERSION{SUFFIX} beside the folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a folder as one file; the same folder gives the same bytes everywhere."""
    package = load_package(path)
    manifest = manifest_of(package)
    _refuse(findings(package, manifest))
    file = out or path.absolute().parent / f"{manifest.name}-{manifest.version}{SUFFIX}"
    write_atomic(file, package.content)
    if as_json:
        typer.echo(json.dumps({"file": str(file), "code": package.code}))
        return
    typer.echo(f"{file}: {len(package.content)} bytes")
    typer.echo("the plan names it so:")
    typer.echo(f'task = "{manifest.name}"\ncode = "{package.code}"')


def facts(package: Package, manifest: Manifest, remarks: tuple[Finding, ...]) -> dict[str, Any]:
    """A package as JSON values."""
    return {
        "name": manifest.name,
        "version": manifest.version,
        "licence": manifest.licence,
        "kind": manifest.kind,
        "code": package.code,
        "files": {name: len(content) for name, content in sorted(package.files.items())},
        "refused": [str(one) for one in remarks if one.refused],
        "judge": [str(one) for one in remarks if not one.refused],
    }


def _refuse(remarks: tuple[Finding, ...]) -> None:
    refused = [one for one in remarks if one.refused]
    if refused:
        more = f" (and {len(refused) - 1} more)" if refused[1:] else ""
        raise PackageError(f"{refused[0]}{more}")
