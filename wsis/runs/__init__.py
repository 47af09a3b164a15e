"""A run: its stages, checkpoints, logs, costs and pseudo-labels."""
