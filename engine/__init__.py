"""What the recipes share: plain functions and small dataclasses, one training loop. README.md has the reading order."""
