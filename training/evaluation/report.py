"""Metrics to Markdown, for a report folder and for the model card."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.checkpoint import METRICS, checkpoint_version
from training.evaluation.closed_loop_tables import closed_loop_table
from training.evaluation.methods import MODEL
from training.evaluation.source_tables import card_sections, source_sections, summary_of
from training.evaluation.tables import (
    ahead_table,
    choice_table,
    divergence_table,
    feature_table,
    final_error_table,
    model_card_table,
    neighbour_table,
    number,
    overall_verdict_table,
    part_table,
    ranged,
    step_table,
    table,
    verdict_table,
)
from training.evaluation.trust_sections import corruption_section, guarantee_section
from training.running.files import replace_between, whole_file

__all__ = ["model_card_table", "number", "report_text", "table", "update_model_card"]

RESULTS_START = "<!-- results: written by `world-model evaluate --model-card` -->"
RESULTS_END = "<!-- end of results -->"

STATE_PLOTS = {
    "errors_by_step.png": "Errors by step, against the baselines",
    "features.png": "Errors of each feature, beside those of a prediction that nothing changes",
    "uncertainty.png": "Does disagreement announce error?",
}
"""Drawn without ends, too."""
PLOTS = {
    "roc.png": "Recall against false alarms near zero",
    "reliability.png": "Are the probabilities honest?",
    "lead_time.png": "How early the first warning comes",
    **STATE_PLOTS,
}
PHYSICS_PLOTS = {
    "trajectories.png": "Neighbours in the ego frame: true grey, predicted blue",
    "corruptions.png": "Are wrong states told from right ones?",
}
"""Drawn only of features that physics can read, see `baselines.baselines_of`."""

CLOSED_LOOP_PLOT = "closed_loop.png"

_QUICK = (
    "**A quick evaluation**: some of the episodes, at random, few resamples for the intervals, and "
    "nothing simulated. Its figures are rough; judge a model by a whole one.\n"
)
_DIGITS = 6
_HARD_CASES = ("unprovoked", "provoked", "branches", "unseen")


def rounded(document: Any) -> Any:
    """Return a JSON document with floats cut to `_DIGITS` digits: no metric is surer than that.

    Numbers that are not finite become None.
    """
    if isinstance(document, dict):
        return {key: rounded(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [rounded(value) for value in document]
    if not isinstance(document, float):
        return document
    return float(f"{document:.{_DIGITS}g}") if math.isfinite(document) else None


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write JSON that any parser reads: NaN is refused."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_metrics(checkpoint_folder: Path, metrics: dict[str, Any]) -> None:
    """Put what matters most beside a checkpoint's weights; it does not change its version.

    The service shows it with the model; the report folder holds the rest.

    Raises:
        ValueError: Terminations were not scored, or the folder holds another version than was
            judged: it was written meanwhile.
    """
    _refuse_unscored(checkpoint_folder, metrics)
    if (version := checkpoint_version(checkpoint_folder)) != metrics["model_version"]:
        raise ValueError(
            f"{checkpoint_folder} holds the version {version} now, but {metrics['model_version']} "
            "was judged: its results are in the report alone"
        )
    model, part = metrics["methods"][MODEL], metrics["termination"]["all"]
    summary = {
        "dataset": metrics["dataset"],
        "windows": part["windows"],
        "episodes": part["episodes"],
        "termination": part["methods"][MODEL]["scores"],
        "warnings": model["warnings"]["1"]["all"],
        "final_errors": _final_errors(metrics),
        "guarantee": metrics["guarantee"],
        "verdicts": metrics["verdicts"],
    }
    if metrics.get("sources") is not None:
        summary["sources"] = summary_of(metrics["sources"])
    write_json(checkpoint_folder / METRICS, summary)


def _refuse_unscored(path: Path, metrics: dict[str, Any]) -> None:
    if metrics.get("lacking"):
        raise ValueError(
            f"{path} stays as it is: terminations are not scored, since {metrics['lacking']}"
        )


def _final_errors(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Return the mean errors after the last step, by quantity or by feature."""
    errors = metrics["methods"][MODEL]["final_errors"]
    if errors is not None:
        return {name: x["mean"] for name, x in errors.items()}
    return {name: x["mean"][-1] for name, x in metrics["features"]["features"].items()}


def write_report(folder: Path, metrics: dict[str, Any]) -> None:
    """Write `report.json` and `report.md` into a folder; the plots are drawn apart."""
    write_json(folder / "report.json", metrics)
    (folder / "report.md").write_text(report_text(metrics))


