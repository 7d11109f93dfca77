"""Change the code in small steps, and see whether a test notices each: `make mutants`.

mutmut makes the changes and runs the tests, two at a time, in a copy under `.mutants/`: the sources
themselves are never touched. What has been found out is kept there; another run goes on where
the last one ended. See docs/testing.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tools.survivors import Equivalent, Mutant, mutants_of, undecorated

ROOT = Path(__file__).parent.parent
WORK = ROOT / ".mutants"
TOGETHER = 2
"""Mutants that run at once."""
_STOP_S = 10.0
_PYTEST = [
    *("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "-p", "fresh_modules"),
    "--hypothesis-profile=ci",
]
_LOG_LINES = r"^\s*log\.\w+\("
"""Their words are for people; no test holds them to the letter."""


@dataclass(frozen=True)
class Group:
    """Modules that are changed, and the tests that should notice.

    Attributes:
        name: As in `tools/mutants.toml`.
        modules: Files, relative to the repository.
        tests: Files.
        deselect: Tests in them that take too long to be run thousands of times.
    """

    name: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]
    deselect: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its copy of the repository is."""
        return WORK / self.name


def read_plan(path: Path) -> tuple[dict[str, Group], list[Equivalent]]:
    """Return the groups by name, and the changes that do not count."""
    plan = tomllib.loads(path.read_text())
    groups = {
        name: Group(name, *(tuple(x.get(key, ())) for key in ("modules", "tests", "deselect")))
        for name, x in plan["groups"].items()
    }
    return groups, [Equivalent(**entry) for entry in plan.get("equivalent", ())]


