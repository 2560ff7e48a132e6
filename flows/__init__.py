"""Prefect flows over the DVC graph: when, where, and what if it fails. Everything they write stays inside the project."""

import os
from pathlib import Path

_checkout = Path(__file__).resolve().parents[1]

# Prefect reads its settings when it is first imported, so they stand here, before any module of this package can import it.
SETTINGS = {
    "PREFECT_HOME": str((_checkout if (_checkout / "dvc.yaml").exists() else Path.cwd()) / ".prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",  # Prefect's own would outlive a killed flow: flows/server.py starts one
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
