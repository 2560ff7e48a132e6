"""The page in Gradio: its fields and buttons, and what happens when they are used."""

import hmac
import html
import random
import re
import shutil
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import gradio as gr
import numpy as np
import soundfile
from fastapi import Depends, HTTPException, Request

from soundmill import hashing, page, params
from soundmill.audio import tags
from soundmill.audio.pieces import Sound as Recording
from soundmill.decoding import decode
from soundmill.errors import UserError, reason
from soundmill.listening.answers import FIRST, SAME, SECOND
from soundmill.listening.side_by_side import match_loudness
from soundmill.models.preparing import guided_passes
from soundmill.page.sounds import LONGEST_SECONDS, Card, Section, Sound, draw_section
from soundmill.play import making
from soundmill.play.making import Asked, Found, Models

LOCAL = ("127.0.0.1", "localhost")
SHOWN = 24  # sounds of a session, or kept ones, on the page
MAX_COUNT = 20  # sounds of one press
ANSWERED = 100  # sounds made through the API that stay
LARGEST_SEED = 2**31 - 1  # that the die draws
PROGRESS = gr.Progress()
QUEUE = {"concurrency_id": "models", "concurrency_limit": 1}
ANSWERS = {"1": FIRST, "same": SAME, "2": SECOND}
VOTES = [("vote", "1 is better", "1"), ("vote", "no difference", "same"), ("vote", "2 is better", "2")]


class Stopped(Exception):
    """The person pressed Stop."""


@dataclass
class Session:
    """One person's open page: its folder, which nobody can guess, has the sounds and requests made on it."""

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)  # of the work that began last
    uploads: set[Path] = field(default_factory=set)
    took: dict[str, float] = field(default_factory=dict)  # seconds, by the name of a sound


@contextmanager
def as_sentences() -> Iterator[None]:
    """Show any error on the page, as text, and go on."""
    try:
        yield
    except Stopped:
        gr.Info("stopped")
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        raise gr.Error(html.escape(reason(error)), print_exception=False) from None


