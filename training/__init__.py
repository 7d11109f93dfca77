"""From simulator to checkpoint: collect, dataset, train, calibrate, evaluate."""
