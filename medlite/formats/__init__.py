"""Bytes on disk, hostile until checked: a format that several rooms read is parsed here and nowhere else."""
