"""Measurements of the data plane, side by side with what it is compared to: `make bench`, or one: `python -m bench.decode`.

Each writes `data/bench/<name>.json` (bench/measure.py says what is in it); `python -m bench.picture` draws them all.
"""