def copy_tree(group: Group) -> None:
    """Bring the group's copy up to date with the repository's files, committed or not.

    A file keeps its time of change, by which mutmut sees whether it must make mutants again.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    names = [name for name in listed if name and (ROOT / name).is_file()]
    for old in group.folder.glob("*"):
        if old.name != "mutants":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for name in names:
        source, target = ROOT / name, group.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
        if name in group.modules:
            target.write_text(undecorated(source.read_text()))
            os.utime(target, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    plugin = Path(__file__).with_name("fresh_modules.py")
    shutil.copy2(plugin, group.folder)
    _configure(group, sorted({plugin.name, *(name.split("/")[0] for name in names)}))


def _configure(group: Group, top_level: list[str]) -> None:
    options: dict[str, Any] = {
        "source_paths": ["service", "models", "training"],
        "only_mutate": group.modules,
        "do_not_mutate_patterns": [_LOG_LINES],
        "also_copy": top_level,
        "pytest_add_cli_args": [*_PYTEST, *(f"--deselect={test}" for test in group.deselect)],
        "pytest_add_cli_args_test_selection": [
            test for test in group.tests if (group.folder / test).exists()
        ],
        # A mutant that hangs is stopped after (seconds of its tests + constant) x multiplier.
        "timeout_constant": 1.5,
        "timeout_multiplier": 4.0,
        "use_git_change_detection": False,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in options.items()]
    with (group.folder / "pyproject.toml").open("a") as file:
        file.write("\n[tool.mutmut]\n" + "\n".join(lines) + "\n")


def forget_what_may_have_changed(group: Group) -> None:
    """Test again what nobody noticed, if the code or the tests are not those of the last run."""
    seen = hashlib.sha256()
    for room in ("models", "service", "training", "tests"):
        for path in sorted((group.folder / room).rglob("*.py")):
            seen.update(path.read_bytes())
    note = group.folder / "mutants" / "seen"
    if not note.exists() or note.read_text() != seen.hexdigest():
        for meta in (group.folder / "mutants").glob("**/*.meta"):
            kept = json.loads(meta.read_text())
            codes = kept["exit_code_by_key"]
            kept["exit_code_by_key"] = {key: 1 if codes[key] == 1 else None for key in codes}
            meta.write_text(json.dumps(kept))
        (group.folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    note.parent.mkdir(exist_ok=True)
    note.write_text(seen.hexdigest())


def run_mutmut(group: Group, seconds: float) -> None:
    """Make the mutants and run them until all are done or the time is up.

    Raises:
        ClickException: The tests fail without any change.
    """
    # A fixed order of tests; paths of the copy before those of an editable installation.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": ""}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(TOGETHER)]
    log = group.folder / "mutants" / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=group.folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = 0
        finally:
            _stop(process)
    if code:
        last = log.read_text().replace("\r", "\n")[-4000:]
        raise click.ClickException(f"mutmut ended with {code}; the end of {log}:\n{last}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let mutmut write down what it knows, and leave no mutant behind that hangs."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def report(group: Group, equivalents: list[Equivalent], show: bool) -> float:
    """Print what was noticed and what not, and return the share that was.

    Args:
        group: Has been run.
        equivalents: Changes that do not count.
        show: Whether to print each change that nobody noticed.
    """
    mine = [known for known in equivalents if known.file in group.modules]
    found = {module: mutants_of(group.folder, ROOT, module) for module in group.modules}
    everything = [mutant for mutants in found.values() for mutant in mutants]
    survivors = [m for m in everything if m.is_alive and not any(e.is_it(m) for e in mine)]
    if show:
        for mutant in survivors:
            print(f"\n{mutant.file}:{mutant.line} in {mutant.function}: {mutant.status}")
            print(f"- {mutant.before}\n+ {mutant.after}")
    for known in mine:
        twins = [mutant for mutant in everything if known.is_it(mutant)]
        if not twins:
            print(f"\ntools/mutants.toml: there is no such change any more: {known}")
        elif not any(mutant.is_alive or mutant.status == "not checked" for mutant in twins):
            print(f"\ntools/mutants.toml: a test notices this change: {known}")
    print(f"\n| {group.name} | noticed | of | share | of them hung | equivalent | not tried |")
    print("|---|---|---|---|---|---|---|")
    for module, mutants in found.items():
        _print_row(f"`{module}`", mutants, mine)
    return _print_row("all", everything, mine)


def _print_row(name: str, mutants: list[Mutant], equivalents: list[Equivalent]) -> float:
    same = sum(m.is_alive and any(e.is_it(m) for e in equivalents) for m in mutants)
    count = Counter("alive" if m.is_alive else m.status for m in mutants)
    noticed, untried = len(mutants) - count["alive"] - count["not checked"], count["not checked"]
    counted = noticed + count["alive"] - same
    share = noticed / counted if counted else 1.0
    hung = count["timeout"]
    print(f"| {name} | {noticed} | {counted} | {share:.1%} | {hung} | {same} | {untried} |")
    return share


@click.command(help=__doc__)
@click.argument("names", nargs=-1, metavar="[GROUP]...")
@click.option("--minutes", default=20.0, show_default=True, help="Time for all groups together.")
@click.option("--fresh", is_flag=True, help="Forget what earlier runs found out.")
@click.option("--quiet", is_flag=True, help="Print the tables only.")
def main(names: tuple[str, ...], minutes: float, fresh: bool, quiet: bool) -> None:
    """Run the groups one after another, each with its share of the time that is left."""
    groups, equivalents = read_plan(ROOT / "tools" / "mutants.toml")
    unknown = set(names) - set(groups)
    if unknown:
        raise click.UsageError(f"there is no group {unknown}; there are {', '.join(groups)}")
    chosen = [groups[name] for name in names or groups]
    ends_s = time.monotonic() + 60 * minutes
    for index, group in enumerate(chosen):
        if fresh:
            shutil.rmtree(group.folder, ignore_errors=True)
        copy_tree(group)
        forget_what_may_have_changed(group)
        seconds = (ends_s - time.monotonic()) / (len(chosen) - index)
        print(f"==> {group.name}: at most {seconds / 60:.1f} minutes")
        run_mutmut(group, max(seconds, 1.0))
        with contextlib.chdir(group.folder):
            report(group, equivalents, show=not quiet)


if __name__ == "__main__":
    main()
