"""A few small rollouts: what compute-sanitizer and ncu watch.

python -m tools.gpu_check.watched ROWS STEPS
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from tools.gpu_check.report import bundled, device, fused, rolled_out, rows_of


def main() -> None:
    """Roll out some rows, one row, and a few more rows."""
    rows, steps = int(sys.argv[1]), int(sys.argv[2])
    with ExitStack() as stack:
        checkpoint = bundled(2)
        backend = fused(checkpoint, device(stack))
        for count in (rows, 1, rows + 3):
            rolled_out(backend, *rows_of(checkpoint, count, steps))
    print("done")


if __name__ == "__main__":
    main()
