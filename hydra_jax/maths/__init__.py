"""Losses, uncertainty, metrics, statistics: pure functions of arrays. Imports nothing of the package but errors."""
