"""How commands end: errors in one sentence, signals by their codes."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from service.errors import WorldModelError
from service.settings import explain_settings_error

_GOES_ON = "The same command goes on where this one stopped."
NOTHING_WRITTEN = "Nothing was written."

FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class NumberRange(click.FloatRange):
    """Finite numbers of a range: click's own takes nan, which is neither below nor above one."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is no finite number.", param, ctx)
        return number


SEED = click.IntRange(0, 2**32 - 1)
WORKERS = click.IntRange(1, 1024)
MEMBERS = click.IntRange(1, 10_000)


def end_by_signals() -> None:
    """Let SIGTERM and SIGINT end a container's first process, too, from now on.

    The kernel passes signals over that process 1 has no handler for. Without this, a container that
    is stopped while it loads would serve until it is killed.
    """
    if os.getpid() == 1:
        for number in (signal.SIGTERM, signal.SIGINT):
            # At once, as by default: modules that are half loaded cannot end in order.
            signal.signal(number, lambda received, _: os._exit(128 + received))


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn the errors that a command's input can cause into one sentence on stderr."""
    try:
        yield
    except ValidationError as exc:  # of the settings: `evaluate` starts the service, too
        raise click.ClickException(explain_settings_error(exc)) from exc
    except (ValueError, OSError, WorldModelError) as exc:
        raise click.ClickException(str(exc)) from exc


@contextmanager
def long_command(hint: str = _GOES_ON) -> Iterator[None]:
    """Do what `_one_sentence` does; end a command that a signal stops with 128 + its number."""
    from training.running.stopping import Stopped, stoppable

    try:
        with stoppable(), _one_sentence():
            yield
    except Stopped as exc:
        done = "; ".join(getattr(exc, "__notes__", []))
        with suppress(OSError):  # the terminal may be closed
            click.echo(f"{exc}{f': {done}' if done else ''}. {hint}", err=True)
        sys.exit(exc.exit_code)
