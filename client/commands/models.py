"""`predict`, `evaluate`, `export`, `serve`, `adapt`: a released model where the data is.

What needs torch is imported by the command that runs: `--help` is an instant.
"""

import importlib.util
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privacy.runtime import loading

if TYPE_CHECKING:
    from client.scoring.batch import Start
    from client.scoring.predictions import Ready

Name = Annotated[
    str,
    typer.Option("--model", help="A run folder, a checkpoint, an exported file, or latest."),
]
Data = Annotated[
    Path,
    typer.Option(
        "--data", help="The rows: CSV, Parquet, Arrow, npz, idx, a folder, a source.toml."
    ),
]
Directory = Annotated[
    Path | None, typer.Option("--dir", help="The site's folder: whom it knows, what it keeps.")
]
Key = Annotated[
    list[str] | None,
    typer.Option("--key", help="A further signer's public key: its hex, or a file with it."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that do not fit.")]
Package = Annotated[
    Path | None,
    typer.Option("--task", help="The task package of the model: its folder, or its file."),
]
Device = Annotated[str, typer.Option("--device", help="cpu, or a GPU such as cuda.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, max=256, help="Workers that share the file: each a CPU."),
]
EngineName = Annotated[
    str, typer.Option("--engine", help="Where workers are: processes of this machine, or ray.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT", help="With --engine ray: the cluster's; else RAY_ADDRESS."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the client's."""
    for command in (predict, evaluate, export, serve, adapt):
        app.command()(command)


def predict(
    model: Name,
    data: Data,
    out: Annotated[
        Path | None, typer.Option("--out", help="A .csv, .parquet or .jsonl file.")
    ] = None,
    explain: Annotated[
        int, typer.Option("--explain", min=0, max=1000, help="Explain the first N rows.")
    ] = 0,
    ident: Annotated[
        str | None, typer.Option("--id", help="A column of the file to carry along.")
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Those of all classes, a column each."),
    ] = False,
    json_: Json = False,
    skip_bad: SkipBad = False,
    device: Device = "cpu",
    workers: Workers = None,
    engine: EngineName = "processes",
    address: Address = None,
    directory: Directory = None,
    key: Key = None,
    task: Package = None,
) -> None:
    """Predict every row of a file with a released model; nothing leaves this machine.

    With --engine ray rows go to the workers of your own cluster.
    """
    _check_engine(engine, workers, address, device)
    with loading():
        from client.commands.shared import explained, package_of, progress, tell_faults
        from client.models.loading import Model
        from client.scoring import batch as predicting

    alone = engine == "processes" and (workers or 1) == 1 and device == "cpu"
    light = alone and not explain and task is None
    ready = _ready(model, directory, key, task, device, light=light, quiet=json_)
    released_model = ready.model
    package = None
    if isinstance(released_model, Model):
        package = package_of(released_model.task, directory, task)
    with progress("predicting") as tell:
        tally = predicting.run(
            ready,
            data,
            out,
            sys.stdout,
            skip_bad=skip_bad,
            explain=explain,
            as_json=json_,
            ident=ident,
            every=probabilities,
            tell=tell,
            start=_engine(engine, workers, address),
            package=package,
        )
    lines = []
    if isinstance(released_model, Model) and explain:
        lines = explained(released_model, tally, out)
    tell_faults(tally)
    facts = predicting.side_card(ready, data, tally) | {"out": str(out) if out else None}
    if explain:
        facts["explanations"] = lines
    if json_ and out is None:
        sys.stdout.write(", " + json.dumps(facts)[1:] + "\n")
    elif json_:
        typer.echo(json.dumps(facts))
    else:
        for line in lines if out is None else ():
            typer.echo(json.dumps(line), err=True)
        where = f" -> {out} (card: {predicting.card_path(out).name})" if out else ""
        typer.echo(f"{tally.rows} rows predicted, {tally.skipped} skipped{where}", err=True)


def _ready(
    name: str,
    directory: Path | None,
    keys: list[str] | None,
    task: Path | None,
    device: str,
    *,
    light: bool,
    quiet: bool,
) -> "Ready":
    """The model ready to predict; where `light`, an exported one of a table without torch."""
    with loading():
        from client.commands.shared import opened, say_origin
        from client.models.loading import find
        from client.models.trusted_keys import known_keys

    path = find(name, directory)
    if light and path.suffix == ".onnx":
        with loading():
            from client.inference.exported import exported
        ready = exported(path, known_keys(directory, keys or ()))
        if ready is not None:
            if not quiet:
                say_origin(ready.model)
            return ready
    with loading():
        from client.inference.predictor import predictor, settle_threads

    whole = predictor(opened(name, directory, keys, task, quiet=quiet), device)
    settle_threads(whole)
    return whole


def _check_engine(engine: str, workers: int | None, address: str | None, device: str) -> None:
    """Refuse what does not fit together, before anything is loaded."""
    if engine not in ("processes", "ray"):
        raise ValueError(f"--engine must be processes or ray, got {engine!r}")
    if address is not None and engine != "ray":
        raise ValueError("--address must be used with --engine ray")
    if device != "cpu" and (engine == "ray" or (workers or 1) > 1):
        raise ValueError(f"--device must be cpu with --workers or --engine ray, got {device!r}")


def _engine(engine: str, workers: int | None, address: str | None) -> "Start | None":
    """How workers are started; None for this process alone."""
    if engine == "ray":
        if importlib.util.find_spec("ray") is None:
            raise ValueError("--engine ray needs Ray: pip install 'tacit[ray]'")
        from client.scoring.actors import Actors

        return lambda work: Actors(work, workers, address)
    if workers is None or workers == 1:
        return None
    from client.scoring.processes import Processes

    return lambda work: Processes(work, workers)


def evaluate(
    model: Name,
    data: Data,
    group: Annotated[str | None, typer.Option("--group", help="A column to compare by.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="An .html page.")] = None,
    smallest: Annotated[
        int, typer.Option("--smallest", min=1, help="Rows of the smallest group shown.")
    ] = 20,
    json_: Json = False,
    skip_bad: SkipBad = False,
    device: Device = "cpu",
    directory: Directory = None,
    key: Key = None,
    task: Package = None,
) -> None:
    """Measure a released model on this site's own labelled rows; the figures stay here."""
    with loading():
        from client.commands.shared import opened, progress, tell_faults
        from client.data.input_files import chunks
        from client.inference.evaluation import evaluate as measured
        from client.inference.html import evaluation_page
        from client.inference.predictor import predictor, settle_threads
        from client.scoring.tally import Tally
        from privacy.files import write_atomic

    of = opened(model, directory, key, task, quiet=json_)
    ready, tally = predictor(of, device), Tally(name=f"{data}: ")
    settle_threads(ready)
    with progress("evaluating") as tell:
        source = chunks(of.task, data, labels=True, group=group)
        evaluation = measured(
            of.task, ready.predict(tally.watch(source, skip_bad, tell)), smallest=smallest
        )
    if out is not None:
        write_atomic(out, evaluation_page(of, evaluation).encode())
    tell_faults(tally)
    if json_:
        facts = {"model": of.digest, "origin": of.origin.words, **evaluation.to_dict()}
        typer.echo(json.dumps(facts | {"page": str(out) if out else None}))
        return
    typer.echo(f"{evaluation.rows} rows ({evaluation.skipped} skipped)")
    for name, value in evaluation.metrics.items():
        typer.echo(f"  {name:<17} {value:.4f}")
    for one in evaluation.groups:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in one.metrics.items())
        mark = "  BEHIND the others" if one.behind else ""
        typer.echo(f"  {one.name} ({one.rows} rows): {figures}{mark}")
    if evaluation.suppressed:
        typer.echo(f"  {evaluation.suppressed} small groups are not shown")
    if out is not None:
        typer.echo(f"page: {out} (for this site alone)")


def export(
    model: Name,
    format_: Annotated[
        str, typer.Option("--format", help="safetensors, onnx, onnx-int8 or onnx-fp16.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="The file to write.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Labelled rows to compare on, as well.")
    ] = None,
    prune: Annotated[
        float, typer.Option("--prune", help="The share of weights, the smallest, set to zero.")
    ] = 0.0,
    json_: Json = False,
    directory: Directory = None,
    key: Key = None,
    task: Package = None,
) -> None:
    """Write a released model in another form, its card inside, compared on the spot."""
    from client.commands.shared import opened, rows
    from client.inference.export import export as exported
    from client.inference.export import suffix_of
    from client.models.loading import ModelError
    from client.models.trusted_keys import sign_beside
    from privacy.files import write_atomic

    if out is not None and out.suffix != (wanted := suffix_of(format_)):
        raise ModelError(f"out: expected a name that ends with {wanted}, got {out}")
    of = opened(model, directory, key, task, quiet=json_)
    private = None if data is None else rows(of, data)
    file = exported(of, format_, private, prune=prune)
    form = format_.removeprefix("safetensors").removeprefix("onnx") + "-pruned" * bool(prune)
    name = f"{of.task.name}-{of.card.round:06d}{form}"
    path = out or Path(name + suffix_of(format_))
    write_atomic(path, file.content)
    sign_beside(path, file.content, of.card.run, of.card.round, directory)
    facts: dict[str, Any] = {
        "out": str(path),
        "format": format_,
        "bytes": len(file.content),
        "agreement": [asdict(agreement) for agreement in file.agreements],
    }
    if json_:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{path}: {len(file.content)} bytes, signed beside it")
    for agreement in file.agreements:
        lost = "" if agreement.lost is None else f", {agreement.lost:.2f} points of accuracy lost"
        typer.echo(
            f"  {agreement.rows} {agreement.source}: outputs within "
            f"{agreement.difference:.2g}, {100 * agreement.same:.2f} % same predictions{lost}"
        )


def serve(
    model: Name,
    listen: Annotated[str, typer.Option("--listen", help="HOST:PORT.")] = "127.0.0.1:8080",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="A file with the token to ask for.")
    ] = None,
    batch: Annotated[int, typer.Option("--max-batch", min=1, help="Rows a request.")] = 1024,
    body: Annotated[int, typer.Option("--max-body", min=1, help="Bytes a request.")] = 4_194_304,
    refresh: Annotated[
        float, typer.Option("--refresh", min=0.1, help="Seconds between looks for a newer model.")
    ] = 5.0,
    directory: Directory = None,
    key: Key = None,
    task: Package = None,
) -> None:
    """Answer predictions over HTTP on this machine, always with the newest released model."""
    with loading():
        from client.commands.shared import say_origin, tasks_of
        from client.models.loading import find, load
        from client.models.trusted_keys import known_keys
        from client.serving.address import Limits, listening
        from client.serving.server import run

    trust = known_keys(directory, key or ())
    where = listening(listen, token_file)
    tasks = tasks_of(directory, task)
    of = load(find(model, directory), trust, tasks)
    say_origin(of)
    run(
        of,
        where,
        Limits(body=body, rows=batch),
        newest=lambda: find(model, directory),
        trust=trust,
        refresh=refresh,
        tasks=tasks,
    )


def adapt(
    data: Data,
    model: Annotated[
        str | None, typer.Option("--model", help="The model whose last layer is fitted.")
    ] = None,
    towards: Annotated[
        str | None,
        typer.Option("--towards", help="In its place: fit all layers, held near this model."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A .safetensors file.")] = None,
    json_: Json = False,
    skip_bad: SkipBad = False,
    directory: Directory = None,
    key: Key = None,
    task: Package = None,
) -> None:
    """Fit a model to this site's own rows: a model for this site alone, never shared."""
    from client.commands.shared import opened, rows
    from client.inference.personalisation import adapt as adapted
    from client.models.loading import ModelError
    from client.models.trusted_keys import sign_beside, site_name
    from privacy.files import write_atomic

    named = model if towards is None else towards
    if named is None or (model is not None and towards is not None):
        raise ModelError("must have exactly one of --model and --towards")
    if out is not None and out.suffix != ".safetensors":
        raise ModelError(f"out: expected a name that ends with .safetensors, got {out}")
    of = opened(named, directory, key, task, quiet=json_)
    site = site_name(directory)
    adaptation = adapted(of, rows(of, data, skip_bad), site, whole=towards is not None)
    path = out or Path(f"{of.task.name}-{of.card.round:06d}-private.safetensors")
    write_atomic(path, adaptation.content)
    sign_beside(path, adaptation.content, of.card.run, of.card.round, directory)
    if json_:
        facts = {"out": str(path), "private_to": site, "rows": adaptation.rows}
        typer.echo(json.dumps(facts | {"before": adaptation.before, "after": adaptation.after}))
        return
    typer.echo(f"{path}: private to {site}, fitted to {adaptation.rows} rows")
    for name, value in adaptation.after.items():
        before = adaptation.before.get(name, math.nan)
        typer.echo(f"  {name:<17} {before:.4f} -> {value:.4f} (held-out rows)")
    if not adaptation.better:
        typer.echo("  the held-out loss did not fall: the released model is the better one")
