"""Settings of all tests."""

from __future__ import annotations

import torch

# Small products gain nothing from threads, and threads of several tests' servers fight for cores.
torch.set_num_threads(1)
