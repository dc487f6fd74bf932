"""The version, in a file of its own: `medlite/__init__.py` points up to the chat, and receipts name the version."""

__version__ = "0.1.0"
