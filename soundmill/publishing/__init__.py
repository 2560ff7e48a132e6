"""Trained models and prepared clips as directories for others."""
