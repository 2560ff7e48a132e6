"""One training on several machines, by torch's elastic agents.

The head, the machine whose stage trains, keeps a store (torch's TCPStore) at `hardware.port`; the others run `soundmill join`.
On each, an agent starts `hardware.devices` processes. When a machine is lost or comes, the agents meet again (c10d rendezvous) and
start all processes anew: they resume from the last checkpoint with the machines that are there. Everything else is as on one
machine: the first process, on the head, saves checkpoints, and its stage tracks, draws samples and scores them.

Torch's store holds pickles, as the file of the training does (shipping.py): whoever reaches the port can run code.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import Client
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import DistError, PrefixStore, TCPStore
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

from soundmill import disk, hashing, lifetime, shards, terminal
from soundmill.errors import UserError
from soundmill.params import parse_json
from soundmill.training import shipping, state
from soundmill.training.curve import Progress
from soundmill.training.device import pick_device
from soundmill.training.kept import Kept
from soundmill.training.loader import worker_deaths_explained
from soundmill.training.parts import Report, Sampling, Training
from soundmill.training.scoring import Scoring
from soundmill.training.stage_line import ProcessEnd, StageEnd

FILE = "training.pickle"
SITE, END = "site", "end"  # keys of the store: what a machine needs to join; how the training ended
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 20  # of the head's store
LAST_CALL_SECONDS = 10.0  # for more machines, once there are enough
HEARTBEAT_SECONDS, HEARTBEATS = 2, 5  # a machine that misses this many is lost
SHARED_SECONDS = 120.0  # until a file written on one machine is seen by all: NFS caches directories for a minute
END_SECONDS = 3.0  # until the process that ends a training has said why
MEETING_SECONDS = 600.0  # for all processes to start; else the machines meet again
FOREVER = timedelta(days=365)


@dataclass(frozen=True)
class Site:
    """What a machine must know and share to join a training."""

    run: str  # unique
    label: str
    start: str  # working directory, for relative paths
    file: str  # the pickled training
    digest: str  # of that file
    modules: list[str]
    code: dict[str, str]
    device: str  # type
    devices: int
    nodes: int
    min_nodes: int
    copy_gb: float


@dataclass(frozen=True)
class _Place:
    """Where a process finds the store, its agent and the files of its machine; on the head, also its stage."""

    host: str
    port: int
    agent: int  # pid
    near: Path  # directory for copies of features
    stage: tuple[tuple[str, int], bytes] | None = None  # address and key


Train = Callable[..., None]  # `loop._train`


# ---------------------------------------------------------------------------------------------------------------------
# The stage


def together(
    train: Train,
    training: Training,
    progress: Progress,
    kept: Kept | None,
    sampling: Sampling | None,
    scoring: Scoring | None,
    report: Report,
) -> None:
    """Train on this machine and all that join; returns when the training has ended, with its results in `training`."""
    scratch, module = training.scratch, training.module
    start = state.resume_point(scratch)
    if start is None or state.load(start)["step"] < module.steps:
        _train_elsewhere(train, training, progress, kept, sampling, scoring, report)
        start = scratch / state.LAST
    state.take(state.load(start), module, training.curve, training.validation, scoring)


def _train_elsewhere(
    train: Train,
    training: Training,
    progress: Progress,
    kept: Kept | None,
    sampling: Sampling | None,
    scoring: Scoring | None,
    report: Report,
) -> None:
    module, loader, hardware, scratch = training.module, training.loader, training.hardware, training.scratch.resolve()
    file = scratch / FILE
    shipped = train, training, progress, kept, sampling and sampling.every, scoring and (scoring.every, scoring.most)
    disk.write_atomically(file, lambda temporary: shipping.write(temporary, shipped))
    modules = [train.__module__, type(module).__module__, type(loader.source).__module__]
    site = Site(
        run=secrets.token_hex(8),
        label=progress.label,
        start=os.getcwd(),
        file=str(file),
        digest=hashing.file_digest(file),
        modules=modules,
        code=shards.code_identity(*modules),
        device=pick_device(hardware.accelerator).type,
        devices=hardware.devices,
        nodes=hardware.nodes,
        min_nodes=hardware.min_nodes,
        copy_gb=hardware.copy_gb,
    )
    store = _open_store(hardware.port)
    store.set(SITE, json.dumps(asdict(site)))
    join = f"`soundmill join {socket.gethostname()}:{hardware.port}`"
    terminal.say(f"{site.label}: trains on up to {site.nodes} machines; on each of the others, in this directory: {join}")
    with tempfile.TemporaryDirectory(prefix="soundmill-") as private:
        stage = StageEnd(training, sampling, scoring, report)
        place = _Place("127.0.0.1", hardware.port, os.getpid(), Path(private), stage.address)
        waiting = f"{site.label}: waits for {site.min_nodes} machines (hardware.min_nodes); on each of the others: {join}"
        with stage.open(waiting if site.min_nodes > 1 else ""):
            result = _run_agent(store, site, place, "127.0.0.1")
    if stage.error:
        raise stage.error
    if store.check([END]) and (end := parse_json(store.get(END))):
        raise UserError(end["error"]) if end["user"] else RuntimeError(end["error"])
    if result is None or result.is_failed():
        raise UserError(
            "the processes of this training ended; their errors are above. Run it again: it resumes from its last checkpoint"
        )
    progress.measured_elsewhere(next((value for value in result.return_values.values() if value is not None), None))


def _open_store(port: int) -> TCPStore:
    try:
        return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    except distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"hardware.port: {port} is in use on this machine, perhaps by another training on several machines; wait for that one, "
            "or set another port here and in `soundmill join`"
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# A machine that joins


def take_part(host: str, port: int, root: Path) -> None:
    """Join the training at `host`:`port`, if it has not ended; UserError if this machine cannot. Returns when it is over."""
    try:
        store, site = _find(host, port)
        if store is None:
            return
        _check(site, root)
        terminal.say(f"joins {site.label} at {host}:{port}")
        with socket.create_connection((host, port), CONNECT_SECONDS) as probe:
            address = probe.getsockname()[0]
        with tempfile.TemporaryDirectory(prefix="soundmill-") as near:
            _run_agent(store, site, _Place(host, port, os.getpid(), Path(near)), address)
        terminal.say(f"{site.label} has ended")
    except (RendezvousError, DistError):
        terminal.say(f"the training at {host}:{port} is over")
    except SignalException:
        terminal.say(f"leaves the training at {host}:{port}")


def _find(host: str, port: int) -> tuple[TCPStore | None, Site | None]:
    """The store and the training there; None if it has ended meanwhile. `joining` reports the signal."""
    signal.alarm(ANSWER_SECONDS)  # torch waits without end for another kind of server
    try:
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=CONNECT_SECONDS))
        while store.check([END]):  # until the head closes it
            signal.alarm(0)
            time.sleep(0.5)
        site = Site(**parse_json(store.get(SITE)))
        store.set_timeout(timedelta(seconds=60))
        return store, site
    except (DistError, RuntimeError, ValueError, TypeError) as error:
        try:
            socket.create_connection((host, port), CONNECT_SECONDS).close()
        except OSError:
            return None, None
        raise UserError(
            f"{host}:{port} is no training of this version of Soundmill ({str(error).splitlines()[0]}); give the machine that runs "
            "`dvc repro`, and its hardware.port"
        ) from None
    finally:
        signal.alarm(0)


def _check(site: Site, root: Path) -> None:
    """UserError if this machine lacks what the training needs."""
    file, here = Path(site.file), socket.gethostname()
    if not file.is_relative_to(root):
        raise UserError(
            f"{here}: {site.label} trains in {file.parent}, which is not in this checkout, {root}: all machines need one shared "
            "directory under the same path; mount it here, and run `soundmill join` in it"
        )
    if not _seen(file, site.digest):
        raise UserError(
            f"{here}: does not see {file} as the head wrote it: all machines need one shared directory under the same path; mount "
            "it here, and run `soundmill join` in it"
        )
    if differing := shards.differences(site.code, *site.modules):
        raise UserError(
            f"{here}: runs other software than the head ({differing}); use the same checkout and environment (constraints.txt), "
            "and run `soundmill join` again"
        )
    found = pick_device("auto").type if site.device != "cpu" else "cpu"
    count = torch.cuda.device_count() if site.device == "cuda" else site.devices
    if found != site.device or count < site.devices:
        raise UserError(
            f"{here}: the head trains on {site.devices} {site.device} of each machine (hardware.devices), and torch finds "
            f"{count} here; check the driver and CUDA_VISIBLE_DEVICES, or lower hardware.devices"
        )


def _seen(file: Path, digest: str) -> bool:
    """Whether the file is there; a shared file system may show it late."""
    until = time.monotonic() + (SHARED_SECONDS if file.parent.exists() else 0.0)
    while True:
        with suppress(OSError):
            if hashing.file_digest(file) == digest:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(1.0)


# ---------------------------------------------------------------------------------------------------------------------
# On every machine


def _run_agent(store: TCPStore, site: Site, place: _Place, address: str) -> RunResult | None:
    """Start this machine's processes, each time the machines have met, until they succeed."""
    logs = logging.getLogger("torch.distributed.elastic")  # it logs each lost machine as an error, with tracebacks
    logs.addHandler(logging.NullHandler())
    logs.propagate = False
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as above, for the processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else accelerate would use all cores; the number of threads is a parameter
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"  # Ctrl-C is Python's
    # With a shared store, torch fails when another machine becomes the first of the next meeting.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    handler = DynamicRendezvousHandler.from_backend(
        site.run,
        store,
        C10dRendezvousBackend(store, site.run),
        site.min_nodes,
        site.nodes,
        local_addr=address,
        timeout=RendezvousTimeout(join=FOREVER, last_call=timedelta(seconds=LAST_CALL_SECONDS)),
        keep_alive_interval=HEARTBEAT_SECONDS,
        keep_alive_max_attempt=HEARTBEATS,
    )
    spec = WorkerSpec(
        "training",
        local_world_size=site.devices,
        rdzv_handler=handler,
        entrypoint=_work,
        args=(place, site),
        max_restarts=10**6,  # `StageEnd` counts those without a later checkpoint
        monitor_interval=0.2,
    )
    agent = LocalElasticAgent(spec, DefaultLogsSpecs(log_dir=str(place.near)), exit_barrier_timeout=30)
    before = signal.getsignal(signal.SIGTERM)
    try:
        return agent.run()
    except SignalException as error:
        if place.stage:
            sys.exit(128 + error.sigval)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if place.stage or _has_ended(store):
            handler.shutdown()  # ends the wait of machines that have no place


