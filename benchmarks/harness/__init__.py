"""How to measure: turns and windows, memory, the page cache, the trainer's own step, and the types of what is found."""
