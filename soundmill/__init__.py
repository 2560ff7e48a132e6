"""Soundmill: from folders of recordings and captions to trained, measured audio-generation models."""

__version__ = "0.1.0"
