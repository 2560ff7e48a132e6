"""The stages of dvc.yaml, one program each: `python -m stages.NAME`."""

import sys

from soundmill import lifetime

if sys.argv[0] == "-m":  # Python has not imported the stage yet, which takes seconds
    lifetime.die_with_dvc()
