"""`python -m soundmill.tracking HOME`: the uploader process of the project at HOME."""

import logging
import os
import sys
from pathlib import Path

from soundmill.tracking import store, uploader

for name in ("mlflow", "alembic"):
    logging.getLogger(name).setLevel(logging.ERROR)
try:
    uploader.upload(store(Path(sys.argv[1])))
except uploader.Replaced:
    os.execv(sys.executable, sys.orig_argv)
