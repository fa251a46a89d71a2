"""The engine of an experiment: content-addressed steps, from a config to its report."""
