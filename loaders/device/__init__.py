"""What is done to batches on the device: the second read, flips, colour, normalisation."""
