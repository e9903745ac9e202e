"""JSONL -> token ids on disk."""
