"""Prefect flows that run the DVC graph and handle failures. Everything they write stays inside the project."""

import os
from pathlib import Path

_checkout = Path(__file__).resolve().parents[1]

# Prefect reads its settings when it is first imported, so they are set before any module of this package imports it.
SETTINGS = {
    "PREFECT_HOME": str((_checkout if (_checkout / "dvc.yaml").exists() else Path.cwd()) / ".prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",  # its own server would outlive a killed flow; flows/server.py starts one
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
