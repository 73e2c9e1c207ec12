"""The training step, the loop, and its batches. They know no method and no config."""
