"""Engine of the recipes: plain functions and small dataclasses, one training loop. README.md has the reading order."""
