"""A plugin of pytest for mutants: test modules are imported anew in each run.

A mutant is a process forked from one that has run all tests before. What test modules build when
they are imported would be as it was without the change; and who builds it there would not be known.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from mutmut.state import state


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Forget the modules of earlier runs in this process."""
    tests = Path("tests").resolve()
    for name, module in list(sys.modules.items()):
        if tests in Path(getattr(module, "__file__", None) or "/").parents:
            del sys.modules[name]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Note for each test what the import of its module has called: mutmut sees tests only."""
    report = yield
    if isinstance(collector, pytest.Module):
        called, tests = set(state()._stats), state().tests_by_mangled_function_name
        state()._stats.clear()
        for function in called:
            tests[function] |= {x.nodeid for x in report.result if isinstance(x, pytest.Function)}
    return report
