"""Report on a folder of checkpoints as one page, and as data."""
