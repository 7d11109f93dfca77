"""Commands of `world-model` that make and check data sets; see `service.cli`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from service.cli.running import (
    EXISTING_FOLDER,
    FOLDER,
    NOTHING_WRITTEN,
    SEED,
    WORKERS,
    NumberRange,
    long_command,
)


@click.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--transitions",
    type=click.IntRange(1, 10**9),
    default=850_000,
    show_default=True,
    help="Steps to record.",
)
@click.option(
    "--seed",
    type=SEED,
    default=2,
    show_default=True,
    help="Decides every episode. The bundled model was trained on those of seed 1.",
)
@click.option(
    "--fleet",
    type=click.Choice(["cars", "mixed"]),
    help="Who is on the road: only cars of 5 x 2 m, or all kinds of road users with sizes of their "
    "own, on highways of 2 to 8 lanes.  [default: mixed; of highway-env alone, cars]",
)
@click.option(
    "--source",
    type=click.Choice(["highway-env", "sumo", "all"]),
    default="all",
    show_default=True,
    help="Which simulator, or as many episodes of each; with sumo, the fleet is mixed.",
)
@click.option(
    "--workers", type=WORKERS, default=None, help="Processes.  [default: one a usable CPU]"
)
def collect(
    folder: Path,
    transitions: int,
    seed: int,
    fleet: str | None,
    source: str,
    workers: int | None,
) -> None:
    """Record episodes of a simulator into FOLDER; goes on where an earlier call stopped."""
    with long_command():
        from training.dataset.collect import collect as run_collect

        left_out = run_collect(
            folder,
            transitions=transitions,
            seed=seed,
            fleet=fleet,
            source=source,
            workers=workers,
        )
    if left_out:
        seeds = ", ".join(map(str, left_out))
        click.echo(
            f"{len(left_out)} episodes are left out, for the simulator does not survive them; "
            f"their seeds: {seeds}",
            err=True,
        )


@click.command("check-data")
@click.argument("data", type=EXISTING_FOLDER)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the split, as for train.")
def check_data(data: Path, seed: int) -> None:
    """Say what is in DATA, episodes of any spec, and what is wrong with it."""
    with long_command(NOTHING_WRITTEN):
        from training.fitting.check import check

        report = check(data, seed)
    click.echo(report.text)
    for fault in report.faults:
        click.echo(f"Fault: {fault}", err=True)
    sys.exit(1 if report.faults else 0)


@click.command("import-tracks")
@click.argument("sources", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.argument("out", type=FOLDER)
@click.option(
    "--spec",
    metavar="FOLDER|FILE|highway|road-users",
    default=None,
    help="What states are made for: a checkpoint, a file like its spec.json, or one of our "
    "layouts.  [default: the bundled model]",
)
@click.option(
    "--road",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Description of the roads of all tables among SOURCES.  [default: of NAME.csv the file "
    "NAME.road.json, NAME.road.csv or NAME.road.parquet beside it, if there is one]",
)
@click.option(
    "--frame",
    type=click.Choice(["iso8855", "forward-right-down"]),
    default="iso8855",
    show_default=True,
    help="Axes of the tables: y to the left of x, or to its right. CommonRoad has the first.",
)
@click.option(
    "--filter",
    "filter_",
    type=click.Choice(["causal", "smooth"]),
    default="causal",
    show_default=True,
    help="States as a client would have sent them at the moment, with the smoothed truth beside "
    "them, or the smoothed truth alone: what better tracks would give.",
)
@click.option(
    "--share",
    type=NumberRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="So many of the vehicles that can be the ego are, at random; at least one a source.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Decides which vehicles.")
@click.option(
    "--least-s",
    type=NumberRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="Shorter episodes are left out, in s.",
)
@click.option(
    "--overlap-m",
    type=NumberRange(0, 10),
    default=0.1,
    show_default=True,
    help="Rectangles that overlap by more have crashed, in m: recorded sizes are not exact.",
)
def import_tracks(
    sources: tuple[Path, ...],
    out: Path,
    spec: str | None,
    road: Path | None,
    frame: str,
    filter_: str,
    share: float,
    seed: int,
    least_s: float,
    overlap_m: float,
) -> None:
    """Make episodes of recorded traffic in OUT: each vehicle in view is the ego in turn.

    SOURCES are CommonRoad scenarios (.xml) and tables of tracks (.csv, .parquet) as
    docs/recordings.md describes them. It says what could not be used, and why. It needs the
    extra tracks.
    """
    with long_command("An unfinished OUT has to be removed."):
        try:
            from training.recordings.egos import Options
            from training.recordings.importing import import_tracks as run_import
        except ModuleNotFoundError as exc:
            raise click.ClickException(
                f"{exc.name} is missing: pip install 'world-model-service[tracks]'"
            ) from exc

        options = Options(is_causal=filter_ == "causal", least_s=least_s, overlap_m=overlap_m)
        made, dt_s = run_import(
            sources, out, spec=spec, road=road, frame=frame, options=options, share=share, seed=seed
        )
    click.echo(made.text(dt_s))


DATA_COMMANDS = (collect, check_data, import_tracks)
