"""Devices and processes of a run: dtype, ranks, signals, peak FLOP/s."""
