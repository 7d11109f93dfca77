"""Commands of `world-model` that make, judge and bring in models; see `service.cli`."""

from __future__ import annotations

from pathlib import Path

import click

from service.cli.running import (
    EXISTING_FOLDER,
    FOLDER,
    MEMBERS,
    NOTHING_WRITTEN,
    SEED,
    WORKERS,
    NumberRange,
    long_command,
)
from service.settings import Settings

_overwrite = click.option(
    "--overwrite", is_flag=True, help="Write over what the folder of --out holds already."
)


_allow_unguaranteed = click.option(
    "--allow-unguaranteed-limits",
    is_flag=True,
    help="Serve a crash threshold and an uncertainty limit even if calibration episodes or windows "
    "are too few to vouch for them. Without it, safety checks then answer unknown.",
)


@click.command()
@click.argument("data", type=EXISTING_FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Checkpoint folder to write.")
@click.option(
    "--run", type=FOLDER, required=True, help="Working folder: states to resume, TensorBoard."
)
@click.option("--members", type=MEMBERS, default=5, show_default=True, help="Ensemble size.")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Decides split, weights and order."
)
@click.option(
    "--kinematics/--no-kinematics",
    default=True,
    show_default=True,
    help="Let members correct an analytic step, or learn all of it.",
)
@click.option(
    "--workers",
    type=WORKERS,
    default=2,
    show_default=True,
    help="Members trained at once on a CPU.",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--quick",
    is_flag=True,
    help="An eighth of the updates: a rough model in minutes, to see whether the data are right.",
)
@_overwrite
@_allow_unguaranteed
def train(
    data: Path,
    out: Path,
    run: Path,
    members: int,
    seed: int,
    kinematics: bool,
    workers: int,
    device: str,
    quick: bool,
    overwrite: bool,
    allow_unguaranteed_limits: bool,
) -> None:
    """Train an ensemble on episodes in DATA; goes on where an earlier call stopped."""
    with long_command():
        from training.fitting.options import TrainOptions
        from training.fitting.train import train as run_train

        options = TrainOptions(
            members=members,
            seed=seed,
            kinematics=kinematics,
            workers=workers,
            device=device,
            is_quick=quick,
            allow_unguaranteed=allow_unguaranteed_limits,
        )
        version = run_train(data, out, run, options, overwrite=overwrite)
        click.echo(f"Wrote {out}, version {version}")


@click.command()
@click.argument("checkpoint", type=EXISTING_FOLDER)
@click.argument("data", type=EXISTING_FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Checkpoint folder to write.")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Decides which episodes fix what."
)
@click.option(
    "--false-alarm-rate",
    type=NumberRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Share of harmless windows that may be called unsafe.",
)
@click.option(
    "--doubt-rate",
    type=NumberRange(0, 1, max_open=True),
    default=0.02,
    show_default=True,
    help="Share of harmless windows that may be unknown, being just below the threshold.",
)
@click.option(
    "--miss-rate",
    type=NumberRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Largest probability that an episode that ends gets no alarm in time.",
)
@click.option(
    "--members",
    type=MEMBERS,
    default=None,
    help="Take the first so many members only: a smaller and faster model, with thresholds of its "
    "own.  [default: all]",
)
@click.option(
    "--ranges",
    type=click.Choice(["trained", "data"]),
    default="trained",
    show_default=True,
    help="Where verdicts are unknown: beyond what the weights were trained on, or beyond DATA.",
)
@click.option(
    "--allow-lower-recall",
    is_flag=True,
    help="Take a threshold that fewer of DATA's windows before an end reach than the old one.",
)
@_overwrite
@_allow_unguaranteed
def calibrate(
    checkpoint: Path,
    data: Path,
    out: Path,
    seed: int,
    false_alarm_rate: float,
    doubt_rate: float,
    miss_rate: float,
    members: int | None,
    ranges: str,
    allow_lower_recall: bool,
    overwrite: bool,
    allow_unguaranteed_limits: bool,
) -> None:
    """Fit CHECKPOINT's probabilities and thresholds to episodes in DATA; its weights stay."""
    with long_command(NOTHING_WRITTEN):
        from training.fitting.options import TrainOptions
        from training.fitting.recalibrate import recalibrate

        options = TrainOptions(
            seed=seed,
            false_alarm_rate=false_alarm_rate,
            doubt_rate=doubt_rate,
            miss_rate=miss_rate,
            allow_unguaranteed=allow_unguaranteed_limits,
        )
        version = recalibrate(
            checkpoint,
            data,
            out,
            options,
            members=members,
            data_ranges=ranges == "data",
            allow_lower_recall=allow_lower_recall,
            overwrite=overwrite,
        )
        click.echo(f"Wrote {out}, version {version}")


