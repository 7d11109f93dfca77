"""Turn what the planner and the imagined policy scored into a table and plots.

    python -m examples.report runs/planner.json runs/policy.json --page docs/planning.md

The text between the page's markers is replaced; the plots go to `plots/` beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure

from examples.driving import FIRST_SEED
from training.evaluation.tables import ranged, table
from training.running.files import replace_between

START = "<!-- results: written by `python -m examples.report` -->"
END = "<!-- end of results -->"

COLUMNS = {
    "terminated_share": ("terminated", 3),
    "terminations_per_km": ("terminations per km", 2),
    "mean_speed_mps": ("mean speed, m/s", 1),
    "reward_per_episode": ("reward", 1),
}
"""Scores to show, what to call them, and digits."""

_DPI = 90


def section(planner: dict[str, Any], policy: dict[str, Any]) -> str:
    """Return the results as Markdown.

    Args:
        planner: What `mppi_planner` wrote.
        policy: What `imagined_policy` wrote.

    Raises:
        ValueError: They are about different models.
    """
    versions = planner["model_version"], policy["model_version"]
    if versions[0] != versions[1]:
        raise ValueError(f"the planner drove with model {versions[0]}, the policy {versions[1]}")
    rows = [
        [name, str(score["episodes"])]
        + [ranged(score[x], score[f"{x}_interval"], digits) for x, (_, digits) in COLUMNS.items()]
        for document in (planner, policy)
        for name, score in document["scores"].items()
    ]
    header = ["policy", "episodes", *(label for label, _ in COLUMNS.values())]
    first, last = policy["history"][0], policy["history"][-1]
    return (
        f"{table(header, rows)}\n"
        f"Model {versions[0]}. Episodes from seed {FIRST_SEED} on, on the trained roads, of at "
        f"most 7 s; the three rows of a block met the same traffic. Brackets: 95 % intervals, "
        f"Wilson's for the share, else by bootstrap over episodes.\n\n"
        f"The planner sent {planner['candidates']} candidates of 0.8 s in a request. The policy "
        f"made {policy['updates']} updates of {policy['batch']} imagined sequences from states of "
        f"{policy['starts']} recorded episodes; over states of episodes held out, the model's "
        f"expected return of 0.8 s went from {first['returns']:.2f} to {last['returns']:.2f} and "
        f"its crash probability from {first['crash_probability']:.3f} to "
        f"{last['crash_probability']:.3f}.\n"
    )


def plot_scores(documents: list[dict[str, Any]], path: Path) -> None:
    """Draw the terminated share against mean speed, one point a policy, with both intervals."""
    # Of a policy that is in several documents, the last counts: `section` has both.
    scores = {name: score for x in documents for name, score in x["scores"].items()}
    figure = Figure(figsize=(6, 4.2))
    axes = figure.subplots()
    for name, score in scores.items():
        x, y = score["mean_speed_mps"], score["terminated_share"]
        (left, right), (low, high) = (
            score[f"{key}_interval"] for key in ("mean_speed_mps", "terminated_share")
        )
        errors = [[x - left], [right - x]], [[y - low], [high - y]]
        label = f"{name} ({score['episodes']} episodes)"
        axes.errorbar(x, y, xerr=errors[0], yerr=errors[1], fmt="o", capsize=3, label=label)
    axes.set(xlabel="mean speed, m/s", ylabel="share of episodes terminated")
    axes.set_title("Safer is lower, faster is further right")
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_history(history: list[dict[str, float]], path: Path) -> None:
    """Draw what the model expects of the policy in training."""
    figure = Figure(figsize=(9, 3.4))
    labels = {
        "returns": "expected return of 0.8 s",
        "crash_probability": "crash probability within 0.8 s",
    }
    for axes, (name, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        axes.plot([x["update"] for x in history], [x[name] for x in history])
        axes.set(xlabel="update", ylabel=label)
    figure.suptitle("What the model expects of the policy, from states it does not train on")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)


@click.command()
@click.argument("planner", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("policy", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--page", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
def main(planner: Path, policy: Path, page: Path) -> None:
    """Write the results of PLANNER and POLICY (JSON) into a page, with plots beside it."""
    documents = [json.loads(path.read_text()) for path in (planner, policy)]
    try:
        text = section(*documents)
        replace_between(page, START, END, f"\n{text}\n")
    except ValueError as exc:
        raise click.ClickException(str(exc)) from exc
    plot_scores(documents, page.parent / "plots" / "speed_and_safety.png")
    plot_history(documents[1]["history"], page.parent / "plots" / "imagined_policy.png")
    click.echo(text)


if __name__ == "__main__":
    main()
