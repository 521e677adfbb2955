"""What a trained model is used for: one job in each file."""
