"""`python -m service` is `world-model`, where no command of that name is installed.

In a checkout that is not installed either, the client's package, which holds the errors, is found
beside this one.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("world_model_client") is None:
    sys.path.append(str(Path(__file__).parents[1] / "client"))

from service.cli import main

main()
