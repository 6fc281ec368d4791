"""Units of work, OUT, and the loop that runs what is missing. Knows nothing of models."""
