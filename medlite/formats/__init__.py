"""Bytes on disk, hostile until checked: each file format is parsed here and nowhere else."""
