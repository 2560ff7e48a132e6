"""Two processes of one thread against one: `python -m bench.scale_out data`.

`data`: planning and cutting clips of recordings in a bucket (moto's S3 server on this machine) and of the same files on disk.
"""

from __future__ import annotations

from bench import measure
from bench.scale_out_data import data


def main() -> None:
    parser = measure.parser(__doc__, clips=240, repetitions=3)
    parser.add_argument("what", choices=["data"])
    args = parser.parse_args()
    {"data": data}[args.what](args)


if __name__ == "__main__":
    main()
