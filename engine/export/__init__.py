"""Export checkpoints to other programs, and import theirs."""
