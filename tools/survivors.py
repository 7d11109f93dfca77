"""What mutmut has made and found out, and the little that it needs of us."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst
from libcst import matchers
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

_ALIVE = ("survived", "no tests", "suspicious", "check was interrupted by user")


@dataclass(frozen=True)
class Mutant:
    """One small change.

    Attributes:
        file: The module.
        line: Where the change is in it.
        function: What it is in, with its class.
        before: The lines that it takes away, joined.
        after: The lines that it brings.
        follows: The line above them.
        status: mutmut's word: killed, survived, timeout, ...
    """

    file: str
    line: int
    function: str
    before: str
    after: str
    follows: str
    status: str

    @property
    def is_alive(self) -> bool:
        """Whether no test noticed it."""
        return self.status in _ALIVE


@dataclass(frozen=True)
class Equivalent:
    """A change that no test can notice.

    Attributes:
        file: The module.
        function: What it is in, with its class.
        before: The lines that it takes away, joined.
        after: The lines that it brings.
        reason: Why nobody can tell the two apart.
        follows: The line above them, where the function has several such lines.
    """

    file: str
    function: str
    before: str
    after: str
    reason: str
    follows: str | None = None

    def is_it(self, mutant: Mutant) -> bool:
        """Tell whether a mutant is this change."""
        mine = (self.file, self.function, self.before, self.after)
        is_same = mine == (mutant.file, mutant.function, mutant.before, mutant.after)
        return is_same and self.follows in (None, mutant.follows)


class _Undecorate(libcst.CSTTransformer):
    def leave_FunctionDef(  # noqa: N802 (the library's name)
        self, original_node: libcst.FunctionDef, updated_node: libcst.FunctionDef
    ) -> libcst.FunctionDef | libcst.FlattenSentinel[libcst.BaseStatement]:
        if len(updated_node.decorators) != 1:
            return updated_node
        decorator = updated_node.decorators[0].decorator
        if not matchers.matches(decorator, matchers.Name("property")):
            return updated_node
        name = updated_node.name.value
        after = libcst.parse_statement(f"{name} = property({name})")
        return libcst.FlattenSentinel([updated_node.with_changes(decorators=()), after])


def undecorated(source: str) -> str:
    """Return a module with `f = property(f)` for each `@property`: mutmut leaves those alone."""
    return libcst.parse_module(source).visit(_Undecorate()).code


def mutants_of(folder: Path, root: Path, module: str) -> list[Mutant]:
    """Return all mutants of a module; the working folder must be `folder`.

    Args:
        folder: The copy that mutmut works in.
        root: The repository.
        module: File, relative to it.
    """
    meta = folder / "mutants" / f"{module}.meta"
    if not meta.exists():
        return []
    source = (root / module).read_text()
    codes = json.loads(meta.read_text())["exit_code_by_key"]
    return [_mutant(key, code, module, source) for key, code in codes.items()]


def _mutant(key: str, code: int | None, module: str, source: str) -> Mutant:
    name, owner = orig_function_and_class_names_from_key(key)
    function = f"{owner}.{name}" if owner else name
    changed = get_diff_for_mutant(key, path=module).splitlines()[2:]
    before, after = (
        [line[1:].strip() for line in changed if line.startswith(sign)] for sign in "-+"
    )
    lines = source.splitlines()
    first, last = next(
        (start, end) for path, start, end in _functions(ast.parse(source)) if path == function
    )
    guess = first + _offset(changed)
    places = [n for n in range(first, last + 1) if before and lines[n - 1].strip() == before[0]]
    line = min(places, key=lambda n: abs(n - guess), default=guess)
    above, status = lines[line - 2].strip(), status_by_exit_code[code]
    return Mutant(module, line, function, " ".join(before), " ".join(after), above, status)


def _offset(changed: list[str]) -> int:
    """Return how many lines after its first a function has changed."""
    start = int(changed[0].split(" ")[1].split(",")[0].removeprefix("-"))
    same = next(n for n, line in enumerate(changed[1:]) if line[0] in "-+")
    return start + same - 1


def _functions(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """Yield all functions and methods with their first and last lines."""
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for function in inner:
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                yield owner + function.name, function.lineno, function.end_lineno or 0
