"""Trained networks in use: loading, saving, prediction for files, export."""