@click.command()
@click.argument("checkpoint", type=EXISTING_FOLDER)
@click.argument("data", type=EXISTING_FOLDER)
@click.option("--report", type=FOLDER, required=True, help="Folder for tables and plots.")
@click.option(
    "--tracks",
    type=click.Choice(["perfect", "reference", "ngsim", "drawn"]),
    multiple=True,
    help="How trackers see the episodes of a simulator, one option for each way: perfectly, with "
    "the errors of the reference or of NGSIM, or with errors drawn for each episode. Every source "
    "is judged in all ways, all else in the first.  [default: perfect and reference for mixed "
    "fleets]",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Minutes in place of hours: fewer windows and resamples, and nothing is simulated.",
)
@click.option(
    "--examples", type=FOLDER, default=None, help="Also write some held-out episodes as JSON."
)
@click.option(
    "--model-card",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Also replace the results in this Markdown file.",
)
@click.option(
    "--closed-loop",
    is_flag=True,
    help="Also serve CHECKPOINT and let it monitor a reckless driver in the simulators.",
)
@click.option(
    "--drives",
    type=click.IntRange(1, 10**6),
    default=300,
    show_default=True,
    help="Drives of the closed loop with each monitor, in each simulator.",
)
@click.option(
    "--drive-fleet",
    type=click.Choice(["cars", "mixed"]),
    help="Who is on the road in the closed loop.  [default: as in DATA]",
)
@click.option(
    "--drive-source",
    type=click.Choice(["highway-env", "sumo", "all"]),
    help="Which simulators the closed loop drives in; the fleet of sumo is mixed.  "
    "[default: as in DATA]",
)
@click.option(
    "--drive-tracks",
    type=click.Choice(["true", "perfect", "reference", "ngsim", "drawn"]),
    help="How monitors see the others in the closed loop: as they are, or by which tracker. "
    "Crashes are judged by the truth.  [default: drawn in mixed fleets, true among cars]",
)
@click.option(
    "--update-checkpoint",
    is_flag=True,
    help="Also write the results into CHECKPOINT (metrics.json), for `GET /model` to show.",
)
def evaluate(
    checkpoint: Path,
    data: Path,
    report: Path,
    tracks: tuple[str, ...],
    quick: bool,
    examples: Path | None,
    model_card: Path | None,
    closed_loop: bool,
    drives: int,
    drive_fleet: str | None,
    drive_source: str | None,
    drive_tracks: str | None,
    update_checkpoint: bool,
) -> None:
    """Judge CHECKPOINT on held-out episodes of DATA; beside physics where it knows the features.

    It goes on where an earlier call stopped, and leaves CHECKPOINT as it is.
    """
    with long_command():
        from training.dataset.examples import export_held_out
        from training.dataset.sources import require_simulated
        from training.evaluation.evaluate import evaluate as run_evaluate
        from training.evaluation.evaluate import write_metrics
        from training.evaluation.parts import remove_parts
        from training.evaluation.report import summary_text, update_model_card
        from training.running.progress import Progress

        needed = {"--examples": examples, "--closed-loop": closed_loop, "--tracks": tracks}
        for what, is_asked_for in needed.items():
            if is_asked_for:  # before anything is judged, which takes an hour
                require_simulated(data, what)
        key = next(iter(Settings().keys()), None) if closed_loop else None

        with Progress("evaluating", 0.0) as progress:
            if closed_loop:
                from training.closed_loop.served import (
                    add_closed_loop,
                    closed_loop_cost,
                    traffic_of,
                )

                traffic = traffic_of(data, drive_fleet, drive_source, drive_tracks)
                progress.extend(closed_loop_cost(drives, len(traffic.sources)))
            metrics = run_evaluate(
                checkpoint,
                data,
                report,
                tracks=tracks,
                quick=quick,
                progress=progress,
                keep_parts=True,
            )
            if closed_loop:
                add_closed_loop(
                    metrics,
                    checkpoint,
                    data,
                    report,
                    drives,
                    traffic=traffic,
                    api_key=key,
                    progress=progress,
                )
            if update_checkpoint:
                write_metrics(checkpoint, metrics)
            if examples is not None:
                export_held_out(checkpoint, data, examples)
            if model_card is not None:
                update_model_card(model_card, metrics, report)
            remove_parts(report)  # only now nothing of it is needed again
        click.echo(summary_text(metrics))


@click.command("import")
@click.argument("weights", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=FOLDER, required=True, help="Checkpoint folder to write.")
@click.option(
    "--activation", type=click.Choice(["elu", "relu", "tanh"]), default="elu", show_default=True
)
@click.option(
    "--spec",
    metavar="FILE|highway|road-users",
    default=None,
    help="What the numbers mean: a file like a checkpoint's spec.json, or one of our layouts. "
    "Without it they are called state_0, ..., and calibrate finds no recordings that fit.",
)
@click.option(
    "--dt-s",
    type=NumberRange(1e-6, 3600),
    default=None,
    help="Length of a step in seconds.  [default: the spec's, or 0.05]",
)
@_overwrite
def import_(
    weights: tuple[Path, ...],
    out: Path,
    activation: str,
    spec: str | None,
    dt_s: float | None,
    overwrite: bool,
) -> None:
    """Make a checkpoint of WEIGHTS, trained with the specification's own classes.

    Each of WEIGHTS is a file of torch.save or safetensors: a state_dict, or a training checkpoint
    that holds one, of a model or of an ensemble. Several files are the members of an ensemble. It
    says what was taken from each. No code in them is run.
    """
    with long_command(NOTHING_WRITTEN):
        from models.checkpoint import save_checkpoint
        from models.importing import import_weights, spec_of
        from training.running.files import output, refuse_existing

        refuse_existing(out, overwrite=overwrite)
        meaning = None if spec is None else spec_of(spec)
        checkpoint = import_weights(*weights, activation=activation, dt_s=dt_s, spec=meaning)
        with output(out, "importing", overwrite=overwrite):
            version = save_checkpoint(checkpoint, out)
        for path, taken in zip(weights, checkpoint.training["taken"], strict=True):
            click.echo(f"{path}: {taken}")
        click.echo(f"Wrote {out}, version {version}, members {checkpoint.member_count}")


MODEL_COMMANDS = (train, calibrate, evaluate, import_)
