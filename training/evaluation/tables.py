"""Metrics of an evaluation as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from training.evaluation.methods import MODEL

SCORES = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "recall_1": "recall at 1 %",
    "recall_01": "recall at 0.1 %",
    "brier": "Brier",
    "ece": "ECE",
}
"""Scores that tables show, and what they call them."""

LOWER_IS_BETTER = {"brier", "ece"}


def number(value: float | None, digits: int | None = 3) -> str:
    """Return a number for a table, with so many decimals or of any size; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.3g}" if digits is None else f"{value:.{digits}f}"


def ranged(
    value: float | None, interval: Iterable[float | None] | None, digits: int | None = 4
) -> str:
    """Return a number with its interval, if it has one."""
    low, high = interval or (None, None)
    if value is None or low is None or high is None:
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    names = list(header)
    lines = [names, ["---"] * len(names), *([*row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def best_rival(part: Mapping[str, Any]) -> str | None:
    """Return the baseline with the highest average precision in a part of `termination`, if any."""
    precision: dict[str, float] = {
        name: method["scores"]["average_precision"] or 0.0
        for name, method in part["methods"].items()
        if name != MODEL
    }
    return max(precision, key=lambda name: precision[name], default=None)


def model_card_table(metrics: dict[str, Any]) -> str:
    """Return the tables that matter most: who foresees the end, how early, and how surely."""
    part, data = metrics["termination"]["all"], metrics["dataset"]
    has_rivals = len(part["methods"]) > 1
    rivals = " Baselines' probabilities are isotonic fits on validation episodes."
    lines = [
        f"{part['windows']} windows of {data['horizon']} steps from {part['episodes']} "
        f"held-out episodes; {part['windows_that_end']} windows terminate, of "
        f"{part['episodes_that_end']} episodes. Alarm thresholds are set on calibration "
        f"episodes at 1 % and 0.1 % false alarms.{rivals if has_rivals else ''} Brackets: 95 % "
        "intervals, by bootstrap over episodes; that of an ECE lies high, as resampling adds "
        "noise.\n",
        score_table(part),
    ]
    if has_rivals:
        lines += [
            "What the model's score is above each baseline's, on the same resamples:\n",
            lead_table(part),
        ]
    return "\n".join([*lines, alarm_table(metrics["methods"], part, data)])


def score_table(part: Mapping[str, Any]) -> str:
    """Return the scores of all methods on one part of `termination`."""
    rows = [
        [name, *(ranged(m["scores"][key], m["intervals"].get(key)) for key in SCORES)]
        for name, m in part["methods"].items()
    ]
    return table(("method", *SCORES.values()), rows)


def lead_table(part: Mapping[str, Any]) -> str:
    """Return how far the model is ahead of each baseline."""
    rows = []
    for name, method in part["methods"].items():
        if name != MODEL:
            lead = method["lead"]
            cells = (ranged(lead["scores"][k], lead["intervals"].get(k)) for k in SCORES)
            rows.append([f"model - {name}", *cells])
    return table(("difference", *SCORES.values()), rows)


def alarm_table(
    methods: Mapping[str, Any], part: Mapping[str, Any], data: Mapping[str, Any]
) -> str:
    """Return what the alarms of all methods are worth, at both false-alarm rates."""
    causes = data["causes"]
    rows = []
    for rate, label in (("1", "1 %"), ("01", "0.1 %")):
        for name, method in methods.items():
            scores = part["methods"][name]["scores"]
            warned, false = method["warnings"][rate], method["careful_alarms"][rate]
            everyone = warned["all"]
            rows.append(
                [
                    label,
                    name,
                    number(scores[f"false_alarms_{rate}"], 5),
                    f"{number(warned['recall_near'])} / {number(warned['recall_far'])}",
                    ranged(everyone["median_s"], everyone["median_interval"], 2),
                    ranged(everyone["missed"], everyone["missed_interval"]),
                    " / ".join(number(warned[c]["missed"], 4) for c in causes),
                    ranged(false["per_minute"], false["interval"], 2),
                ]
            )
    header = (
        "wanted rate",
        "method",
        "realised",
        "recall, 1st / 2nd half of horizon",
        "median lead, s",
        "episodes missed",
        f"{' / '.join(cause.replace('_', ' ') for cause in causes)} missed",
        f"false alarms a minute of {data['calm']}",
    )
    return table(header, rows)


def part_table(termination: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return the scores of all methods on several parts of `termination`."""
    rows = []
    for name in names:
        part = termination[name]
        for method, m in part["methods"].items():
            cells = (ranged(m["scores"][key], m["intervals"].get(key)) for key in SCORES)
            size = f"{part['windows_that_end']} of {part['windows']}"
            rows.append([name, size, method, *cells])
    return table(("part", "windows that end", "method", *SCORES.values()), rows)


def ahead_table(termination: Mapping[str, Any]) -> str:
    """Return how much better the model is than the best baseline, by part and score."""
    rows = []
    for name, part in termination.items():
        cells = []
        for key in SCORES:
            sign = -1 if key in LOWER_IS_BETTER else 1
            rivals = [m for rival, m in part["methods"].items() if rival != MODEL]
            best = max(rivals, key=lambda m: sign * (m["scores"][key] or 0.0))
            lead, interval = best["lead"]["scores"][key], best["lead"]["intervals"].get(key)
            if sign < 0 and lead is not None:
                lead = -lead
                interval = interval and [None if x is None else -x for x in reversed(interval)]
            cells.append(ranged(lead, interval))
        rows.append([name, *cells])
    return table(("part", *SCORES.values()), rows)


def step_table(methods: Mapping[str, Any]) -> str:
    """Return errors of states by step."""
    rows = []
    for name, method in methods.items():
        for step, scores in (method["states"] or {}).items():
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
    )
    return table(header, rows)


def final_error_table(methods: Mapping[str, Any]) -> str:
    """Return errors after the last step, with intervals, and the model's difference."""
    names = {"speed_mps": "speed, m/s", "edge_m": "edge, m", "neighbour_m": "neighbour, m"}
    rows = []
    for name, method in methods.items():
        errors = method["final_errors"]
        if errors is not None:
            means = [ranged(errors[k]["mean"], errors[k]["interval"], 3) for k in names]
            leads = [ranged(errors[k]["lead"], errors[k]["lead_interval"], 3) for k in names]
            rows.append([name, *means, *(leads if name != MODEL else ["-"] * len(names))])
    header = ("method", *names.values(), *(f"model's minus this: {n}" for n in names.values()))
    return table(header, rows)


def neighbour_table(found: Mapping[str, Any]) -> str:
    """Return the errors of neighbours after the last step, and the model's difference."""
    rows = [
        [
            name,
            ranged(errors["mean"], errors["interval"], 3),
            "-" if name == MODEL else ranged(errors["lead"], errors["lead_interval"], 3),
        ]
        for name, errors in found.items()
    ]
    return table(("method", "neighbour, m", "model's minus this"), rows)


def divergence_table(divergence: Mapping[str, Any]) -> str:
    """Return how many rollouts diverged, by kind of actions."""
    rows = [
        [
            name,
            str(counts["windows"]),
            str(counts["diverged"]),
            number(counts["p99_sd"], 2),
            number(counts["largest_sd"], 2),
        ]
        for name, counts in divergence.items()
    ]
    header = ("actions", "windows", "diverged", "99 % stay within, sd", "farthest, sd")
    return table(header, rows)


def choice_table(choice: Mapping[str, Any]) -> str:
    """Return how often the safest-looking sequence survives, by method."""
    rows = [
        [name, ranged(scores["survives"], scores["interval"], 3)]
        for name, scores in choice["methods"].items()
    ]
    return table(("chosen by", "survives"), rows)


def corruption_table(corruptions: Mapping[str, Any]) -> str:
    """Return how well corrupted states are noticed, and what the service answers to them."""

    def row(name: str, scores: Mapping[str, Any]) -> list[str]:
        reasons = ", ".join(f"{rule} {number(x, 2)}" for rule, x in scores["reasons"].items())
        answers = (number(scores[answer], 3) for answer in ("safe", "unsafe", "unknown"))
        known = scores.get("detectable") or {"windows": 0, "auroc": None, "interval": None}
        cells = (ranged(x.get("auroc"), x.get("interval"), 3) for x in (scores, known))
        return [name, *cells, str(known["windows"]), *answers, reasons]

    rows = [row("(clean)", corruptions["clean"])]
    for name, scores in corruptions["corruptions"].items():
        rows.append(row(f"{name} *" if scores["plausible"] else name, scores))
    known = "AUROC where physics can tell", "states"
    return table(("state", "AUROC", *known, "safe", "unsafe", "unknown", "reasons"), rows)


def feature_table(errors: Mapping[str, Any], dt_s: float) -> str:
    """Return the errors of each feature by step, and beside a prediction that nothing changes."""
    times = [f"{step * dt_s:.4g} s" for step in errors["steps"]]
    rows = [
        [
            name,
            x["unit"],
            *(number(value, None) for value in x["mean"][:-1]),
            ranged(x["mean"][-1], x["interval"][-1], None),
            number(x["relative"][0]),
            ranged(x["relative"][-1], x["relative_interval"][-1], 3),
        ]
        for name, x in errors["features"].items()
    ]
    relative = (f"of unchanged's, {times[0]}", f"of unchanged's, {times[-1]}")
    return table(("feature", "unit", *(f"after {time}" for time in times), *relative), rows)


def overall_verdict_table(overall: Mapping[str, Any]) -> str:
    """Return how often the service gives each verdict, and how often it is wrong."""
    rows = {
        "safe": "`safe`, of all",
        "unsafe": "`unsafe`, of all",
        "unknown": "`unknown`, of all",
        "unsafe_of_harmless": "`unsafe`, of those that go on (false alarms)",
        "unsafe_of_ending": "`unsafe`, of those that end (recall)",
        "safe_of_ending": "`safe`, of those that end",
    }
    return table(
        ("windows", "episodes", "share"),
        (
            [
                text,
                str(overall[key]["episodes"]),
                ranged(overall[key]["share"], overall[key]["interval"]),
            ]
            for key, text in rows.items()
        ),
    )


def verdict_table(verdicts: Mapping[str, Any]) -> str:
    """Return what the service would answer, by behaviour and by cause of the end."""
    rows = [
        [
            name,
            str(rates["windows"]),
            number(rates["unsafe_of_harmless"], 4),
            number(rates["unknown"], 4),
            str(rates["warned"]["episodes"]),
            number(rates["warned"]["missed"], 4),
            number(rates["warned"]["median_s"], 2),
        ]
        for name, rates in {**verdicts["behaviours"], **verdicts["causes"]}.items()
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
