"""Windows to a checkpoint: normalisers, losses, members, calibration.

In: `Windows` of any spec, and `TrainOptions`; to calibrate, a checkpoint too; to check, a folder of
episodes. Out: a checkpoint folder, a working folder from which an interrupted run goes on, and what
is wrong with data. May touch the disk, processes and a GPU; simulates nothing.
"""
