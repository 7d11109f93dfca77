"""Bring in weights that were trained elsewhere with the specification's own classes.

In: files as the usual tools write them: `torch.save` of a `state_dict`, alone or as an entry of a
training checkpoint (PyTorch Lightning and the like), or safetensors. Names may carry a prefix
(`module.`, `_orig_mod.`, `model.`, ...). Several models become an ensemble, be it of one file
(`models.0.`, `models.1.`, ...) or of several. Out: a checkpoint. What is unambiguous is taken;
everything else is refused in one sentence. May touch those files, and runs no code of them.
"""

from models.importing.members import import_weights
from models.importing.specs import spec_of

__all__ = ["import_weights", "spec_of"]
