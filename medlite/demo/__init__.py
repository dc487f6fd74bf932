"""The embedded demonstration model: a small trained checkpoint and the questions it is measured on."""

from pathlib import Path

__all__ = ["checkpoint_path", "questions_path"]


def checkpoint_path() -> Path:
    """Return the folder of the embedded checkpoint, in Hugging Face layout."""
    return Path(__file__).parent / "checkpoint"


def questions_path() -> Path:
    """Return the embedded four-option questions, one JSON object a line."""
    return Path(__file__).parent / "questions.jsonl"
