"""What lies on disk: weights, states, and the formats of other programs."""
