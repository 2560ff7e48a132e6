"""Benchmarks against other tools: `make bench` runs most of them, `python -m bench.decode` a single one.

Each writes `data/bench/<name>.json` (see `write` in bench/measure.py); `python -m bench.picture` draws them all.
"""
