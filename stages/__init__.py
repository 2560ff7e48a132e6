"""The stages of dvc.yaml, each a program: `python -m stages.NAME`."""

import sys

from soundmill import lifetime

if sys.argv[0] == "-m":  # Python still looks for NAME: before it and what it needs are imported
    lifetime.die_with_dvc()
