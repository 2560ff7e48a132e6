"""MLflow's server as `soundmill browse` starts it: runs, scores, models and their files, without anything that runs commands.

MLflow also serves an assistant, which starts agents with a shell on this machine for anyone who reaches the port, and jobs, LLM
judges, gateways and webhooks, which call programs or other servers. Viewing runs needs none of these, so they are refused. So are
pages of other sites: MLflow itself accepts those of any server on this machine, and hosts such as 10.example.org.
`mlflow server --app-name soundmill` finds this application by its entry point `mlflow.app`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from soundmill.tracking.loopback import OwnPagesOnly

if TYPE_CHECKING:
    from fastapi import FastAPI

REFUSED = (  # path components after /api/VERSION/mlflow/, or at the start
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
# On a local address, the page opens the assistant's panel by itself, even if the server refuses it.
HIDE_ASSISTANT = """<script>
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
</script><style>[data-assistant-ui] { display: none !important }</style>"""


def is_refused(path: str) -> bool:
    """Whether requests for this path (decoded, without the query) are refused."""
    return bool(_REFUSED.fullmatch(path))


def create_app() -> FastAPI:
    """The application that `mlflow server` runs."""
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse
    from mlflow.server import app as pages
    from mlflow.server.fastapi_app import create_fastapi_app

    os.environ.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", "127.0.0.1:*,localhost:*")
    os.environ.pop("MLFLOW_DEPLOYMENTS_TARGET", None)  # otherwise /gateway-proxy, which every page requests, calls this server
    first = (Path(pages.static_folder) / "index.html").read_text(encoding="utf-8").replace("<head>", f"<head>{HIDE_ASSISTANT}", 1)
    pages.view_functions["serve"] = lambda: first
    app = create_fastapi_app(pages)

    @app.middleware("http")
    async def guard(request: Request, call_next) -> Response:
        path = request.scope["path"]
        if not is_refused(path):
            return await call_next(request)
        message = f"{path}: `soundmill browse` serves no assistants, jobs or gateways"
        return JSONResponse({"error_code": "PERMISSION_DENIED", "message": message}, status_code=403)

    app.add_middleware(OwnPagesOnly)
    return app
