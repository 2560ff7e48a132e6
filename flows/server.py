"""The Prefect server: the one that the settings name, one for a single flow, or that of `make server`."""

import argparse
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows import dvc
from soundmill import disk, lifetime, terminal, tracking
from soundmill.errors import UserError
from soundmill.tracking.browser_app import OwnPagesOnly, is_loopback

START_SECONDS = 600.0  # a busy machine with a cold file cache took more than two minutes
STOP_SECONDS = 5.0
PORT = 4200
LOGIN = "prefect.toml"  # in the project's root; `prefect` reads it too
LOGIN_TEXT = """\
# The login of this project's Prefect server, for all that is started here. Keep it to yourself; git ignores this file.
[api]
auth_string = "{login}"

[server.api]
auth_string = "{login}"
cors_allowed_origins = "{origins}"
"""


def address() -> str | None:
    """The server that Prefect's settings name, in the environment or in a profile; None: each run starts one."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    if not Path(os.environ["PREFECT_HOME"], "profiles.toml").exists():
        return None
    from prefect.settings import PREFECT_API_URL  # importing it takes seconds

    return PREFECT_API_URL.value()


def login(url: str) -> str:
    """`name:password` for the server at `url`: of Prefect's settings, else, on this machine, of the project's own server; or ""."""
    from prefect.settings import PREFECT_API_AUTH_STRING

    return PREFECT_API_AUTH_STRING.value() or (_own_login(Path.cwd()) if is_loopback(url) else None) or ""


def _own_login(root: Path) -> str | None:
    home = tracking.project_of(root)
    try:
        return tomllib.loads((home / LOGIN).read_text(encoding="utf-8")).get("api", {}).get("auth_string")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{home / LOGIN}: not readable as TOML ({error}); correct or delete it") from None


def check(url: str) -> None:
    """UserError with the remedy unless a Prefect server answers at `url`, and accepts our login."""
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/admin/version", auth=tuple(login(url).partition(":")[::2]), timeout=5)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"no Prefect server at {url} ({error}); start one with `make server`, or set PREFECT_API_URL") from None
    if answer.status_code == 401 and "PREFECT_API_KEY" not in os.environ:
        whose = f"{LOGIN} of the project that started it" if is_loopback(url) else "the server"
        raise UserError(f"the Prefect server at {url} refuses our login; set PREFECT_API_AUTH_STRING to that of {whose}")


@contextmanager
def use(url: str) -> Iterator[None]:
    """Have Prefect use the server at `url`, with our login."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    check(url)
    with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: login(url) or None}):
        yield


@contextmanager
def own_server() -> Iterator[None]:
    """Start a server on a free local port, wait until it answers, and have this process use it.

    Prefect's temporary server outlives a flow killed with -9. This one ends with the thread that starts it, so call it from the
    main one. Nobody else knows its password.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, get_current_settings, temporary_settings

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    password = f"flow:{secrets.token_urlsafe()}"
    own = {"PREFECT_SERVER_API_AUTH_STRING": password, "PREFECT_SERVER_UI_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.server", "--port", str(port), "--for-one-flow"],
        env=dvc.environment({**settings, **own}),
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches the flow alone, which needs the server to end
        preexec_fn=lifetime.with_this_process(),
    )
    try:
        url = f"http://127.0.0.1:{port}/api"
        _wait(url, process)
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password}):
            try:
                yield
            finally:  # sends buffered log lines: at exit, Prefect would try for minutes to reach a server that is gone
                for name in ("prefect.flow_runs", "prefect.task_runs"):
                    for handler in logging.getLogger(name).handlers:
                        handler.flush()
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:  # it waits for open connections of this process
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    import httpx

    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success and process.poll() is None:
                return
        time.sleep(0.1)
    raise UserError(
        f"Prefect's server did not start ({'no answer' if process.poll() is None else f'exit status {process.poll()}'}); "
        "start one with `make server`, and set PREFECT_API_URL"
    )


def _new_login(root: Path, origins: str) -> None:
    """Make the project's own login, unless it has one; only its user can read it."""

    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8", opener=disk.private) as file:
            file.write(LOGIN_TEXT.format(login=f"soundmill:{secrets.token_urlsafe()}", origins=origins))

    with disk.exclusive(Path(os.environ["PREFECT_HOME"])):
        if not (root / LOGIN).exists():
            disk.write_atomically(root / LOGIN, write)
    if not _own_login(root):
        raise UserError(f'{root / LOGIN} has no login; add a line `auth_string = "<NAME>:<PASSWORD>"` below a line `[api]`')
    (root / LOGIN).chmod(0o600)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.server", description="A Prefect server for this machine, until stopped.")
    parser.add_argument("--port", type=int, default=PORT, help="where it listens, on loopback (default: %(default)s)")
    parser.add_argument("--for-one-flow", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not 0 < args.port < 65536:
        parser.error(f"--port {args.port}: give a number from 1 to 65535")
    root, names = Path.cwd(), [f"{name}:{args.port}" for name in ("127.0.0.1", "localhost")]
    origins = ",".join(f"http://{name}" for name in names)
    own = {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins, "PREFECT_SERVER_UI_API_URL": f"http://{names[0]}/api"}
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", args.port))
            if not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
                dvc.check_here(root)
                _new_login(root, origins)
                own["PREFECT_SERVER_API_AUTH_STRING"] = _own_login(root)
        except (UserError, OSError) as error:
            port = f"port {args.port}: {error}; is there another server? (--port)" if isinstance(error, OSError) else str(error)
            terminal.say(f"server: {port}", error=True)
            return 1
        os.environ |= own  # Prefect reads its settings when it is imported
        import uvicorn
        from prefect.server.api.server import create_app

        if not args.for_one_flow:
            terminal.say(f"Prefect on http://{names[0]}; its page asks for the auth_string in {LOGIN}; stop it with Ctrl-C")
        # A server for one flow has no services: they would also process the database of `make server`.
        app = OwnPagesOnly(create_app(ephemeral=args.for_one_flow, final=True), names)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="error" if args.for_one_flow else "warning")).run([listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
