"""Networks as lists of stages, and the cut. Imports `devices` and what is below it."""
