"""Score checkpoints on held-out files of rows."""
