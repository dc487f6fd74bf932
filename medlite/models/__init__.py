"""Which models there are, what of them is on this machine, and what brings the rest."""
