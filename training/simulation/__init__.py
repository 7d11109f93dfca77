"""Simulated driving: roads, traffic, ways to drive, and the loop that steps them.

In: a seed, and what to drive and how. Out: an `Episode`, or a `Simulation` to step and copy. The
only room that imports highway-env. No disk, no torch.
"""
