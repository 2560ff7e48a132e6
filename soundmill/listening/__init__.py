"""Comparing models by ear: a page with the sounds of several models for the same requests, and blind listening tests."""
