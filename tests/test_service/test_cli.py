"""The `world-model` command in process: its help, and one sentence for every refusal."""

from __future__ import annotations

import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result

import models.backends.cpu_levels
import service.server
import training.dataset.collect
import training.dataset.examples
import training.dataset.sources
import training.evaluation.evaluate
import training.evaluation.report
import training.fitting.recalibrate
import training.fitting.train
from models.checkpoint import load_checkpoint
from models.highway import highway_spec
from models.network.world_model import WorldModel
from service.cli import main
from service.cli.data import DATA_COMMANDS
from service.cli.models import MODEL_COMMANDS
from service.settings import Settings
from tests.test_training.toy import write_toy_episodes
from training.fitting.options import TrainOptions
from training.running.locks import locked
from training.running.stopping import STOP_SIGNALS


def invoke(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=env)


def test_serve_help_explains_every_setting() -> None:
    text = "".join(invoke("serve", "--help").output.split())  # help breaks at hyphens, too

    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert "".join((field.description or "missing").split()) in text


def test_serve_passes_options_and_variables_and_exits_with_the_servers_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Settings] = []

    def fake_serve(settings: Settings) -> int:
        seen.append(settings)
        return 3

    monkeypatch.setattr(service.server, "serve", fake_serve)

    result = invoke("serve", "--port", "9001", env={"WORLD_MODEL_HOST": "::1"})

    assert result.exit_code == 3
    assert (seen[0].port, seen[0].host) == (9001, "::1")


def test_serve_prints_a_startup_error_as_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings) -> int:
        raise service.server.StartupError(f"no luck with port {settings.port}")

    monkeypatch.setattr(service.server, "serve", fail)

    result = invoke("serve", "--port", "9001")

    assert result.exit_code == 1
    assert result.output == "Error: no luck with port 9001\n"


def test_serve_names_a_bad_setting() -> None:
    result = invoke("serve", "--port", "eighty")

    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "port" in result.output.lower()
    assert len(result.output.splitlines()) == 1


def test_prepare_compiles_for_this_machine_or_for_all_levels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        models.backends.cpu_levels, "compile_levels", lambda folder: [folder / "4", folder / "3"]
    )
    monkeypatch.setattr(service.server, "usable_library", lambda folder: folder / "own")

    own = invoke("prepare", "--cache-dir", tmp_path)
    levels = invoke("prepare", "--cache-dir", tmp_path, "--levels")

    assert own.output == f"Prepared: {tmp_path}/own\n"
    assert levels.output == f"Prepared: {tmp_path}/4\nPrepared: {tmp_path}/3\n"


def test_import_writes_a_checkpoint(tmp_path: Path) -> None:
    model = WorldModel(hidden_dims=(64, 64), residual=False)
    torch.save(
        {name: x for name, x in model.state_dict().items() if "." in name}, tmp_path / "w.pt"
    )

    result = invoke("import", tmp_path / "w.pt", "--out", tmp_path / "out", "--dt-s", "0.1")

    assert result.exit_code == 0
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.version in result.output
    assert loaded.spec.dt_s == 0.1


def test_import_writes_into_no_folder_that_another_command_writes(tmp_path: Path) -> None:
    torch.save(WorldModel(hidden_dims=(64, 64), residual=False).state_dict(), tmp_path / "w.pt")

    with locked(tmp_path / "out", "calibrating"):
        result = invoke("import", tmp_path / "w.pt", "--out", tmp_path / "out", "--overwrite")

    assert result.exit_code == 1
    assert "is being written by another command: calibrating" in result.output
    assert not (tmp_path / "out" / "config.json").exists()


