"""Pretraining, evaluation and export: whatever runs on a data set."""
