"""Judging generated sounds by named protocols: files in, scores with baselines and a report page out."""
