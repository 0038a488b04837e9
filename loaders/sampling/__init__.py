"""Which sample comes when and what happens to it: order, plan and their random numbers. Pure NumPy, no torch."""
