"""Resources of the machine, atomic files, progress, formatting, instrumentation."""
