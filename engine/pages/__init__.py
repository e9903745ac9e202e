"""The report on a folder of checkpoints, as one page."""
