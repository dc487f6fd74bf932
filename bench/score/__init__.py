"""Logits to log-probabilities to scored samples."""
