"""Configs, keys, saved artifacts and the run. Imports all the rest."""
