"""Judging generated sounds by named protocols: files in, scores with their ruler and a page to look at out."""
