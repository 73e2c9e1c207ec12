"""Devices and processes: meshes, collectives, signals, options of XLA. They know no network and no training."""
