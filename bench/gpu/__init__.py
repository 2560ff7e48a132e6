"""Figures of one GPU in a quarter of an hour, on a machine that has PyTorch and no network.

`python -m bench.gpu.pack PACK` prepares here what the other machine lacks: features of recordings, composed parameters, wheels.
There, with this checkout and PACK:

pip install --no-index --no-deps --target site PACK/wheels/*.whl
PYTHONPATH=site:. python -m bench.gpu PACK OUT              # everything, in the order of `PARTS`
PYTHONPATH=site:. python -m bench.gpu PACK OUT training --minutes 3

What OUT gets (JSON, pictures, sounds) is written as it is measured, so a run that is stopped leaves what it has.
"""
