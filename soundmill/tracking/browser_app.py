"""MLflow's server as `soundmill browse` starts it: runs, scores, models and their files, without anything that runs commands; and
its first page, the list of runs, with scores as columns and the best first.

What else MLflow serves (docs/orchestration.md) is refused, as are pages of other sites: MLflow itself accepts those of any server
on this machine, and hosts such as 10.example.org. `mlflow server --app-name soundmill` finds this application by its entry point
`mlflow.app`. It stores such a view as a tag of the experiment, in an undocumented format (3.15).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from soundmill.tracking.history import MOST_RUNS, SCORES, open_client
from soundmill.tracking.mlflow_runs import EXPERIMENT_NOTE, HIGHER, NOTE, rank_by
from soundmill.tracking.stores import experiment, store

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send


NAMES = ("127.0.0.1", "localhost", "::1")


def is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in NAMES


def never_proxied() -> None:
    """Have every client in this process and its children ask this machine directly, even if HTTP_PROXY or ALL_PROXY is set."""
    listed = [name.strip() for key in ("no_proxy", "NO_PROXY") for name in os.environ.get(key, "").split(",") if name.strip()]
    if set(listed) != {"*"}:  # which urllib knows only if it is alone
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*listed, *NAMES]))


class OwnPagesOnly:
    """ASGI middleware: refuses requests that name another host (`names`, with ports; none: any) or come from another site's page.

    Every page in a browser may send requests to this machine. Under a name that its owner leads to 127.0.0.1, it may also read the
    answers, unless the name is checked.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()):
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            from starlette.datastructures import Headers
            from starlette.responses import PlainTextResponse

            headers = Headers(scope=scope)
            names = self.names or headers.getlist("host")
            foreign = [urlsplit(origin).netloc for origin in headers.getlist("origin")] + headers.getlist("host")
            if not headers.getlist("host") or not all(name in names for name in foreign):
                await PlainTextResponse("Only this server's own pages may ask it.", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


# Path components after /api/VERSION/mlflow/, or at the start.
REFUSED = "assistant demo gateway genai issues jobs mcp-servers prompt-optimization scorer scorers webhooks".split()
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


VIEW = "soundmill-scores"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
TRAINING = "workflowType=machine_learning"  # otherwise MLflow also shows its pages for chats
LISTED = "tags.kind != 'stage'"  # MLflow nests stages below their pipeline only in a list by date
ORDER = ("fad", "mmd", "kl", "label", "mos", "preference")


def scores_page(home: Path, port: int) -> str:
    """Address of the list of runs by score, which it writes, and of the best report; without recorded runs, that of MLflow."""
    where = store(home)
    base = where.browser(port)
    if where.database and not where.database.exists():
        return base
    client, _ = open_client(home)
    existing = client.get_experiment_by_name(experiment())
    if not existing:
        return base
    runs = client.search_runs([existing.experiment_id], LISTED, max_results=MOST_RUNS)
    names = {name for run in runs for name in run.data.metrics if SCORES.fullmatch(name)}
    scores = sorted(names, key=lambda name: (ORDER.index(name.partition("_")[0]), name))
    first = rank_by(client, existing, scores)
    client.set_experiment_tag(existing.experiment_id, VIEW_TAG, view(first, scores))
    order = [f"metrics.`{first}` {'DESC' if first.startswith(HIGHER) else 'ASC'}"] if first else []  # runs without it come last
    found = client.search_runs([existing.experiment_id], "tags.kind = 'pipeline'", order_by=order, max_results=1)
    best = next((run for run in found if first in run.data.metrics), None)
    if best and EXPERIMENT_NOTE in existing.tags.get(NOTE, EXPERIMENT_NOTE):  # a note that the user wrote stays
        family = best.data.tags["family"].partition(" ")[0]
        run = f"#/experiments/{existing.experiment_id}/runs/{best.info.run_id}"
        report = f"{run}/artifacts/{family}.html?{TRAINING}"
        line = f"Best {first}, {best.data.metrics[first]:.3g}: [report of {best.info.run_name}]({report}). {EXPERIMENT_NOTE}"
        client.set_experiment_tag(existing.experiment_id, NOTE, line)
    return f"{base}/#/experiments/{existing.experiment_id}/runs?viewStateShareKey={VIEW}&{TRAINING}"


def view(first: str | None, scores: list[str]) -> str:
    """The tag's value: columns and order of the list of runs."""
    columns = [
        *(f"tags.`{name}`" for name in ("family", "corpus")),
        *(f"metrics.`{name}`" for name in sorted(scores, key=lambda name: name != first)),
        "attributes.`Duration`",
        "tags.`commit`",
        "attributes.`Created`",
    ]
    state = {
        "searchFilter": LISTED,
        "orderByKey": f"metrics.`{first}`" if first else "attributes.start_time",
        "orderByAsc": bool(first) and not first.startswith(HIGHER),
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": columns,
        "viewMaximized": True,
    }
    now = time.time_ns() // 1_000_000
    return json.dumps({"name": "Scores, best first", "createdAt": now, "updatedAt": now, "state": json.dumps(state)})
