"""What the recipes share: plain functions and small dataclasses. Start reading at loop.py."""
