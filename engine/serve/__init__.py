"""Checkpoints behind OpenAI's API: HTTP alone."""
