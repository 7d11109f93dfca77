"""Ways to compute rollouts of an ensemble, one file each.

In: an ensemble, states [B, S] and actions [B, H, A] as arrays. Out: a written `Prediction`. May
touch the device, compile C++ and CUDA code from `csrc`, and keep what is compiled in a cache
folder.
"""
