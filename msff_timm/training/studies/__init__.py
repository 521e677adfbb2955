"""Studies: many training runs and one table of their results."""