class Play:
    """What the page does; Gradio calls its methods from several threads."""

    def __init__(self, root: Path, found: dict[str, Found], models: Models, scratch: Path) -> None:
        self.root, self.found, self.models, self.scratch = root, found, models, scratch
        self.folders = scratch / "sessions"
        self.folders.mkdir(parents=True)
        self.sessions: dict[str, Session] = {}
        self.answered: deque[Path] = deque()

    def session(self, request: gr.Request) -> Session:
        if request.session_hash not in self.sessions:
            self.sessions.setdefault(request.session_hash, Session(Path(tempfile.mkdtemp(dir=self.folders))))
        return self.sessions[request.session_hash]

    def end(self, request: gr.Request) -> None:
        """Delete what a closed page made and uploaded, but no upload of equal content of another page: they are one file."""
        if session := self.sessions.pop(request.session_hash, None):
            session.stop.set()
            for path in session.uploads.difference(*(other.uploads for other in list(self.sessions.values()))):
                path.unlink(missing_ok=True)
            shutil.rmtree(session.folder, ignore_errors=True)

    def stop(self, request: gr.Request) -> None:
        self.session(request).stop.set()

    def begin(self, request: gr.Request) -> Session:
        """The session, for new work: its event is its own, so that earlier work that was stopped does not go on."""
        session = self.sessions[request.session_hash] = replace(self.session(request), stop=threading.Event())
        return session

    def choose(self, name: str) -> list[Any]:
        """The fields that a checkpoint has: labels, prompt, steps, guidance, sampler, seconds, kinds of change."""
        with as_sentences(), self.models.lock:
            model = self.models.load(self._found(name)).model
            sampling, fields = model.params.sampling, type(model.params.sampling).model_fields
            key = "solver" if "solver" in fields else "sampler"
            samplers = [(value, f"{key}={value}") for value in get_args(fields[key].annotation)] if key in fields else []
            kinds = making.kinds_of(model)

            def trained(key: str) -> Any:
                return gr.update(visible=key in fields, value=None, info=f"as trained: {getattr(sampling, key, None)}")

            return [
                gr.update(choices=list(model.labels), value=[], visible=bool(model.labels)),
                gr.update(visible=model.condition == "caption"),
                trained("num_steps"),
                trained("guidance_scale"),
                gr.update(choices=samplers, value=None, visible=bool(samplers)),
                trained("seconds"),
                gr.update(choices=kinds, value=kinds[0] if kinds else None),
            ]

    def make(
        self, name, labels, prompt, seed, count, steps, guidance, sampler, seconds, more, request: gr.Request, progress=PROGRESS
    ):
        """Sounds of successive seeds, each shown when it is made."""
        values = {"num_steps": steps, "guidance_scale": guidance, "seconds": seconds}
        settings = [f"{key}={value}" for key, value in values.items() if value is not None]
        settings += [*([sampler] if sampler else []), *(more or "").split()]
        asked = {"checkpoint": name, "prompts": _words(prompt), "labels": labels or [], "settings": settings}
        yield from self._each(asked, seed, count, request, progress)

    def again(self, event: gr.EventData, request: gr.Request, progress=PROGRESS) -> Iterator[str]:
        """A sound of the session with the next seed."""
        with as_sentences():
            asked = making.read(self._named(event.name, request))
        yield from self._each(asked.model_dump(), asked.seed + 1, 1, request, progress)

    def change(
        self, name, kind, recording, second, words, amount, start, stop, added, seed, count, request: gr.Request, progress=PROGRESS
    ):
        """A recording changed with successive seeds."""
        with as_sentences():
            if not kind:
                raise UserError("this checkpoint cannot change a recording; choose another one")
            if not recording or (kind == "interpolate" and not second):
                raise UserError("drop a recording first" if not recording else "interpolate: drop a second recording")
            session = self.session(request)
            uploads = [Path(path) for path in (recording, second if kind == "interpolate" else None) if path]
            session.uploads.update(uploads)
            kept = [f"{hashing.tree_digest(path)[:12]}-{number}{path.suffix[:8]}" for number, path in enumerate(uploads, 1)]
            for path, target in zip(uploads, kept, strict=True):
                shutil.copyfile(path, session.folder / target)
        times = {"start": float(start or 0), "stop": float(stop or 0), "seconds": float(added or 0)}
        asked = {"kind": kind, "checkpoint": name, "prompts": _words(words), "recordings": kept, "amount": float(amount), **times}
        asked["number"] = making.STEPS // 2 if kind == "interpolate" else 0
        yield from self._each(asked, seed, count, request, progress)

    def _each(self, asked: dict[str, Any], seed: Any, count: Any, request: gr.Request, progress: gr.Progress) -> Iterator[str]:
        session = self.begin(request)
        with as_sentences():
            for number in range(min(int(count or 1), MAX_COUNT)):
                self.sound({**asked, "seed": int(seed or 0) + number}, session, progress)
                yield self.made(request)

    def sound(self, values: dict[str, Any], session: Session, progress: Callable[..., Any] = lambda *told, **more: None) -> Path:
        """Make one sound into the session's folder; values that no request can have are a UserError."""
        asked = params.parse(Asked, values, "request")
        found, stop, passes, started = self._found(asked.checkpoint), session.stop, 0, time.monotonic()
        with self.models.lock, tempfile.TemporaryDirectory(dir=self.scratch) as place:
            loaded = self.models.load(found)
            sampling = params.override(loaded.model.params.sampling, asked.settings, "sampling")
            told = bool(asked.prompts or asked.labels)
            expected = guided_passes(sampling, told) if hasattr(sampling, "guidance_scale") else getattr(sampling, "num_steps", 1)

            def step(*inputs: Any) -> None:
                nonlocal passes
                passes += 1
                if stop.is_set():
                    raise Stopped
                progress((min(passes, expected), expected), desc=f"seed {asked.seed}", unit="steps")

            handle = loaded.model.net.register_forward_pre_hook(step)
            try:
                made = making.make(asked, loaded, session.folder, Path(place), found.home)
            finally:
                handle.remove()
            stem = re.sub(r"-\d{3}$", "", made.stem) if asked.kind == "generate" else f"{asked.kind}-{asked.seed}"
            target = session.folder / f"{len(session.took) + 1:03d}-{stem}.wav"
            if (given := making.input_of(made)).is_file():
                shutil.move(given, making.input_of(target))
            asked.but(digest=loaded.facts["checkpoint"]).write(target.with_suffix(".json"))
            shutil.move(made, target)
            session.took[target.stem] = time.monotonic() - started
        return target

    def made(self, request: gr.Request) -> str:
        """The session's sounds, the newest first."""
        session, cards = self.session(request), []
        for name in reversed(list(session.took)[-SHOWN:]):
            card = _card_of(session.folder / f"{name}.wav", f"made in {session.took[name]:.1f} s")
            cards.append(card | {"actions": [("again", "Again with the next seed", name), ("keep", "Keep", name)]})
        return _cards(cards, "The sounds that you make appear here.")

    def keep(self, event: gr.EventData, request: gr.Request) -> str:
        with as_sentences():
            path = self._named(event.name, request)
            kept = making.keep(path, self._found(making.read(path).checkpoint), self.root)
            gr.Info(f"kept as {kept.relative_to(self.root)}")
        return self.board()

    def board(self) -> str:
        """The kept sounds, the newest first."""
        with as_sentences():
            kept = making.kept_sounds(self.root)[:SHOWN]
            return _cards([_card_of(path) for path in kept], "No sound is kept yet: press Keep below a sound.")

    def export(self, request: gr.Request) -> str:
        with as_sentences():
            return str(making.export(self.root, self.found, self.session(request).folder))

    def compare(self, one, other, words, seed, blind, request: gr.Request, progress=PROGRESS) -> tuple[Any, Any]:
        """One request to two checkpoints; blind: in an order that the vote shows. Returns the sounds, and this order with them."""
        with as_sentences():
            if one == other:
                raise UserError("choose two different checkpoints")
            names, session = [one, other], self.begin(request)
            if blind:
                random.SystemRandom().shuffle(names)
            asked = {"prompts": _words(words), "seed": int(seed or 0)}
            paths = [self.sound({**asked, "checkpoint": name}, session, progress) for name in names]
            roles = tuple(zip(["1", "2"] if blind else names, paths, strict=True))
            card = _card("", making.read(paths[0]).words, roles, [f"seed {asked['seed']}"])
            return _cards([card | ({"actions": VOTES} if blind else {})]), (names, card) if blind else None
        return gr.skip(), None

    def vote(self, event: gr.EventData, pair: tuple[list[str], dict[str, Any]] | None) -> tuple[str, None]:
        """Store which sound is better, and tell which is which."""
        with as_sentences():
            if not pair or event.name not in ANSWERS:
                raise UserError("this comparison has its vote; make another one")
            names, card = pair
            path = making.vote(self.root, (self._found(names[0]), self._found(names[1])), ANSWERS[event.name])
            facts = [f"1 was {names[0]}", f"2 was {names[1]}", f"stored in {path.relative_to(self.root)}"]
        return _cards([card | {"facts": facts}]), None

    def original(self, recording: str | None, request: gr.Request) -> str:
        """The dropped recording, on whose picture a part can be marked."""
        if not recording:
            return ""
        with as_sentences():
            self.session(request).uploads.add(Path(recording))
            sound = decode.open_sound(Path(recording))
            text = f"{sound.seconds:.2f} s, {sound.sample_rate} Hz, {sound.channels} channels"
            return f"<div data-marks>{_drawn('', text, [_beginning(sound)])}</div>"

    def answer(self, model: str, words: list[str], seed: int, settings: list[str]) -> dict[str, Any]:
        """Make one sound; `file` is where GET /gradio_api/file=… has the WAV until a hundred more are made."""
        with as_sentences():
            session = Session(Path(tempfile.mkdtemp(dir=self.folders)))
            self.answered.append(session.folder)
            if len(self.answered) > ANSWERED:
                shutil.rmtree(self.answered.popleft(), ignore_errors=True)
            path = self.sound({"checkpoint": model, "prompts": words, "seed": seed, "settings": settings}, session)
            return {"file": str(path), "request": making.read(path).model_dump()}

    def _found(self, name: str) -> Found:
        if name not in self.found:
            raise UserError(f"no checkpoint {name[:100]!r} here; there are {', '.join(self.found)}")
        return self.found[name]

    def _named(self, name: str, request: gr.Request) -> Path:
        """A sound of the session; what a browser sends must not name any other file."""
        session = self.session(request)
        if name not in session.took:
            raise UserError("this sound is gone; make it again")
        return session.folder / f"{name}.wav"


