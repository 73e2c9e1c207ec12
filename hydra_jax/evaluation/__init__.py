"""Predictions, scores, diversity and cost of trained networks."""
