"""From a simulator and recordings to a checkpoint: the only rooms that know a simulator.

In: what the command line asks for, and folders of recorded episodes. Out: folders: episodes, a
checkpoint, a report. Each room builds on those before it, and all of them on `models`:

- `running`: stopping, locks and progress of long commands, whole files;
- `simulation`: road users in highway-env and in SUMO, episode by episode;
- `dataset`: episodes on disk, and training windows made of them;
- `fitting`: windows to weights, calibration and a checkpoint;
- `evaluation`: a checkpoint against baselines on episodes that were held out;
- `closed_loop`: drives with and without a monitor, through the running service.

May touch the simulator, the disk, processes and a GPU. The server knows nothing of training, and
training nothing of the server, except for the client by which `closed_loop` asks it.
"""
