"""Our own files on disk: weights and training states."""
