"""Perplexity over a text, and the distance between two models on it."""
