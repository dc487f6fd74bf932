"""Hugging Face checkpoints to low-bit artifacts: one plan, one streaming pass, ggml's own bytes."""
