"""One step, one loop, and what they read. Does not know methods or configs."""