def report_text(metrics: dict[str, Any]) -> str:
    """Return the whole report, plots included by name."""
    plots = dict(STATE_PLOTS if metrics.get("lacking") else PLOTS)
    if metrics["corruptions"] is not None:
        plots |= PHYSICS_PLOTS
    if "closed_loop" in metrics:
        plots[CLOSED_LOOP_PLOT] = "What monitors prevent, and what speed it costs"
    lines = [
        f"# Evaluation of model {metrics['model_version']}\n",
        f"Dataset {metrics['dataset']['fingerprint'][:16]}, "
        f"split seed {metrics['dataset']['split_seed']}.\n",
        *([_QUICK] if metrics["is_quick"] else []),
        *_held_out(metrics["dataset"].get("held_out")),
        *_sections(metrics),
        "### Plots\n",
        *(f"![{caption}]({name})\n" for name, caption in plots.items()),
    ]
    return "\n".join(lines)


def _held_out(note: dict[str, Any] | None) -> list[str]:
    """Say what the model may know of the episodes; reports before version 0.2 do not."""
    if note is None:
        return []
    lines = {
        "own split": "The episodes are those that its training kept apart.\n",
        "other data": f"Other data than it was trained on: {note['may_be_trained_on']} of "
        f"{note['episodes']} episodes may have been trained on, and are left out.\n",
        "unknown": "**Nobody knows which episodes the model was trained on: any may be among them, "
        "and the results may be too good.**\n",
    }
    fitted = (
        f"**Probabilities and limits were fitted to {note['calibrated']} of {note['episodes']} "
        "episodes by `calibrate`: rates on them may be too good.**\n"
    )
    return [lines[note["origin"]], *([fitted] if note["calibrated"] else [])]


def update_model_card(path: Path, metrics: dict[str, Any], report: Path) -> None:
    """Replace the results between the markers of a model card: those that a reader decides by.

    Args:
        path: Of the card.
        metrics: Of an evaluation.
        report: Folder of its report, to which the card refers for all others.

    Raises:
        ValueError: The file lacks the markers, or terminations were not scored.
    """
    _refuse_unscored(path, metrics)
    link = os.path.relpath(report / "report.md", path.parent)
    results = "\n".join(
        [
            *card_sections(metrics),
            model_card_table(metrics),
            *guarantee_section(metrics),
            *_verdicts(metrics),
            "By environment, in hard cases, of states and of uncertainty, and in the closed loop: "
            f"see the [report]({link}).\n",
        ]
    )
    replace_between(path, RESULTS_START, RESULTS_END, f"{results}\n")


def summary_text(metrics: dict[str, Any]) -> str:
    """Return what matters most: how well ends are foreseen, or else what else there is."""
    if not metrics["lacking"]:
        return "\n".join([*card_sections(metrics), model_card_table(metrics)])
    parts = (_unscored, _neighbours, _uncertainty, _verdicts)
    return "\n".join(line for part in parts for line in part(metrics))


def _unscored(metrics: dict[str, Any]) -> list[str]:
    return [
        "### Terminations\n",
        f"Not scored (AUROC, average precision, recall, alarms at given rates, honesty of "
        f"probabilities, guarantee): {metrics['lacking']}. What follows is of "
        f"{metrics['windows']} windows of all {metrics['judged_episodes']} episodes that the model "
        "was not trained on.\n",
    ]


def _sections(metrics: dict[str, Any]) -> list[str]:
    if metrics.get("lacking"):
        return [
            *_unscored(metrics),
            *_states(metrics),
            *_neighbours(metrics),
            *_uncertainty(metrics),
            *_verdicts(metrics),
        ]
    return [
        *source_sections(metrics),
        model_card_table(metrics),
        *_environments(metrics["termination"]),
        *_hard_cases(metrics),
        *_states(metrics),
        *_neighbours(metrics),
        *_uncertainty(metrics),
        *guarantee_section(metrics),
        *_verdicts(metrics),
        *_closed_loop(metrics),
    ]


def _environments(termination: Mapping[str, Any]) -> list[str]:
    names = [name for name in termination if name not in ("all", *_HARD_CASES)]
    if not names:
        return []
    return [
        "### By environment\n",
        part_table(termination, names),
        "How much better the model is than the baseline that is best at the score, by part; "
        "positive is better throughout:\n",
        ahead_table(termination),
    ]