def _work(place: _Place, site: Site) -> float | None:
    """One process of a training; returns the seconds per step that the first one measured."""
    lifetime.die_with_parent(place.agent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the agent ends this process
    os.chdir(site.start)
    store = TCPStore(place.host, place.port, is_master=False, wait_for_workers=False)
    try:
        with worker_deaths_explained():
            return _train_part(store, place, site)
    except Exception as error:
        if _is_lost_peer(error):
            if _has_ended(store):
                return None  # the head says why
            sys.exit(1)  # the agent meets the others again
        if not isinstance(error, UserError):
            traceback.print_exc()
        user = isinstance(error, UserError)
        store.set(END, json.dumps({"user": user, "error": str(error) if user else f"{type(error).__name__}: {error}"}))
        return None


def _is_lost_peer(error: Exception) -> bool:
    """Whether another process ended, or the head."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _has_ended(store: TCPStore) -> bool:
    """Whether the training has ended, or does within END_SECONDS."""
    until = time.monotonic() + END_SECONDS
    with suppress(DistError):
        while time.monotonic() < until:
            if store.check([END]):
                return True
            time.sleep(0.1)
    return False


def _train_part(store: TCPStore, place: _Place, site: Site) -> float | None:
    if not _seen(Path(site.file), site.digest):
        raise UserError(f"{socket.gethostname()}: {site.file} is gone or changed; run the stage again")
    train, training, progress, kept, sampled, scored = shipping.read(Path(site.file), place.near, site.copy_gb)
    environment, local_rank = os.environ, int(os.environ["LOCAL_RANK"])
    # One name for each meeting, the same on all machines.
    meeting = PrefixStore(f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}", store)
    first = place.stage is not None and local_rank == 0
    if first:
        meeting.set("first", environment["RANK"])
    count = int(environment["WORLD_SIZE"])
    rank = (int(environment["RANK"]) - int(meeting.get("first"))) % count
    size = training.loader.order.batch_size
    used = max(number for number in range(1, count + 1) if size % number == 0)
    if rank >= used:  # a spare
        store.wait([END], FOREVER)
        return None
    meeting.set(f"came-{rank}", "")
    meeting.wait([f"came-{other}" for other in range(used)], timedelta(seconds=MEETING_SECONDS))
    if used > 1:
        environment.update(RANK=str(rank), WORLD_SIZE=str(used))
        _join_group(site.device, local_rank, PrefixStore("group", meeting), rank, used)
    else:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            environment.pop(name, None)
    if not first:
        train(*training, _same_start(training.scratch, meeting.get("start").decode()))
        return None
    start = state.resume_point(training.scratch)
    meeting.set("start", state.identity(start) if start else "")
    nodes = int(environment["GROUP_WORLD_SIZE"])
    spare = f"; {count - used} more wait, because a batch of {size} cannot be shared evenly by {count}" if used < count else ""
    terminal.say(f"{site.label}: machines: {nodes}, processes: {used}{spare}")
    with Client(place.stage[0], authkey=place.stage[1]) as line:
        stage = ProcessEnd(line, training.scratch)
        step = state.load(start)["step"] if start else 0
        stage.call("started", step, int(environment["TORCHELASTIC_RESTART_COUNT"]))
        sampling = Sampling(sampled, stage.sample) if sampled else None
        scoring = Scoring(scored[0], stage.score, scored[1]) if scored else None
        train(*training, start, progress=progress, kept=kept, sampling=sampling, scoring=scoring, report=stage.report)
        stage.call("ended")
    store.set(END, json.dumps(None))
    return progress.seconds_per_step


def _join_group(device: str, local_rank: int, store: PrefixStore, rank: int, count: int) -> None:
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=count)


def _same_start(scratch: Path, identity: str) -> Path | None:
    """The checkpoint that the first process resumes from, found by its content: caches of a shared file system may be stale."""
    if not identity:
        return None
    until = time.monotonic() + SHARED_SECONDS
    while time.monotonic() < until:
        for path in (scratch / state.LAST, scratch / state.PREVIOUS):
            with suppress(OSError, ValueError, KeyError):
                if state.identity(path) == identity:
                    return path
        time.sleep(1.0)
    raise UserError(
        f"{socket.gethostname()}: {scratch} does not have the checkpoint that the head resumes from; is it the same directory?"
    )
