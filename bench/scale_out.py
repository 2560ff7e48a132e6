"""Two processes of one thread against one: `python -m bench.scale_out training`, `python -m bench.scale_out data`.

`training`: steps of the laptop-scale mel DDPM in 32 bits on noise, the same batch split between the processes. Each of them takes
the optimiser's step for all weights and exchanges all gradients, so a larger batch gains more.

`data`: planning and cutting clips of recordings in a bucket (moto's S3 server on this machine) and of the same files on disk.
"""

from bench import measure
from bench.scale_out_data import data
from bench.scale_out_training import training


def main() -> None:
    parser = measure.parser(__doc__, steps=20, batch=64, clips=240, repetitions=3)
    parser.add_argument("what", choices=["data", "training"])
    args = parser.parse_args()
    {"data": data, "training": training}[args.what](args)


if __name__ == "__main__":
    main()
