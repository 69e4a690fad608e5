"""What is measured: paired times, peaks of memory, counted operations."""
