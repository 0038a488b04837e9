"""What is measured: loaders, saturation, profiles, steps, and whole training runs."""
