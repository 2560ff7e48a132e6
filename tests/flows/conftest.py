"""A tiny project with the real stage contract, DVC, git and tracking; and nothing of the tests may touch the checkout's own."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.checkouts import HARD_NAME
from tests.flows.prefect_server import LOGIN, PrefectServer
from tests.flows.tiny import make_tiny
from tests.prepared import edit_params


@pytest.fixture
def tiny(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A git and DVC project of two stages, committed; a test may give the name of its directory."""
    return make_tiny(tmp_path / getattr(request, "param", HARD_NAME))


@pytest.fixture
def tracked(tracked: None, tiny: Path, mlflow_tables: Path) -> None:
    """Runs are recorded, those of the tiny project in a store that has its tables."""
    shutil.copy(mlflow_tables, tiny / "mlflow.db")


@pytest.fixture
def set_param(tiny: Path) -> Callable[..., None]:
    """`set_param("first", number=2)` edits params.yaml."""
    return partial(edit_params, tiny)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server on loopback, as `make server` starts it, with the login of the tests; its API's address."""
    home = tmp_path_factory.mktemp("prefect")
    server = PrefectServer(home, home, PREFECT_SERVER_API_AUTH_STRING=LOGIN)
    try:
        server.start()
        yield server.address
    finally:
        server.stop()
