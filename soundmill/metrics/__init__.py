"""Metrics of embeddings, with intervals: functions over arrays, for evaluations and for scores while training."""
