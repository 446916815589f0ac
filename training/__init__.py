"""Logging, evaluation and failure detection during training."""
