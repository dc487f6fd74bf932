"""Two records against each other: loss with its interval, flips, verdict, calibration, published scores."""
