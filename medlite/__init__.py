"""medlite: medical LLMs at low bits on the machine you have, with the loss measured. Not a medical device."""

__version__ = "0.1.0"