def test_import_makes_an_ensemble_of_several_files_with_a_meaning(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        model = WorldModel(hidden_dims=(64, 64), residual=False)
        torch.save(
            {name: x for name, x in model.state_dict().items() if "." in name}, tmp_path / name
        )

    result = invoke(
        "import",
        tmp_path / "a.pt",
        tmp_path / "b.pt",
        "--out",
        tmp_path / "out",
        "--spec",
        "highway",
    )

    loaded = load_checkpoint(tmp_path / "out")
    assert (loaded.member_count, loaded.spec) == (2, highway_spec())
    assert result.output.splitlines() == [
        f"{tmp_path / 'a.pt'}: took 18 tensors",
        f"{tmp_path / 'b.pt'}: took 18 tensors",
        f"Wrote {tmp_path / 'out'}, version {loaded.version}, members 2",
    ]


def test_import_refuses_a_step_that_is_not_the_specs(tmp_path: Path) -> None:
    result = invoke(
        "import", "w.pt", "--out", tmp_path / "out", "--spec", "highway", "--dt-s", "0.1"
    )

    assert result.exit_code == 1
    assert result.output == (
        "Error: the length of a step is 0.1 s, but 0.05 s in the spec 'highway'\n"
    )


def test_import_refuses_what_is_no_model_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("not weights")

    result = invoke("import", tmp_path / "w.pt", "--out", tmp_path / "out")

    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {tmp_path / 'w.pt'} is no file of torch.save")


def test_collect_passes_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def fake_collect(folder: Path, **options: Any) -> None:
        seen.update(options, folder=folder)

    monkeypatch.setattr(training.dataset.collect, "collect", fake_collect)

    usual = {"transitions": 850_000, "seed": 2, "fleet": None, "source": "all", "workers": None}
    for given in (
        {},
        {"transitions": 500, "seed": 7, "workers": 1, "source": "highway-env"},
        {"fleet": "mixed", "source": "sumo"},
    ):
        options = [str(x) for name, value in given.items() for x in (f"--{name}", value)]

        result = invoke("collect", tmp_path, *options)

        assert result.exit_code == 0
        assert seen == {"folder": tmp_path, **usual, **given}


def test_train_passes_its_options_and_prints_the_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[TrainOptions] = []

    def fake_train(data: Path, out: Path, run: Path, options: TrainOptions, **_: bool) -> str:
        seen.append(options)
        return "abc123"

    monkeypatch.setattr(training.fitting.train, "train", fake_train)

    result = invoke(
        "train", tmp_path, "--out", tmp_path / "o", "--run", tmp_path / "r", "--members", "3"
    )

    assert "version abc123" in result.output
    assert seen[0].members == 3


@pytest.mark.parametrize("is_asked_for", [False, True])
@pytest.mark.parametrize("command", ["train", "calibrate"])
def test_limits_that_guarantee_nothing_are_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, is_asked_for: bool
) -> None:
    seen: list[TrainOptions] = []

    def fake(*arguments: Any, **_: Any) -> str:
        seen.extend(x for x in arguments if isinstance(x, TrainOptions))
        return "abc123"

    monkeypatch.setattr(training.fitting.train, "train", fake)
    monkeypatch.setattr(training.fitting.recalibrate, "recalibrate", fake)
    places = {"train": ["--run", str(tmp_path / "r")], "calibrate": [str(tmp_path)]}[command]
    flags = ["--allow-unguaranteed-limits"] if is_asked_for else []

    result = invoke(command, tmp_path, *places, "--out", tmp_path / "o", *flags)

    assert result.exit_code == 0, result.output
    assert seen[0].allow_unguaranteed is is_asked_for


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_evaluate_writes_what_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_asked_for: bool
) -> None:
    done: dict[str, tuple[Any, ...]] = {}

    def record(module: ModuleType, name: str, result: Any = None) -> None:
        def fake(*arguments: Any, **options: Any) -> Any:
            done[name] = (*arguments, *(x for x in options.items() if x[0] in ("quick", "tracks")))
            return result

        monkeypatch.setattr(module, name, fake)

    record(training.evaluation.evaluate, "evaluate", {"the": "metrics"})
    record(training.evaluation.evaluate, "write_metrics")
    record(training.evaluation.report, "summary_text", "the table")
    record(training.dataset.examples, "export_held_out")
    monkeypatch.setattr(training.dataset.sources, "require_simulated", lambda *_: None)
    record(training.evaluation.report, "update_model_card")
    card = tmp_path / "card.md"
    card.touch()
    report, examples = tmp_path / "report", tmp_path / "episodes"
    options = ("--report", report, "--examples", examples, "--model-card", card)
    flags = ("--update-checkpoint",) if is_asked_for else ()

    tracks = ("--tracks", "ngsim", "--tracks", "perfect")
    result = invoke("evaluate", tmp_path, tmp_path, "--quick", *tracks, *options, *flags)

    assert result.stdout == "the table\n"
    written = {"write_metrics": (tmp_path, {"the": "metrics"})} if is_asked_for else {}
    assert done == {
        "evaluate": (tmp_path, tmp_path, report, ("tracks", ("ngsim", "perfect")), ("quick", True)),
        **written,
        "summary_text": ({"the": "metrics"},),
        "export_held_out": (tmp_path, tmp_path, examples),
        "update_model_card": (card, {"the": "metrics"}, report),
    }


