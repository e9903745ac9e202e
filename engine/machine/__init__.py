"""Where a run computes: device, processes, signals, peak."""
