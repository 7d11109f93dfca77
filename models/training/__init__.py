"""Old name of `training`, for imports that users have; nothing in this project uses it."""

import sys
from importlib import import_module

_MOVED = {
    "dataset": "training.dataset.windows",
    "options": "training.fitting.options",
    "train": "training.fitting.train",
}

for _old, _new in _MOVED.items():
    sys.modules[f"{__name__}.{_old}"] = import_module(_new)