@pytest.mark.parametrize(
    "option", [["--closed-loop"], ["--examples", "x"], ["--tracks", "ngsim"]], ids=lambda x: x[0]
)
def test_evaluate_says_at_once_what_other_recordings_cannot_give(
    tmp_path: Path, option: list[str]
) -> None:
    write_toy_episodes(tmp_path / "data", 1)

    result = invoke("evaluate", tmp_path, tmp_path / "data", "--report", tmp_path / "r", *option)

    assert result.exit_code == 1
    assert result.output == (
        f"Error: {option[0]} needs recordings of world-model collect, {tmp_path / 'data'} holds "
        "others\n"
    )


def number_options() -> list[tuple[str, str]]:
    """Return all commands with each of their options that takes a number."""
    return [
        (command.name or "", max(option.opts, key=len))
        for command in (*DATA_COMMANDS, *MODEL_COMMANDS)
        for option in command.params
        if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
    ]


def test_options_that_take_numbers_are_found() -> None:
    assert {("import-tracks", "--overlap-m"), ("train", "--seed")} <= {*number_options()}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "-1", "1" * 40])
@pytest.mark.parametrize(("command", "option"), number_options(), ids=lambda x: x)
def test_numbers_that_cannot_be_are_refused_by_the_name_of_their_option(
    tmp_path: Path, command: str, option: str, value: str
) -> None:
    words = {"import-tracks": [tmp_path / "a.csv"], "import": [tmp_path / "a.pt"]}
    places = words.get(command, [] if command == "collect" else [tmp_path] * 2)
    if command in ("collect", "import-tracks"):
        places = [*places, tmp_path / "out"]

    result = invoke(command, *places, option, value)

    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr


def test_training_that_ends_early_says_why_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ValueError("the folder holds something else")

    monkeypatch.setattr(training.fitting.train, "train", fail)

    result = invoke("train", tmp_path, "--out", tmp_path / "o", "--run", tmp_path / "r")

    assert result.exit_code == 1
    assert result.output == "Error: the folder holds something else\n"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_command_that_is_stopped_says_how_far_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    def stop(*_: object, **__: object) -> str:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as exc:
            exc.add_note("member 1: 3 of 40 updates done")
            exc.add_note("member 2: 0 of 40 updates done")
            raise
        return ""

    monkeypatch.setattr(training.fitting.train, "train", stop)

    result = invoke("train", tmp_path, "--out", tmp_path / "o", "--run", tmp_path / "r")

    assert result.exit_code == 128 + number
    assert result.output == (
        f"Stopped by {number.name}: member 1: 3 of 40 updates done; member 2: 0 of 40 updates "
        "done. The same command goes on where this one stopped.\n"
    )


@pytest.mark.parametrize("command", ["calibrate", "import"])
def test_a_folder_that_holds_something_is_written_over_only_if_asked_for(
    tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    words = {"calibrate": [tmp_path, tmp_path], "import": [tmp_path / "none.pt"]}[command]

    refused = invoke(command, *words, "--out", out)
    asked = invoke(command, *words, "--out", out, "--overwrite")

    assert refused.exit_code == 1
    assert f"Error: {out} is not empty: name another folder, or write over it" in refused.output
    assert "is not empty" not in asked.output
