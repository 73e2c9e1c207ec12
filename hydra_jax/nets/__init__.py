"""Networks as lists of stages, and the cut. They import `devices` and what is below it."""
