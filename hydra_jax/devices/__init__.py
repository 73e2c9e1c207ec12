"""Devices and processes: meshes, collectives, signals, and what XLA is told. Imports nothing that it spreads."""
