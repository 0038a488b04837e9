"""The order of samples and the plan of each one's augmentation, with their random numbers. Pure NumPy, no torch."""
