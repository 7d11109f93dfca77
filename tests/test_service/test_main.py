from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_package_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "--help"], capture_output=True, text=True, check=True
    )

    assert "serve" in done.stdout


def test_a_checkout_that_is_not_installed_is_served() -> None:
    """Packages are found, but no paths of editable installs: `-S` reads no `.pth` files."""
    packages = os.pathsep.join({sysconfig.get_path(name) for name in ("purelib", "platlib")})

    done = subprocess.run(
        [sys.executable, "-S", "-m", "service", "serve", "--port", "0", "--checkpoint", "absent"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": packages},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "cannot load the checkpoint" in done.stderr, done.stderr
    assert done.returncode == 1
