"""`python -m soundmill.tracking HOME`: the uploader process of the project at HOME."""

import logging
import os
import sys
from pathlib import Path

from soundmill.tracking import journal, store

for name in ("mlflow", "alembic"):
    logging.getLogger(name).setLevel(logging.ERROR)
try:
    journal.upload(store(Path(sys.argv[1])))
except journal.Replaced:
    os.execv(sys.executable, sys.orig_argv)
