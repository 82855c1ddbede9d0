"""Training: the loop, accuracy, and what runs it."""
