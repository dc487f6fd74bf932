"""One streaming pass from the source to the output: slabs, workers, journal, writer."""
