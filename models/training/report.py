"""Metrics to Markdown, for a report folder and for the model card."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.checkpoint import METRICS

RESULTS_START = "<!-- results: written by `world-model evaluate --model-card` -->"
RESULTS_END = "<!-- end of results -->"

PLOTS = {
    "roc.png": "Recall against false alarms near zero",
    "reliability.png": "Are the probabilities honest?",
    "lead_time.png": "How early the first warning comes",
    "errors_by_step.png": "Errors by step, against the baselines",
    "trajectories.png": "Neighbours in the ego frame: true grey, predicted blue",
    "uncertainty.png": "Does disagreement announce error?",
}


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    names = list(header)
    lines = [names, ["---"] * len(names), *([*row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write JSON that any parser reads: NaN is refused."""
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_metrics(checkpoint_folder: Path, metrics: dict[str, Any]) -> None:
    """Put metrics beside a checkpoint's weights; they do not change its version."""
    write_json(checkpoint_folder / METRICS, metrics)


def model_card_table(metrics: dict[str, Any]) -> str:
    """Return the tables of a model card: termination and 16-step errors, model and baselines."""
    model = metrics["model"]
    calibration, reward = model["calibration"], model["reward"]
    lines = [
        f"{metrics['dataset']['test_windows']} windows of {metrics['dataset']['horizon']} steps "
        f"from {metrics['dataset']['test_episodes']} held-out episodes; "
        f"{metrics['dataset']['test_windows_that_end']} windows terminate. Alarm thresholds are "
        "set on validation windows at 1 % false alarms. Brackets: 95 % intervals, by bootstrap "
        "over episodes.\n",
        _termination_table(metrics["methods"]),
        _rollout_table(metrics["methods"]),
        f"Probabilities: Brier {number(calibration['brier'], 4)}, "
        f"ECE {number(calibration['ece'], 4)}. "
        f"Reward: mean error {number(reward['first_step_mae'])} at the first step, "
        f"{number(reward['sum_mae'])} summed. Uncertainty against error at the last step: "
        f"Spearman {number(model['uncertainty']['spearman'], 2)}.\n",
    ]
    return "\n".join(lines)


def report_text(metrics: dict[str, Any]) -> str:
    """Return the whole report, plots included by name."""
    lines = [
        f"# Evaluation of model {metrics['model_version']}\n",
        f"Dataset {metrics['dataset']['fingerprint'][:16]}, "
        f"split seed {metrics['dataset']['split_seed']}.\n",
        *_tables(metrics),
        "### Plots\n",
        *(f"![{caption}]({name})\n" for name, caption in PLOTS.items()),
    ]
    return "\n".join(lines)


def _tables(metrics: dict[str, Any]) -> list[str]:
    return [
        model_card_table(metrics),
        "### By environment\n",
        _environment_table(metrics["environments"]),
        "### Verdicts at the checkpoint's own limits\n",
        _verdict_table(metrics["verdicts"]),
    ]


def _termination_table(methods: dict[str, Any]) -> str:
    header = (
        "method",
        "AUROC",
        "AP",
        "recall",
        "recall, 1st / 2nd half of horizon",
        "false alarms",
        "median lead, s",
        "episodes missed",
    )
    return table(header, (_termination_row(name, m) for name, m in methods.items()))


def _termination_row(name: str, method: dict[str, Any]) -> list[str]:
    scores, intervals = method["termination"], method["intervals"]

    def ranged(key: str) -> str:
        if key not in intervals:
            return number(scores[key])
        low, high = intervals[key]
        return f"{number(scores[key])} [{number(low)}, {number(high)}]"

    return [
        name,
        ranged("auroc"),
        ranged("average_precision"),
        ranged("recall"),
        f"{number(scores['recall_near'])} / {number(scores['recall_far'])}",
        number(scores["false_alarm_rate"], 4),
        number(scores["lead_time"]["median_s"], 2),
        number(scores["lead_time"]["missed"]),
    ]


def _rollout_table(methods: dict[str, Any]) -> str:
    rows = []
    for name, method in methods.items():
        if method["rollout"] is None:
            continue
        for step, scores in method["rollout"]["steps"].items():
            ego, others = scores["ego"], scores["neighbour"]
            rows.append(
                [
                    name,
                    step,
                    number(ego["speed_mps"]),
                    number(ego["heading_rad"], 4),
                    number(ego["edge_m"]),
                    " / ".join(number(others[f"position_{k}_m"]) for k in ("mean", "median")),
                    " / ".join(number(others[f"position_{k}_m"], 2) for k in ("p95", "worst")),
                    number(others["velocity_mps"]),
                    number(scores["all"]["nrmse"]),
                    number(method["rollout"]["diverged"], 4),
                ]
            )
    header = (
        "method",
        "step",
        "speed, m/s",
        "heading, rad",
        "edge, m",
        "neighbour mean / median, m",
        "p95 / worst, m",
        "neighbour velocity, m/s",
        "nRMSE",
        "diverged",
    )
    return table(header, rows)


def _environment_table(environments: dict[str, Any]) -> str:
    rows = [
        [
            environment,
            name,
            number(scores["auroc"]),
            number(scores["average_precision"]),
            number(scores["recall"]),
            number(scores["false_alarm_rate"], 4),
        ]
        for environment, methods in environments.items()
        for name, scores in methods.items()
    ]
    return table(("environment", "method", "AUROC", "AP", "recall", "false alarms"), rows)


def _verdict_table(verdicts: dict[str, Any]) -> str:
    groups = {**verdicts["behaviours"], **verdicts["causes"]}
    rows = [
        [
            name,
            str(rates["windows"]),
            number(rates["unsafe_of_harmless"], 4),
            number(rates["unknown"], 4),
            str(rates["warned"]["episodes"]),
            number(rates["warned"]["missed"]),
            number(rates["warned"]["median_s"], 2),
        ]
        for name, rates in groups.items()
    ]
    header = (
        "episodes",
        "windows",
        "unsafe, of harmless",
        "unknown",
        "terminate",
        "without warning",
        "median warning, s",
    )
    return table(header, rows)


def update_model_card(path: Path, metrics: dict[str, Any]) -> None:
    """Replace the results between the markers of a model card.

    Raises:
        ValueError: The file lacks the markers.
    """
    text = path.read_text()
    before, start, rest = text.partition(RESULTS_START)
    _, end, after = rest.partition(RESULTS_END)
    if not start or not end:
        raise ValueError(f"{path} lacks the markers {RESULTS_START} and {RESULTS_END}")
    results = "\n".join(_tables(metrics))
    path.write_text(f"{before}{start}\n{results}\n{end}{after}")
