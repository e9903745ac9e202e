"""Checkpoints for other programs, and theirs as one of ours."""
