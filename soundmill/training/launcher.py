"""Training in several processes, on one machine or many, by torch's elastic launcher.

The stage's process only starts others and watches them: each runs the stage up to its training, and rank 0 goes on as the stage, so
it alone tracks and writes. With several machines, the one that runs the stage, the head, keeps a store, and the others run
`soundmill join`. When one is lost or comes, all meet again and start their processes anew, which resume from the last checkpoint.
"""

import hmac
import json
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import DistError, PrefixStore, TCPStore

from soundmill import lifetime, terminal
from soundmill.errors import UserError
from soundmill.params import parse_json
from soundmill.training.device import pick_device
from soundmill.training.params import HardwareParams

SECRET, SHORTEST = "SOUNDMILL_JOIN_SECRET", 16  # characters: a stranger can try guesses against what is signed
STAGE, END, CODE, PREPARED = "stage", "end", "code", "prepared"  # keys of the store
LEFT, ENDED = "left", "ended"  # file in which a process says why it ends its agent; a reason
FOREVER = timedelta(days=365)
MEETING = {"join_timeout": 365 * 86_400, "last_call_timeout": 10, "keep_alive_interval": 2, "keep_alive_max_attempt": 5}  # seconds


@dataclass(frozen=True)
class Place:
    """Where a process that a launcher started finds the others."""

    told: dict[str, Any]  # what a machine must know to join: run, label, module, argv, directory, hardware
    hardware: HardwareParams
    host: str  # of the store
    port: int
    agent: int  # pid
    near: Path  # directory of this machine, for copies of features
    tracking: Any = None  # on the head: the stage's run
    store: Any = None
    meeting: Any = None  # the part of the store for the processes that were started together; its name is the same on all machines


place: Place | None = None  # of this process; None: no launcher started it
rank = 0  # of this process; 0 is the stage, and the others only train with it


def is_needed(params: Any) -> bool:
    """Whether a stage with these parameters trains in several processes that have not been started yet."""
    weights = getattr(params, "weights", None)  # of a component
    trains = weights is None or (weights.kind != "load" and getattr(weights, "steps", 1) != 0)
    return place is None and params.hardware.several and trains


def launch(hardware: HardwareParams, label: str, module: str, argv: list[str], tracking: Any) -> None:
    """Run `module.main(argv)` in `hardware.devices` processes here, and on all machines that join, until it has ended."""
    told = {"run": secrets.token_hex(8), "label": label, "module": module, "argv": argv, "directory": os.getcwd()}
    told["hardware"] = dict(hardware)
    secret, listen, port = secrets.token_bytes(32), "127.0.0.1", 0
    if hardware.nodes > 1:
        given, listen, port = os.environ.get(SECRET, ""), hardware.listen, hardware.port
        if len(given) < SHORTEST and (given or not listen.startswith("127.")):
            raise UserError(
                f"hardware.listen: other machines can reach {listen}, so {SECRET} must be a secret of at least {SHORTEST} "
                f"characters, here and for `soundmill join`: export {SECRET}=$(openssl rand -hex 32)"
            )
        secret, join = given.encode(), f"`soundmill join {socket.gethostname()}:{port}`"
        machines = f"{hardware.min_nodes} to {hardware.nodes} machines"
        terminal.say(f"{label}: waits for {machines}; on the others, in this directory: {join}")
    store = open_store(listen, port)
    store.set(STAGE, sign(secret, json.dumps(told).encode()))
    _run_agent(told, secret, store, "0", tracking)  # this address is the first, and processes are numbered in their order


def open_store(listen: str, port: int) -> TCPStore:
    """A store that listens at this address only (torch's own socket would at all); port 0: any."""
    try:
        server = socket.create_server((listen, port))
    except OSError as error:
        raise UserError(f"hardware.port: {listen}:{port} cannot be used ({error.strerror}); wait, or set another port") from None
    reached, port = "127.0.0.1" if listen == "0.0.0.0" else listen, server.getsockname()[1]
    return TCPStore(reached, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())


