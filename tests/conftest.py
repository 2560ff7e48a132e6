"""Fixtures shared by all tests."""

import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from soundmill import params
from tests import buckets, graph
from tests.checkouts import BIN, HARD_NAME, copy_project, track

ROOT = Path(__file__).resolve().parents[1]

os.environ["SOUNDMILL_TRACKING"] = "off"  # an uploader works for seconds: tests of tracking ask for it
os.environ["DVC_NO_ANALYTICS"] = "1"  # as the Makefile says; each report would leave a file, too


# What may stay: of multiprocessing, which removes it when this process ends; a cache of torch's, and a file of onnxruntime's.
STAYS = ("pymp-", "torchinductor_", ".ses")


@pytest.fixture(scope="session", autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The temporary folder of the session and its processes is one of pytest's, with a short name for the sockets in it, and is
    empty in the end. Gives what was seen there, by the test that it was seen after first."""
    folder = tmp_path_factory.mktemp("t", numbered=False)
    seen: dict[str, str] = {}

    def left() -> list[str]:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith(STAYS))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        yield seen
    deadline = time.monotonic() + 60  # for a process that is just ending
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    if left():
        pytest.fail("\n".join(["left in the temporary folder:", *(f"{name}: {seen.get(name, '?')}" for name in left())]))


@pytest.fixture(autouse=True)
def _noted(_temporary: dict[str, str], request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in os.listdir(os.environ["TMPDIR"]):
        _temporary.setdefault(name, request.node.nodeid)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What torch draws in a test does not hang on the tests before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real recordings, captions and small models beside the checkout; tests that need them skip where they are absent."""
    path = ROOT.parent / "shared"
    if not (path / "data" / "esc10").is_dir():
        pytest.skip("needs ../shared (real recordings and models), which is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: to make its tables takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small text encoder with random weights."""
    from soundmill import text

    return text.make_scratch(tmp_path_factory.mktemp("encoder"), width=16, layers=1, heads=2, seed=0)


@pytest.fixture(scope="session")
def _store() -> Iterator[buckets.Store]:
    with buckets.running() as store:
        yield store


@pytest.fixture
def bucket(_store: buckets.Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[buckets.Store]:
    """A store whose credentials are in the environment, and whose answers a test may spoil."""
    for name, value in {**buckets.ENVIRONMENT, "AWS_ENDPOINT_URL": _store.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("soundmill.corpora.buckets.FIRST_PAUSE", 0.01)
    _store.forget()
    yield _store
    _store.forget()


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are recorded, each in its project's own store."""
    track(monkeypatch)


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no picture")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the weights and servers of this machine's user; `dvc` and `python` are those of the tests."""
    leave_alone(monkeypatch, tmp_path)


def leave_alone(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "SOUNDMILL_PARENT_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(directory / "no weights"))
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="session", autouse=True)
def _one_worker_is_this_process() -> Iterator[Callable[..., None]]:
    """Shards that a test has one worker make are made in its own process. Two workers are a pool, as always, which this gives."""
    from soundmill.shards import run
    from tests.shards.work import run_here

    pool = run._run_here

    def make(function, jobs, directory, workers, *more):
        return (pool if workers > 1 else run_here)(function, jobs, directory, workers, *more)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(run, "_run_here", make)
        yield pool


@pytest.fixture(scope="session", autouse=True)
def _composed_once() -> Iterator[None]:
    """What choices of conf/ give is composed once in a session: Hydra takes a quarter of a second."""
    compose, known = params.compose, {}

    def composed(conf: Path, overrides: list[str]) -> dict[str, Any]:
        if conf.resolve() != ROOT / "conf":
            return compose(conf, overrides)
        if (choices := tuple(overrides)) not in known:
            known[choices] = compose(conf, overrides)
        return copy.deepcopy(known[choices])

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(params, "compose", composed)
        yield


@pytest.fixture
def pool(_one_worker_is_this_process: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker too is a process of its own, which may be killed."""
    from soundmill.shards import run

    monkeypatch.setattr(run, "_run_here", _one_worker_is_this_process)


@pytest.fixture
def checkout(root: Path, tmp_path: Path, alone: None) -> Path:
    """A copy of the project, with nothing built."""
    return copy_project(root, tmp_path / f"{HARD_NAME} too")


@pytest.fixture(scope="session")
def components(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Codecs and vocoders in small, each made once (tests/stages/components.py)."""
    from tests.stages.components import Components

    return Components(tmp_path_factory.mktemp("components"))


@pytest.fixture(scope="session")
def trainings(tmp_path_factory: pytest.TempPathFactory, components: Any) -> Any:
    """Families in small, each trained once (tests/stages/families.py)."""
    from tests.stages.families import Trainings

    return Trainings(tmp_path_factory.mktemp("trainings"), components)


@pytest.fixture(scope="session")
def built_graph(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with every output of the graph, shrunk (tests/graph.py), made once for all tests: read it, and change nothing."""
    directory = tmp_path_factory.getbasetemp()
    directory = (directory.parent if "PYTEST_XDIST_WORKER" in os.environ else directory) / "graph"
    with pytest.MonkeyPatch.context() as monkeypatch:
        leave_alone(monkeypatch, directory)
        return graph.built(root, directory)


@pytest.fixture
def graph_copy(built_graph: Path, tmp_path: Path, alone: None) -> Path:
    """A copy of it, to change and to run stages in."""
    return graph.copy(built_graph, tmp_path / f"{HARD_NAME} built")


@pytest.hookimpl(tryfirst=True)  # before -m chooses by the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out attacks unless -m names them. What needs the graph or a Prefect server is slow, as these are to build. The slowest
    tests come first: one of minutes that began last would leave the other workers without work."""
    slow_fixtures = {"built_graph", "graph_copy", "prefect_server"}
    if "attack" not in config.getoption("markexpr"):
        attacks = [item for item in items if item.get_closest_marker("attack")]
        config.hook.pytest_deselected(items=attacks)
        items[:] = [item for item in items if item not in attacks]
    for item in items:
        if slow_fixtures & set(item.fixturenames) and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.slow(minutes=0.1))
    items.sort(key=lambda item: slow.kwargs.get("minutes", 0.2) if (slow := item.get_closest_marker("slow")) else 0, reverse=True)


# How far property tests look: at the same examples each time, or further with HYPOTHESIS_PROFILE=long, which `make fuzz` sets.
# No deadline: a busy machine fails none.
settings.register_profile("short", max_examples=30, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=20_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))