def _card_of(path: Path, *facts: str) -> dict[str, Any]:
    """The card of a sound; that of a changed one has its input too, equally loud."""
    asked, given = making.read(path), making.input_of(path)
    roles = ((asked.kind, path), *([("input", given)] if given.is_file() else []))
    told = [asked.checkpoint, f"seed {asked.seed}", *asked.settings, *facts]
    return _card(path.stem, asked.words, roles, told) | {"wav": str(path)}


@lru_cache(maxsize=2 * SHOWN)
def _drawn_files(name: str, title: str, roles: tuple[tuple[str, Path], ...], changed: int) -> str:
    sounds = []
    for role, path in roles:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        sounds.append(Sound(role, wave.T, rate, made_by=tags.read(path)))
    return _drawn(name, title, match_loudness(sounds) if len(sounds) > 1 else sounds)


def _card(name: str, title: str, roles: tuple[tuple[str, Path], ...], facts: list[str]) -> dict[str, Any]:
    article = _drawn_files(name, title, roles, max(path.stat().st_mtime_ns for _, path in roles))
    return {"article": article, "facts": facts, "actions": [], "wav": ""}


def _drawn(name: str, title: str, sounds: Sequence[Sound | None]) -> str:
    return draw_section(Section("", "", (Card(name, title, "", tuple(sounds)),)), [])["articles"][0]