def take_part(host: str, port: int, root: Path) -> None:
    """Join the training at `host`:`port`, unless it has ended, from the checkout `root`; UserError if this machine cannot."""
    where = f"{host}:{port} is no training of this version of Soundmill; give the machine of `dvc repro` and its hardware.port"
    timer = threading.Timer(20, lambda: (terminal.say(where, error=True), os._exit(1)))  # torch would wait without end
    timer.start()
    secret = os.environ.get(SECRET, "").encode()
    try:
        with socket.create_connection((host, port), 10) as probe:
            address = probe.getsockname()[0]
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
        told = parse_json(opened(secret, store.get(STAGE)))
    except OSError:
        return
    except DistError:
        raise UserError(where) from None
    finally:
        timer.cancel()
    if not Path(told["directory"]).is_relative_to(root):
        need = "all machines need one shared directory under the same path: mount it, and run `soundmill join` in it"
        raise UserError(f"{told['label']} trains in {told['directory']}, which is not in this checkout, {root}; {need}")
    with suppress(DistError):
        while store.check([END]):  # until the head closes it
            time.sleep(0.5)
        terminal.say(f"joins {told['label']} at {host}:{port}")
        _run_agent(told, secret, store, address)


class Signed:
    """Torch's backend for the state of a meeting. Torch unpickles that, so it gets only what was signed with the secret."""

    def __init__(self, inner: Any, name: str, secret: bytes):
        self._inner, self.name, self._secret = inner, name, secret

    def get_state(self) -> tuple[bytes, Any] | None:
        found = self._inner.get_state()
        return found and (opened(self._secret, found[0]), found[1])

    def set_state(self, state: bytes, token: Any = None) -> tuple[bytes, Any, bool] | None:
        found = self._inner.set_state(sign(self._secret, state), token)
        return found and (opened(self._secret, found[0]), *found[1:])


def sign(secret: bytes, content: bytes) -> bytes:
    return hmac.digest(secret, content, "sha256") + content


def opened(secret: bytes, signed: bytes) -> bytes:
    if not hmac.compare_digest(sign(secret, signed[32:]), signed):
        raise UserError(f"this training has another secret: set {SECRET} to that of the head")
    return signed[32:]


def _run_agent(told: dict[str, Any], secret: bytes, store: TCPStore, address: str, tracking: Any = None) -> None:
    """Start this machine's processes, each time the machines have met, until the training has ended; UserError if they failed."""
    from torch.distributed.elastic import multiprocessing, rendezvous
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def make(params: Any) -> Any:
        return create_handler(store, Signed(C10dRendezvousBackend(store, params.run_id), params.backend, secret), params)

    for name in ("torch.distributed.elastic", "torch.multiprocessing"):  # they log each lost process, with tracebacks
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as above, for the processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else accelerate would use all cores; the number of threads is a parameter
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else torch opens another store, to everybody
    rendezvous.rendezvous_handler_registry.register(told["run"], make)
    is_head, hardware = tracking is not None, HardwareParams(**told["hardware"])
    before, temporary = signal.getsignal(signal.SIGTERM), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="soundmill-") as near:
        left, tempfile.tempdir = Path(near) / LEFT, near  # torch leaves files of processes that are killed
        quiet = {number: multiprocessing.Std.ALL for number in range(hardware.devices) if number or not is_head}
        config = LaunchConfig(
            hardware.min_nodes,
            hardware.nodes,
            hardware.devices,
            multiprocessing.DefaultLogsSpecs(near, redirects=quiet),
            run_id=told["run"],
            rdzv_backend=told["run"],
            rdzv_configs=MEETING,
            max_restarts=100 if hardware.nodes > 1 else 0,  # then the training fails
            signals_to_handle="SIGTERM" if is_head else "SIGTERM,SIGINT",  # a machine that leaves must not end the meeting
            local_addr=address,
        )
        try:
            elastic_launch(config, _work)(Place(told, hardware, store.host, store.port, os.getpid(), Path(near), tracking))
        except multiprocessing.SignalException as error:
            if not left.exists():
                sys.exit(128 + error.sigval)
            if (text := left.read_text()) != ENDED:
                raise UserError(text) from None
            if is_head:
                sys.exit(store.get(END).decode())
        except multiprocessing.errors.ChildFailedError as error:
            number, first = error.get_first_failure()
            ended = first.message["message"] if isinstance(first.message, dict) else first.message
            raise UserError(f"its process {number} ended ({ended}); run it again: it resumes from its last checkpoint") from None
        except (rendezvous.RendezvousError, DistError, AttributeError):  # the head is gone; the last: of one that stood by
            if is_head:
                raise
        finally:
            signal.signal(signal.SIGTERM, before)
            tempfile.tempdir = temporary


