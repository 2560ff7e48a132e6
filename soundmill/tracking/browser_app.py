"""MLflow's server as `soundmill browse` starts it: runs, scores, models and their files, and nothing that acts on a visitor's word.

MLflow also serves an assistant, which starts agents that have a shell on this machine for whoever reaches the port, and jobs,
judges, gateways and webhooks, which call programs or other servers. None of it is needed to look at runs: it is refused here.
`mlflow server --app-name soundmill` finds this by the entry point `mlflow.app` (MLflow's plug-ins).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

REFUSED = (  # what follows /api/VERSION/mlflow/ in the address, or stands first in it
    "assistant",
    "demo",
    "gateway",
    "genai",
    "issues",
    "jobs",
    "mcp-servers",
    "prompt-optimization",
    "scorer",
    "scorers",
    "webhooks",
)
_REFUSED = re.compile(rf"/+(?:(?:ajax-)?api/+[\d.]+/+(?:mlflow/+)?)?(?:{'|'.join(REFUSED)})(?:/.*)?", re.DOTALL)
# The page opens the assistant's panel by itself where the address is this machine's, whatever the server answers.
SHUT = """<script>
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
</script><style>[data-assistant-ui] { display: none !important }</style>"""


def is_refused(path: str) -> bool:
    """Whether nothing is served at this path, decoded and without the query."""
    return bool(_REFUSED.fullmatch(path))


def create_app() -> FastAPI:
    """The application that `mlflow server` runs."""
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import create_fastapi_app

    os.environ.pop("MLFLOW_DEPLOYMENTS_TARGET", None)  # else /gateway-proxy, which every page asks, calls the server it names
    first = (Path(pages.static_folder) / "index.html").read_text(encoding="utf-8").replace("<head>", f"<head>{SHUT}", 1)
    pages.view_functions["serve"] = lambda: first
    app = create_fastapi_app(pages)

    @app.middleware("http")
    async def guard(request: Request, call_next) -> Response:
        path = request.scope["path"]
        if not is_refused(path):
            return await call_next(request)
        message = f"{path}: `soundmill browse` shows runs, and serves no assistants, jobs or gateways"
        return JSONResponse({"error_code": "PERMISSION_DENIED", "message": message}, status_code=403)

    return app
