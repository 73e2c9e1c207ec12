"""Losses, uncertainty, metrics, statistics: pure functions of arrays. They import no other folder of the package."""
