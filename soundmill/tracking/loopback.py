"""Servers on this machine: clients reach them without a proxy, and only their own pages may ask them."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost", "::1")


def is_loopback(url: str) -> bool:
    """Whether an address leads to this machine itself."""
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