def _hard_cases(metrics: dict[str, Any]) -> list[str]:
    termination, choice = metrics["termination"], metrics["branches"]
    present = [name for name in _HARD_CASES if name in termination]
    if not present:
        return []
    lines = [
        "### Hard cases\n",
        "unprovoked: all but crashes with a car that had begun a sudden manoeuvre shortly before. "
        "provoked: those alone, in drives where every driver has one in store, among their "
        "harmless windows. branches: evasive and random sequences from the same states, each "
        "driven in a copy of the simulator. unseen: roads that nobody was fitted to.\n",
        part_table(termination, present),
    ]
    if choice is not None:
        lines += [
            f"From {choice['states_with_a_choice']} of {choice['states']} branched states some "
            "sequences survive and some do not. How often the one that looks safest survives:\n",
            choice_table(choice),
        ]
    return lines


def _states(metrics: dict[str, Any]) -> list[str]:
    errors, methods = metrics["features"], metrics["methods"]
    has_quantities = methods is not None and methods[MODEL]["states"] is not None
    return [
        "### Errors of states\n",
        *([final_error_table(methods), step_table(methods)] if has_quantities else []),
        f"Mean absolute errors of {errors['windows']} windows of {errors['episodes']} episodes, of "
        "those recorded to their end, in each feature's unit, and as a share of the error of a "
        "prediction that nothing changes: below 1 is better than that.\n",
        feature_table(errors, metrics["dataset"]["dt_s"]),
        "Rollouts more than 20 standard deviations off in any feature count as diverged: off the "
        "truth under recorded actions"
        f"{', off physics under all others' if has_quantities else ''}.\n",
        divergence_table(metrics["divergence"]),
    ]


def _neighbours(metrics: dict[str, Any]) -> list[str]:
    found, data = metrics["neighbours"], metrics["dataset"]
    if found is None:
        return []
    return [
        "### Neighbours beside physics\n",
        f"Mean error of the neighbours' positions after {data['horizon'] * data['dt_s']:.4g} s. "
        "Physics gets the same states and actions: the ego moves as a bicycle, the others go on "
        "with their speed, or keep their acceleration and turn rate too, as far as the state has "
        "them.\n",
        neighbour_table(found),
    ]


def _uncertainty(metrics: dict[str, Any]) -> list[str]:
    reward = metrics["reward"]
    rho = {
        what: [
            ranged(by_quantity[what]["spearman"], by_quantity[what]["interval"], 3)
            for by_quantity in (metrics["uncertainty"]["steps"], metrics["uncertainty"]["end"])
        ]
        for what in metrics["uncertainty"]["steps"]
    }
    near = rho.get("neighbour_m")
    beside = [f", {x} for the neighbours' mean position" for x in near] if near else ["", ""]
    lines = [
        "### Uncertainty\n",
        "Disagreement after a step against the error after it, all steps of all windows, "
        f"Spearman: {rho['all_sd'][0]} for all features{beside[0]}. The uncertainty of a window "
        f"against the error after its last step alone: {rho['all_sd'][1]}{beside[1]}."
        f"{_expected_error(metrics)}\n",
        f"Reward: mean error {number(reward['first_step_mae'])} at the first step, "
        f"{number(reward['sum_mae'])} summed.\n",
    ]
    return [*lines, *corruption_section(metrics["corruptions"])]


def _expected_error(metrics: dict[str, Any]) -> str:
    found = metrics.get("expected_error")
    if found is None:
        return ""
    rho = ranged(found["spearman"], found["interval"], 3)
    return f" The error that the model expects, against the same of the neighbours: {rho}."


def _closed_loop(metrics: dict[str, Any]) -> list[str]:
    if "closed_loop" not in metrics:
        return []
    return ["### Closed loop\n", closed_loop_table(metrics["closed_loop"])]


def _verdicts(metrics: dict[str, Any]) -> list[str]:
    verdicts, data = metrics["verdicts"], metrics["dataset"]
    alarms, unknowns, overall = (verdicts[x] for x in ("careful_alarms", "unknowns", "all"))
    threshold = verdicts["crash_threshold"]
    reasons = ", ".join(f"{rule} {number(x, 4)}" for rule, x in overall["reasons"].items())
    return [
        "### Verdicts at the checkpoint's own limits\n",
        f"{overall['windows']} windows of {overall['episodes']} episodes, crash threshold "
        f"{'none' if threshold is None else f'{threshold:.4g}'}. Reasons given, as shares of all: "
        f"{reasons or 'none'}.\n",
        overall_verdict_table(overall),
        verdict_table(verdicts),
        f"False alarms in {number(alarms['minutes'], 1)} minutes of {data['calm']}, unsafe "
        f"windows in a row counted once, a window every {data['stride'] * data['dt_s']:g} s: "
        f"{ranged(alarms['per_minute'], alarms['interval'], 2)} a minute; `unknown`, counted "
        f"likewise: {ranged(unknowns['per_minute'], unknowns['interval'], 2)}.\n",
    ]
