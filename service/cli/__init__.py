"""The `world-model` command: joins the parts, holds no logic.

In: the command line. Out: calls of the parts, and an exit code. May touch the terminal and signals.
Parts are imported inside the commands, so that `--help` and a failed start do not wait for torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click
from pydantic import ValidationError

from service import __version__
from service.cli.data import DATA_COMMANDS
from service.cli.models import MODEL_COMMANDS
from service.cli.running import FOLDER, end_by_signals
from service.cli.showing import SHOW_COMMANDS
from service.setting_checks import nearest
from service.settings import Settings, explain_settings_error


class _Commands(click.Group):
    """Names what there is in place of what was given: a word without its option may be a key."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is asked for."""
        given = args[0]
        if not given.startswith("-") and self.get_command(ctx, given) is None:
            names = self.list_commands(ctx)
            ctx.fail(f"There is no such command; the nearest one is {nearest(given, names)!r}.")
        return super().resolve_command(ctx, args)


class _Lone(click.Command):
    """A command that takes options alone; surplus words are counted, for one may be a key."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options."""
        ctx.allow_extra_args = True
        surplus = super().parse_args(ctx, args)
        if surplus:
            ctx.fail(
                "Only options are taken, and a value with blanks needs quotes; words that belong "
                f"to no option: {len(surplus)}."
            )
        return surplus


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def main() -> None:
    """Serve, train and measure world models of a car."""


def _settings(options: dict[str, Any]) -> Settings:
    try:
        return Settings(**{name: x for name, x in options.items() if x is not None})
    except ValidationError as exc:
        raise click.ClickException(explain_settings_error(exc)) from exc


def _setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add one option a setting; its help is the setting's description."""
    for name, field in reversed(Settings.model_fields.items()):
        default = "" if field.default in (None, "") else f"  [default: {field.default}]"
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            default=None,
            metavar=name.upper(),
            help=f"{field.description}{default}",
        )(command)
    return command


@main.command(cls=_Lone)
@_setting_options
def serve(**options: str | None) -> None:
    """Serve a checkpoint over HTTP.

    Every option is also an environment variable: --queue-rows-safety is
    WORLD_MODEL_QUEUE_ROWS_SAFETY. An option wins over the variable.
    """
    end_by_signals()
    settings = _settings(options)
    from service.server import DEVICE_LOST_CODE, StartupError
    from service.server import serve as run_server

    try:
        code = run_server(settings)
    except StartupError as exc:
        raise click.ClickException(str(exc)) from exc
    if code == DEVICE_LOST_CODE:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # tensors on a lost device end the process by a signal when they are freed
    sys.exit(code)


@main.command(cls=_Lone)
@click.option("--cache-dir", type=FOLDER, default=None, help="As for serve.")
@click.option(
    "--levels",
    is_flag=True,
    help="Compile for every level of this kind of processor, not for this one: for an image that "
    "has no compiler where it runs.",
)
def prepare(levels: bool, **options: Any) -> None:
    """Compile what a CPU steps by, once a machine, as the first start of serve would.

    It takes seconds and needs a C++ compiler; it serves any checkpoint.
    """
    settings = _settings(options)
    from models.backends.backend import NotCompiledError
    from models.backends.cpu_levels import compile_levels
    from service.server import cache_folder, prepared_library

    try:
        made = compile_levels(cache_folder(settings)) if levels else [prepared_library(settings)]
    except NotCompiledError as exc:
        raise click.ClickException(str(exc)) from exc
    for path in made:
        click.echo(f"Prepared: {path}")


for _command in (*DATA_COMMANDS, *MODEL_COMMANDS, *SHOW_COMMANDS):
    main.add_command(_command)