def _beginning(sound: Recording) -> Sound:
    """As much of a recording as the page shows."""
    blocks, length = [], 0
    for block in sound.blocks():
        blocks.append(block)
        length += len(block)
        if length >= LONGEST_SECONDS * sound.sample_rate:
            break
    return Sound("recording", np.concatenate(blocks).T, sound.sample_rate)


def _cards(cards: list[dict[str, Any]], none: str = "") -> str:
    return page.render(__package__, "sounds.html", sounds=cards, none=none)


def _words(text: str | None) -> list[str]:
    return [text.strip()] if text and text.strip() else []


def _marked(event: gr.EventData) -> tuple[float, float]:
    return round(event.start, 3), round(event.stop, 3)


def _only_here(names: Sequence[str]) -> Callable[[Request], Any]:
    """Refuses what a page of another site sends; with `names`, also what is sent to a name that its owner lets mean this machine.

    Files are those of this machine: Gradio would fetch an address.
    """

    async def check(request: Request) -> None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if names and urlsplit(f"//{host}").hostname not in names:
            raise HTTPException(403, f"this page is at {' or '.join(names)} only; for others, start it with --host and --password")
        if origin and urlsplit(origin).netloc != host:
            raise HTTPException(403, "requests of other sites are refused")
        if any(re.match("https?:", str(value), re.IGNORECASE) for value in request.path_params.values()):
            raise HTTPException(403, "only files of this page can be read")

    return check


