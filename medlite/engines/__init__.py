"""Runtimes behind one protocol (`engine.Engine`)."""