def _work(here: Place) -> None:
    """One process. An error of the first ends the training; after one of another, its machine leaves."""
    global place, rank
    lifetime.die_with_parent(here.agent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the agent ends this process
    os.chdir(here.told["directory"])
    if here.hardware.nodes == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = TCPStore(here.host, here.port, is_master=False, wait_for_workers=False)
    place = replace(here, store=store, meeting=PrefixStore("{MASTER_ADDR}:{MASTER_PORT}".format(**os.environ), store))
    rank = int(os.environ["RANK"])
    try:
        import_module(here.told["module"]).main(here.told["argv"])
    except (SystemExit, UserError) as error:
        if text := str((error.code or "") if isinstance(error, SystemExit) else error):
            if rank == 0:
                store.set(END, text)
            _leave(text)


@contextmanager
def _or_anew() -> Iterator[None]:
    """If another process is lost, or the head: end this one, so that its agent meets the others again."""
    try:
        yield
    except RuntimeError as error:  # torch's of a group are these; those of a store are DistError
        if not isinstance(error, DistError) and "gloo/transport" not in str(error):
            raise
        _leave()


@_or_anew()
def agree(code: dict[str, str], scratch: Path) -> Path:
    """The first process's `scratch`, when it has prepared the training; UserError in a process that would not do the same."""
    device = pick_device(place.hardware.accelerator).type
    own = {**code, "device": device, "few GPUs": str(device == "cuda" and torch.cuda.device_count() < place.hardware.devices)}
    if not rank:
        place.meeting.set(CODE, json.dumps([own, str(scratch)]))
        return scratch
    place.meeting.wait([CODE], FOREVER)
    first, scratch = parse_json(place.meeting.get(CODE))
    differing = [f"{name} {own.get(name)}, not {first[name]}" for name in first if own.get(name) != first[name]]
    if differing:
        need = "use the same checkout and environment (constraints.txt), and join again"
        raise UserError(f"{socket.gethostname()}: runs other software than the head ({', '.join(differing[:5])}); {need}")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    place.meeting.wait([PREPARED], FOREVER)
    return Path(scratch)


@contextmanager
def together(size: int, label: str, checkpoint: str) -> Iterator[str]:
    """A training: processes that can share a batch of this size evenly meet at the first one's `checkpoint`; it alone goes on."""
    if place is None:
        yield checkpoint
        return
    meeting, count = place.meeting, int(os.environ["WORLD_SIZE"])
    used = max(number for number in range(1, count + 1) if size % number == 0)
    with _or_anew():
        if rank == 0:
            place.store.delete_key(END)  # if the training had ended, but its stage had not
            meeting.set(PREPARED, checkpoint)
            why = f"a batch of {size} cannot be shared evenly by {count}"
            spare = f"; {count - used} more wait, because {why}" if used < count else ""
            terminal.say(f"{label}: machines: {os.environ['GROUP_WORLD_SIZE']}, processes: {used}{spare}")
        if rank >= used:
            place.store.wait([END], FOREVER)
            sys.exit()
        came, until = [f"came-{number}" for number in range(used)], time.monotonic() + 3600
        meeting.set(came[rank], "")
        while not meeting.check(came):  # others are still preparing
            if meeting.check([LEFT]) or time.monotonic() > until:
                _leave()
            time.sleep(0.2)
        os.environ["WORLD_SIZE"] = str(used)
        backend = "nccl" if pick_device(place.hardware.accelerator).type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=PrefixStore("group", meeting), rank=rank, world_size=used)
        yield meeting.get(PREPARED).decode()
    if rank:
        sys.exit()
    place.store.set(END, "")


def _leave(text: str = "") -> None:
    """End this machine's agent if the training has ended, or with this text; else only this process, so that all meet again."""
    with suppress(DistError):
        place.store.wait([END], timedelta(seconds=3))  # the process that ends the training may still be about to say so
        text = ENDED
    if not text:
        os._exit(1)
    place.meeting.set(LEFT, "")
    (place.near / LEFT).write_text(text)
    os.kill(place.agent, signal.SIGTERM)
    time.sleep(60)
