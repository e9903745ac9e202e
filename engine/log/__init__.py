"""Log of a run: file, console, curve and tracking services."""
