"""Commands whose modules are imported when they are called; their names are known before."""

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, ClassVar

import click
import typer
from typer.core import TyperGroup

Listing = Mapping[str, Mapping[str, str]]
"""A module that has `register(app)` -> the names of its commands -> their help's first lines."""


def application(help: str, listing: Listing) -> typer.Typer:
    """A Typer app of these commands, in this order; `--help` imports none of their modules."""

    class Group(_Group):
        modules: ClassVar = {name: module for module, names in listing.items() for name in names}
        lines: ClassVar = {name: line for names in listing.values() for name, line in names.items()}

    app = typer.Typer(
        help=help,
        cls=Group,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_nothing)  # without a command of its own Typer asks for a callback
    return app


def _nothing() -> None:
    """What the app itself does."""


class _Group(TyperGroup):
    modules: ClassVar[Mapping[str, str]]
    lines: ClassVar[Mapping[str, str]]

    def __init__(self, **attributes: Any) -> None:
        added = attributes.pop("commands", None) or {}
        super().__init__(**attributes)
        self.commands = _Commands(self.modules, added)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        real = self.commands
        self.commands = {name: click.Command(name, help=line) for name, line in self.lines.items()}
        self.commands |= {name: real[name] for name in real if name not in self.lines}
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = real


class _Commands(MutableMapping[str, click.Command]):
    """Commands by name; a module is imported when one of its commands is asked for."""

    def __init__(self, modules: Mapping[str, str], added: Mapping[str, click.Command]) -> None:
        self._modules = dict.fromkeys(modules) | dict.fromkeys(added)
        self._modules.update(modules)
        self._loaded = dict(added)

    def __getitem__(self, name: str) -> click.Command:
        module = self._modules[name]
        if name not in self._loaded and module is not None:
            app = typer.Typer(pretty_exceptions_enable=False)
            importlib.import_module(module).register(app)
            group = typer.main.get_group(app)
            for other, command in group.commands.items():
                self._loaded.setdefault(other, command)
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._modules[name] = None
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._modules[name]
        self._loaded.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)
