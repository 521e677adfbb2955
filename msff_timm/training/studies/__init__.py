"""Studies: many runs of the trainer, and one table of their results."""
