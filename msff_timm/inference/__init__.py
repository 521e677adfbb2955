"""Use of trained models: prediction, explanation, export, and a web page."""
