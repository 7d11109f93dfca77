"""Windows to a checkpoint: normalisers, losses, members, calibration.

In: `Windows` of any spec, and `TrainOptions`. Out: a checkpoint folder, and a working folder from
which an interrupted run goes on. May touch the disk, processes and a GPU; simulates nothing.
"""
