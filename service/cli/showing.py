"""The command of `world-model` that shows a prediction to a person; see `service.cli`."""

from __future__ import annotations

from pathlib import Path

import click

from service.cli.running import FOLDER, NOTHING_WRITTEN, long_command
from service.settings import Settings


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--rerun",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Also write the scene into this file, named *.rrd, which Rerun opens. It needs the extra "
    "rerun.",
)
@click.option("--checkpoint", type=FOLDER, default=None, help="As for serve.")
@click.option(
    "--step",
    type=click.IntRange(0),
    default=None,
    help="Of an episode: where the prediction starts.  [default: the last step that a whole "
    "horizon was recorded after]",
)
@click.option(
    "--row",
    type=click.IntRange(0),
    default=None,
    help="Of a request with several states or sequences: which one, counted from 0.",
)
@click.option("--overwrite", is_flag=True, help="Write over the file of --rerun.")
def show(
    file: Path,
    rerun: Path | None,
    checkpoint: Path | None,
    step: int | None,
    row: int | None,
    overwrite: bool,
) -> None:
    """Predict a moment of an episode, or a request, and say what comes.

    FILE is JSON: an episode as evaluate --examples writes it, or the body of a request to
    /safety-check, /rollout or /predict.
    """
    with long_command(NOTHING_WRITTEN):
        if rerun is not None:
            _check_target(rerun, overwrite=overwrite)
            try:
                from service.showing.recording import write_recording
            except ModuleNotFoundError as exc:
                raise click.ClickException(
                    f"{exc.name} is missing: pip install 'world-model-service[rerun]'"
                ) from exc
        from models.checkpoint import load_checkpoint
        from service.showing.given import Choice, read_given
        from service.showing.predicted import predict
        from service.showing.table import table
        from training.running.files import whole_file

        settings = Settings() if checkpoint is None else Settings(checkpoint=checkpoint)
        loaded = load_checkpoint(settings.checkpoint, members=settings.members)
        given = read_given(
            file,
            loaded,
            Choice(step, row),
            max_horizon=settings.max_horizon,
            max_rows=settings.max_rows,
        )
        if given.members is not None:
            loaded = load_checkpoint(settings.checkpoint, members=given.members)
        predicted = predict(given, loaded)
        click.echo(table(predicted))
        if rerun is not None:
            with whole_file(rerun) as partial:
                write_recording(predicted, partial)
            click.echo(f"Wrote {rerun}")


def _check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that Rerun would not know, or that is there, before anything is computed.

    Raises:
        ValueError: It is such a file.
    """
    if path.suffix != ".rrd":
        raise ValueError(f"--rerun is {path}, but Rerun knows its files by their ending, .rrd")
    if not path.parent.is_dir():
        raise ValueError(f"--rerun is {path}, but there is no folder {path.parent}")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there: name another file, or write over it by --overwrite")


SHOW_COMMANDS = (show,)