def build(play: Play) -> gr.Blocks:
    """The page: a checkpoint, four tabs, and the session's sounds."""
    names, choices = list(play.found), [(found.title, name) for name, found in play.found.items()]
    listen = page.render(__package__, "listen.js")

    def sounds(**more: Any) -> gr.HTML:
        return gr.HTML("", js_on_load=listen, elem_classes="sounds", **more)

    def number(label: str, value: float | None = None, least: float = 0, whole: bool = True, **more: Any) -> gr.Number:
        return gr.Number(value, label=label, minimum=least, precision=0 if whole else None, min_width=110, **more)

    with gr.Blocks(title="Soundmill", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        model = gr.Dropdown(choices, value=names[0], label="Checkpoint")
        with gr.Tabs():
            with gr.Tab("Make"):
                labels = gr.CheckboxGroup([], label="Labels")
                prompt = gr.Textbox(label="Prompt", placeholder="a dog barks, then rain", max_lines=3)
                with gr.Row():
                    seed, count = number("Seed", 0), number("Sounds", 1, 1, maximum=MAX_COUNT)
                    die = gr.Button("Another seed", min_width=110)
                with gr.Accordion("Sampling (empty: as trained)", open=False), gr.Row():
                    steps, guidance = number("Steps", least=1), number("Guidance", whole=False)
                    sampler = gr.Dropdown([], label="Sampler", min_width=110)
                    seconds = number("Seconds", whole=False)
                    more = gr.Textbox(label="More settings", placeholder="key=value, as --set", max_lines=1, min_width=110)
                make = gr.Button("Make", variant="primary", elem_id="make")
            with gr.Tab("Change"):
                with gr.Row():
                    recording = gr.Audio(
                        type="filepath", label="Recording: drop one, or use the microphone", editable=False, buttons=[]
                    )
                    second = gr.Audio(type="filepath", label="Second recording, to interpolate to", editable=False, buttons=[])
                original = sounds()
                kind = gr.Radio([], label="Change")
                with gr.Row():
                    amount = gr.Slider(0, 1, 0.5, label="Amount of noise (restyle, interpolate)", min_width=110)
                    start, stop = number("Inpaint from, s", 0, whole=False), number("to, s", 0, whole=False)
                    added = number("Continue by, s", 1, whole=False)
                with gr.Row():
                    words = gr.Textbox(label="Prompt or label", max_lines=1, min_width=110)
                    change_seed, variants = number("Seed", 0), number("Variants", 1, 1, maximum=MAX_COUNT)
                change = gr.Button("Change", variant="primary", elem_id="change")
            with gr.Tab("Compare"):
                with gr.Row():
                    one = gr.Dropdown(choices, value=names[0], label="First checkpoint")
                    other = gr.Dropdown(choices, value=names[-1], label="Second checkpoint")
                with gr.Row():
                    request = gr.Textbox(label="Prompt or label", max_lines=1)
                    pair_seed = number("Seed", 0)
                blind = gr.Checkbox(True, label="Blind: the vote shows which is which (keys 1 and 2)")
                compare = gr.Button("Compare", variant="primary", elem_id="compare")
                pair, order = sounds(), gr.State()
            with gr.Tab("Kept"):
                board = sounds()
                export = gr.DownloadButton("Export all as zip, with attribution")
        stop_button = gr.Button("Stop", size="sm", elem_id="stop")
        made = sounds(min_height=120)

        private = {"api_visibility": "private"}
        chosen = [labels, prompt, steps, guidance, sampler, seconds, kind]
        gr.on([blocks.load, model.change], play.choose, model, chosen, trigger_mode="always_last", **QUEUE, **private)
        blocks.load(play.board, None, board, **private)
        blocks.load(play.made, None, made, **private)
        die.click(lambda: random.randint(0, LARGEST_SEED), None, seed, queue=False, **private)
        fields = [model, labels, prompt, seed, count, steps, guidance, sampler, seconds, more]
        changes = [model, kind, recording, second, words, amount, start, stop, added, change_seed, variants]
        works = [
            gr.on([make.click, prompt.submit], play.make, fields, made, **QUEUE, **private),
            made.again(play.again, None, made, **QUEUE, **private),
            change.click(play.change, changes, made, **QUEUE, **private),
            compare.click(play.compare, [one, other, request, pair_seed, blind], [pair, order], **QUEUE, **private),
        ]
        stop_button.click(play.stop, cancels=works, queue=False, **private)
        made.keep(play.keep, None, board, **private)
        recording.change(play.original, recording, original, **private)
        original.mark(_marked, None, [start, stop], queue=False, **private)
        pair.vote(play.vote, order, [pair, order], **private)
        export.click(play.export, None, export, **private)
        blocks.unload(play.end)
        gr.api(play.answer, api_name="sound", **QUEUE)
    return blocks


def serve(play: Play, host: str, port: int, password: str | None) -> gr.Blocks:
    """Serve the page from a thread, and return it; its `local_url` is the address."""
    blocks = build(play).queue(max_size=100)
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            auth=(lambda user, given: hmac.compare_digest(given.encode(), password.encode())) if password else None,
            share=False,
            show_error=True,
            quiet=True,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=["api"],
            app_kwargs={"dependencies": [Depends(_only_here(() if password else (*LOCAL, host)))]},
            allowed_paths=[str(play.folders), str(play.root / making.KEPT)],
            blocked_paths=[str(play.root / making.VOTES)],
            max_file_size="200mb",
            head=page.render(__package__, "head.html"),
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be used ({error}); choose another --port") from None
    return blocks
