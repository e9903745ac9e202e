"""Prompts -> tokens."""
