"""Tables and figures, made from scores and rows of results."""
