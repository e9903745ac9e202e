"""What a run tells: live line, log file, loss picture, services."""
