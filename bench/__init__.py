"""What low bits cost: accuracy, flips, memory and speed against full precision, with intervals."""
