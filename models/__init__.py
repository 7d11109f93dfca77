"""The world model of a car; usable without the service, in a notebook for example.

In: a checkpoint folder, states and actions. Out: predicted states, rewards and survival, and
verdicts on them. Knows neither the service nor training; touches no network, and the disk only in
`checkpoint`, `importing` and for the machine code that `backends` compile.

- `spec` and its parts in `layout`, `highway`, `road_users`: what the numbers of a state and an
  action mean;
- `saturation`, `slots`: states as they come, made what is meant by them;
- `network`: the networks, in PyTorch;
- `backends`: one file per way to compute a rollout; C++ and CUDA in `backends/csrc`;
- `checkpoint`, `importing`: a model on disk, and weights that were trained elsewhere;
- `prediction`, `survival`, `safety`, `conformal`: what is predicted, and what follows. NumPy only.

Import the submodule you need: this package imports nothing itself, so that torch is loaded only by
those who need it. `world_model`, `ensemble` and `training` are old names; see docs/architecture.md.
"""
