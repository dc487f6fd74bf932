"""One measurement in a process of its own, and the record that it leaves."""
