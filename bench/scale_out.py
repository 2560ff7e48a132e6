"""Two processes of one thread against one: `python -m bench.scale_out training`.

`training`: steps of the laptop-scale mel DDPM in 32 bits on noise, the same batch split between the processes. Each of them takes
the optimiser's step for all weights and exchanges all gradients, so a larger batch gains more.
"""

from __future__ import annotations

from bench import measure
from bench.scale_out_training import training


def main() -> None:
    parser = measure.parser(__doc__, steps=20, batch=64, repetitions=3)
    parser.add_argument("what", choices=["training"])
    args = parser.parse_args()
    {"training": training}[args.what](args)


if __name__ == "__main__":
    main()
