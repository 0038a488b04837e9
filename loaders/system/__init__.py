"""What the machine offers (cores, memory, disk), atomic files, progress, formatting, instrumentation."""
