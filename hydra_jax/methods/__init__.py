"""How each method trains a network, and how its outputs are read. Imports `nets` and `maths`."""
