"""Finished parts of an evaluation on disk, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from training.running.files import whole_file
from training.running.locks import FolderLockedError, locked

FOLDER = ".parts"
"""Within the folder of the report; removed when the report is whole."""

_KEY = "key.json"
_CODE = ("models", "training")


class Parts:
    """The parts of one evaluation.

    Parts of another one, of anything else that decides the results, are removed first.

    Args:
        folder: Created if missing.
        key: What decides the results, as JSON: model, data, options, code.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._folder = folder
        text = json.dumps(key, indent=1, sort_keys=True)
        path = folder / _KEY
        if not path.exists() or path.read_text() != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            with whole_file(path) as partial:
                partial.write_text(text)

    def has(self, name: str) -> bool:
        """Return whether a part was finished."""
        return (self._folder / f"{name}.json").exists()

    def folder(self, name: str) -> Path:
        """Return a folder in which a part may keep what it has done so far."""
        return self._folder / name

    def kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a part's result, plain JSON, computed now if it was not before."""
        return self.kept_with_arrays(name, lambda: (compute(), {}))[0]

    def kept_with_arrays(
        self, name: str, compute: Callable[[], tuple[Any, dict[str, NDArray[Any]]]]
    ) -> tuple[Any, dict[str, NDArray[Any]]]:
        """Return a part's result and its arrays by name, computed now if they were not before.

        They are read back in any case, so that they are the same whether they were kept or not.
        """
        document, arrays = (self._folder / f"{name}.{end}" for end in ("json", "safetensors"))
        if not self.has(name):
            result, found = compute()
            with whole_file(arrays) as partial:
                save_file({n: np.ascontiguousarray(x) for n, x in found.items()}, partial)
            with whole_file(document) as partial:  # last: it says that the part is finished
                partial.write_text(json.dumps(result))
        return json.loads(document.read_text()), load_file(arrays)


def remove_parts(report: Path) -> None:
    """Remove the parts of an evaluation whose report is whole; another one's that runs are left."""
    with suppress(FolderLockedError), locked(report, "evaluating"):
        shutil.rmtree(report / FOLDER, ignore_errors=True)


def code_version() -> dict[str, str]:
    """Return what stands for the code that computes: libraries, and a hash of our own files."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(path for name in _CODE for path in (root / name).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    libraries = ("highway-env", "numpy", "scikit-learn", "torch")
    return {"ours": digest.hexdigest(), **{name: version(name) for name in libraries}}
