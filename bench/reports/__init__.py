"""Comparisons as documents and as tables of the terminal. The forms are the table of `bench.reports.forms`."""
