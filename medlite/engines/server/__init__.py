"""A model behind an OpenAI-compatible server, and JSON over HTTP to it."""
