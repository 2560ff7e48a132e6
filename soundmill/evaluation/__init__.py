"""Scoring generated sounds under named protocols: files in, scores with baselines and a report page out."""
