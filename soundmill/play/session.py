"""What the page's buttons do: sounds made, changed, compared and kept, in the session of each person who has it open."""

import html
import random
import re
import shlex
import shutil
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import gradio as gr
import numpy as np
import soundfile

from soundmill import hashing, page, params, terminal, tracking
from soundmill.audio import pieces, tags
from soundmill.decoding import decode
from soundmill.errors import UserError, reason
from soundmill.listening.answers import FIRST, REAL, SAME, SECOND
from soundmill.page.sounds import LONGEST_SECONDS, Card, Section, Sound, draw_section
from soundmill.play import checkpoints, fields, making
from soundmill.play.checkpoints import Found, Models
from soundmill.play.making import Asked, Refused

SHOWN = 24  # sounds of a session, or kept ones, on the page
ANSWERED = 100  # sounds made through the API that stay
PROGRESS = gr.Progress()
ANSWERS = {"1": FIRST, "same": SAME, "2": SECOND}
QUESTIONS = ("quality", "relevance")  # of a vote; the second one if something was asked for
REAL_ONE = ("a real recording", REAL)


class Stopped(Exception):
    """The person pressed Stop."""


@dataclass
class Session:
    """One person's open page: its folder, which nobody can guess, has the sounds and requests made on it."""

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)  # of the work that began last
    uploads: set[Path] = field(default_factory=set)
    took: dict[str, float] = field(default_factory=dict)  # seconds, by the name of a sound


@dataclass(frozen=True)
class Ballot:
    """A blind comparison: two systems in the order in which they are heard; questions by name; the requests; the answers so far."""

    systems: list[str]
    article: str
    questions: dict[str, str]
    made: list[Asked]
    given: dict[str, str] = field(default_factory=dict)

    @property
    def left(self) -> list[str]:
        return [name for name in self.questions if name not in self.given]


@contextmanager
def as_sentences() -> Iterator[None]:
    """Show any error on the page, as text, and go on."""
    try:
        yield
    except Stopped:
        gr.Info("stopped")
    except Exception as error:
        if not isinstance(error, UserError):
            terminal.say(traceback.format_exc(), error=True)
        raise gr.Error(html.escape(reason(error), quote=False), print_exception=False) from None


class Play:
    """What the page does; Gradio calls its methods from several threads."""

    def __init__(self, root: Path, found: dict[str, Found], models: Models, scratch: Path) -> None:
        self.root, self.found, self.models, self.scratch = root, found, models, scratch
        self.folders = scratch / "sessions"
        self.folders.mkdir(parents=True)
        self.sessions: dict[str, Session] = {}
        self.answered: deque[Path] = deque()
        self.versions: list[tracking.RegisteredModel] = []
        self.ready = threading.Thread(target=self._get_ready, daemon=True)

    def _get_ready(self) -> None:
        """Make a sound in two steps, so that the first one asked for is quick, and ask the registry for more checkpoints."""
        name, found = next(iter(self.found.items()))
        # A checkpoint that fails says so when it is chosen.
        with suppress(Exception), tempfile.TemporaryDirectory(dir=self.scratch) as place, self.models.lock:
            if hasattr(self.models.load(found).model.params.sampling, "num_steps"):
                _card_of(*self.sounds({"checkpoint": name, "settings": ["num_steps=2"]}, Session(Path(place))))
        try:
            self.versions = tracking.registered_models(self.root)
            self.found = self.found | checkpoints.of_registry(self.found, self.versions, self.root)
        except Exception as error:  # the page goes on without
            terminal.say(reason(error), error=True)

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

    def offer(self) -> list[Any]:
        """The choices of checkpoints, when those of the registry are known."""
        if self.ready.ident:
            self.ready.join()
        return [gr.update(choices=self.choices), gr.update(choices=[*self.choices, REAL_ONE])]

    @property
    def choices(self) -> list[tuple[str, str]]:
        choices = []
        for name, found in self.found.items():
            with suppress(UserError, OSError):  # it was deleted or damaged while the page is open
                choices.append((found.title, name))
        return choices

    def choose(self, name: str) -> list[Any]:
        """The fields that a checkpoint has: labels, prompt, steps, guidance, sampler, seconds, kinds; and how it plays live."""
        with as_sentences(), self.models.lock:
            model = self.models.load(self._found(name)).model
            sampling, settings, kinds = model.params.sampling, type(model.params.sampling).model_fields, making.kinds_of(model)
            key = "solver" if "solver" in settings else "sampler"
            samplers = [(value, f"{key}={value}") for value in get_args(settings[key].annotation)] if key in settings else []

            def trained(key: str) -> Any:
                return gr.update(visible=key in settings, value=None, info=f"as trained: {getattr(sampling, key, None)}")

            return [
                gr.update(choices=list(model.labels), value=[], visible=bool(model.labels)),
                gr.update(visible=True) if model.condition == "caption" else gr.update(visible=False, value=""),
                *(trained(key) for key in ("num_steps", "guidance_scale")),
                gr.update(choices=samplers, value=None, visible=bool(samplers)),
                trained("seconds"),
                gr.update(choices=[(fields.KINDS[kind][0], kind) for kind in kinds], value=kinds[0] if kinds else None),
                page.render(__package__, "live.html", name=shlex.quote(name), plays="transfer" in kinds),
            ]

    def examples(self, name: str, labels: list[str]) -> str:
        """A real recording of each chosen label."""
        from soundmill.play import real

        try:
            ids = {f"a real {label}": real.fitting(self._found(name), label, 0) for label in labels}
            return _drawn("", "", real.sounds(self._found(name), ids)) if ids else ""
        except UserError as error:  # as of a checkpoint whose recordings are elsewhere
            return html.escape(str(error))

    def check_make(self, given: Mapping[Any, Any]) -> dict[Any, Any]:
        """What is wrong with the fields of Make; asked before the request waits in the queue, as is `check_change`."""
        from soundmill.models import sounds

        asked, faults = fields.by_name(given), fields.Faults()
        faults.check(asked, ("seed", "count"))
        with faults.at("checkpoint"):
            traits = self._found(asked.get("checkpoint", "")).traits
            for name, settings in fields.settings_of(asked).items():
                with faults.at(name):
                    params.override(traits.sampling, settings, "sampling")
            with faults.at("prompt" if traits.condition == "caption" else "labels"):
                sounds.of_prompts(traits, fields.words_of(asked.get("prompt")), 1, 0, asked.get("labels", ()))
        return faults.at_components(given)

    def make(self, given: Mapping[Any, Any], request: gr.Request, progress=PROGRESS) -> Iterator[str]:
        """Sounds of successive seeds, each shown when it is made."""
        asked = fields.by_name(given)
        asked |= {
            "prompts": fields.words_of(asked.get("prompt")),
            "settings": [one for some in fields.settings_of(asked).values() for one in some],
        }
        yield from self._each(fields.successive(asked, ["checkpoint", "labels", "prompts", "settings"]), request, progress)

    def again(self, event: gr.EventData, request: gr.Request, progress=PROGRESS) -> Iterator[str]:
        """A sound of the session with the next seed."""
        with as_sentences():
            asked = making.read(self._named(event.name, request))
            values = asked.but(seed=asked.seed + 1).model_dump()
        yield from self._each([values], request, progress)

    def check_change(self, given: Mapping[Any, Any], request: gr.Request) -> dict[Any, Any]:
        from soundmill.models import sounds

        asked, faults, seconds = fields.by_name(given), fields.Faults(), []
        faults.check(asked, ("seed", "count", "amount", "start", "stop", "seconds", "other_seed"))
        for name in [name for name in ("recording", "second") if name in asked]:
            with faults.at(name):
                seconds.append(self._upload(asked[name], request).seconds)
        with faults.at("words"):
            if words := fields.words_of(asked.get("words")):
                sounds.of_prompts(self._found(asked.get("checkpoint", "")).traits, words, 1, 0)
        with faults.at("kind"):
            if "kind" not in asked:
                raise UserError("this model cannot change a recording; choose another one")
            if not faults:
                making.check_sounds(asked["kind"], len(seconds))
                if asked["kind"] == "inpaint" and not asked.get("start", 0) < min(asked.get("stop", 0), seconds[0]):
                    within = f"{seconds[0]:.2f} s"
                    raise Refused("stop", f"mark a part that starts within the recording's {within} and ends later than it starts")
        return faults.at_components(given)

    def change(self, given: Mapping[Any, Any], request: gr.Request, progress=PROGRESS) -> Iterator[str]:
        """A recording changed with successive seeds, or the sounds between two recordings or seeds."""
        asked = fields.by_name(given)
        with as_sentences():
            if "kind" not in asked:
                raise UserError("this model cannot change a recording; choose another one")
            session = self.session(request)
            uploads = [Path(asked[key]) for key in ("recording", "second") if key in asked]
            asked["recordings"] = [
                shutil.copyfile(path, session.folder / f"{number}-{hashing.tree_digest(path)[:12]}{path.suffix[:8]}").name
                for number, path in enumerate(uploads)
            ]
        asked |= {"prompts": fields.words_of(asked.get("words"))}
        keys = ["checkpoint", "kind", "prompts", "recordings", "amount", "start", "stop", "seconds", "other_seed"]
        yield from self._each(fields.successive(asked, keys), request, progress)

    def _each(self, requests: Iterable[dict[str, Any]], request: gr.Request, progress: gr.Progress) -> Iterator[str]:
        session = self.begin(request)
        with as_sentences():
            for values in requests:
                self.sounds(values, session, progress)
                yield self.made(request)

    def sounds(self, values: dict[str, Any], session: Session, progress: Callable = lambda *told, **more: None) -> list[Path]:
        """Make what is asked for into the session's folder: one sound, except by `interpolate` without a `number`.

        Values that no request can have are a UserError.
        """
        asked = params.parse(Asked, values, "request")
        found, stop, started, passes, paths = self._found(asked.checkpoint), session.stop, time.monotonic(), 0, []
        with self.models.lock, tempfile.TemporaryDirectory(dir=self.scratch) as place:
            loaded = self.models.load(found)
            expected = making.passes(asked, loaded)

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
            for number in [asked.number] if "number" in values else range(len(made)):
                path = made[number]
                stem = re.sub(r"-\d{3}(?=$|-[^-]+bpm)", "", path.stem) if asked.kind == "generate" else f"{asked.kind}-{asked.seed}"
                target = session.folder / f"{len(session.took) + 1:03d}-{stem}.wav"
                if (given := making.input_of(path)).is_file():
                    shutil.move(given, making.input_of(target))
                asked.but(digest=loaded.facts["checkpoint"], number=number).write(target.with_suffix(".json"))
                paths.append(shutil.move(path, target))
                session.took[target.stem] = time.monotonic() - started
        return paths

    def made(self, request: gr.Request) -> str:
        """The session's sounds, the newest first."""
        session, cards = self.session(request), []
        for name in reversed(list(session.took)[-SHOWN:]):
            cards.append({"name": name, **_card_of(session.folder / f"{name}.wav", f"made in {session.took[name]:.1f} s")})
        return _cards(cards, "The sounds that you make appear here.")

    def nearest(self, event: gr.EventData, request: gr.Request, progress=PROGRESS) -> str:
        """The training clip nearest to a sound of the session, beside it."""
        from soundmill.play import real

        with as_sentences():
            path = self._named(event.name, request)
            progress(0, desc="comparing with the training clips; the first time takes longest")
            asked = making.read(path)
            making.check_here(asked, found := self._found(asked.checkpoint))
            verdict, near = real.nearest(path, found)
            article = _drawn("", asked.words, [_read("this sound", path), *near])
        return _cards([{"article": article, "facts": [verdict]}])

    def keep(self, event: gr.EventData, request: gr.Request) -> str:
        with as_sentences():
            path = self._named(event.name, request)
            kept = making.keep(path, self._found(making.read(path).checkpoint), self.root, self.versions)
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

    def check_compare(self, systems: list[str], words: str | None, seed: int | None, blind: bool) -> list[dict[str, Any]]:
        from soundmill.models import sounds
        from soundmill.play import real

        faults, models = fields.Faults(), [name for name in systems or [] if name != REAL]
        faults.check({"seed": seed or 0}, ("seed",))
        with faults.at("systems"):
            if len(systems or []) < 2:
                raise UserError("choose two or more")
            found = [self._found(name) for name in models]
            with faults.at("words"):
                for one in found:
                    sounds.of_prompts(one.traits, fields.words_of(words), 1, 0)
                if REAL in systems:
                    real.fitting(found[0], (words or "").strip(), 0)
        return faults.shown("systems", "words", "seed", "blind")

    def compare(self, systems, words, seed, blind, request: gr.Request, progress=PROGRESS) -> tuple[Any, Any]:
        """One request to several checkpoints, and a real recording; blind: to two of them, drawn by lot, in a random order."""
        from soundmill.listening.blind import questions
        from soundmill.play import real

        with as_sentences():
            session, seed, text, sounds, made = self.begin(request), int(seed or 0), (words or "").strip(), [], []
            heard = random.SystemRandom().sample(systems, 2) if blind else systems
            for number, name in enumerate(heard, 1):
                role = str(number) if blind else dict(map(reversed, [*self.choices, REAL_ONE])).get(name, name)
                if name == REAL:
                    found = self._found(next(one for one in systems if one != REAL))
                    sounds += real.sounds(found, {role: real.fitting(found, text, seed)})
                else:
                    asked = {"checkpoint": name, "prompts": fields.words_of(text), "seed": seed}
                    made += self.sounds(asked, session, progress)
                    sounds.append(_read(role, made[-1]))
            asks = {name: questions()[name].compare for name in QUESTIONS[: 2 if text else 1]} if blind else {}
            ballot = Ballot(heard, _drawn("", text or "unconditional", sounds), asks, [making.read(path) for path in made])
            return self._shown(ballot, [f"seed {seed}"]), ballot if blind else None
        return gr.skip(), None

    def vote(self, event: gr.EventData, ballot: Ballot | None) -> tuple[str, Ballot | None]:
        """Take the answer to a question; after the last one, store all and tell which is which."""
        with as_sentences():
            if not ballot or event.name not in ANSWERS:
                raise UserError("this comparison has its vote; make another one")
            ballot = replace(ballot, given={**ballot.given, ballot.left[0]: ANSWERS[event.name]})
            if ballot.left:
                return self._shown(ballot), ballot
            for asked in ballot.made:
                making.check_here(asked, self._found(asked.checkpoint))
            one, two = (None if name == REAL else self._found(name) for name in ballot.systems)
            path = making.vote(self.root, (one, two), ballot.given)
            named = [f"{number} was {found.title if found else REAL_ONE[0]}" for number, found in enumerate((one, two), 1)]
            return self._shown(ballot, [*named, f"stored in {path.relative_to(self.root)}"]), None

    def _shown(self, ballot: Ballot, facts: Sequence[str] = ()) -> str:
        asked = [ballot.questions[name] for name in ballot.left[:1]]
        return _cards([{"article": ballot.article, "facts": asked or facts, "votes": bool(asked)}])

    def check_recording(self, recording: str | None, request: gr.Request) -> dict[str, Any]:
        """Whether a dropped recording can be decoded; of a function of one field, Gradio takes no list."""
        faults = fields.Faults()
        with faults.at("recording"):
            if recording:
                self._upload(recording, request)
        return faults.shown("recording")[0]

    def original(self, recording: str | None, request: gr.Request) -> str:
        """The dropped recording, on whose picture a part can be marked."""
        if not recording:
            return ""
        with as_sentences():
            sound, blocks = self._upload(recording, request), []
            for block in sound.blocks():
                blocks.append(block)
                if sum(map(len, blocks)) >= LONGEST_SECONDS * sound.sample_rate:  # as much as the page shows
                    break
            width = {1: "mono", 2: "stereo"}.get(sound.channels, f"{sound.channels} channels")
            text = f"{sound.seconds:.2f} s, {sound.sample_rate} Hz, {width}; drag over the picture to mark a part to inpaint"
            drawn = _drawn("", text, [Sound("recording", np.concatenate(blocks).T, sound.sample_rate)])
            return f"<div data-marks>{drawn}</div>"

    def answer(self, model: str, words: list[str], seed: int, settings: list[str]) -> dict[str, Any]:
        """Make one sound; `file` is where GET /gradio_api/file=… has the WAV until a hundred more are made."""
        with as_sentences():
            session = Session(Path(tempfile.mkdtemp(dir=self.folders)))
            self.answered.append(session.folder)
            if len(self.answered) > ANSWERED:
                shutil.rmtree(self.answered.popleft(), ignore_errors=True)
            (path,) = self.sounds({"checkpoint": model, "prompts": words, "seed": seed, "settings": settings}, session)
            return {"file": str(path), "request": making.read(path).model_dump()}

    def _upload(self, path: str, request: gr.Request) -> pieces.Sound:
        """What a person sent, which is deleted with the session."""
        self.session(request).uploads.add(Path(path))
        if not Path(path).exists():
            raise UserError("the recording is not on this machine any more; drop it again")
        return _opened(Path(path))

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


@lru_cache(maxsize=2 * SHOWN)  # an upload does not change
def _opened(path: Path) -> pieces.Sound:
    """An upload, decoded once; a UserError has its name, not where it lies."""
    try:
        return decode.open_sound(path)
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{path.parent}/")) from None


def _read(role: str, path: Path) -> Sound:
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return Sound(role, wave.T, rate, made_by=tags.read(path))


@lru_cache(maxsize=2 * SHOWN)  # the sound at a path does not change
def _article_of(path: Path) -> str:
    """A sound and, if it was changed, its input, equally loud."""
    asked, given = making.read(path), making.input_of(path)
    return _drawn(path.stem, asked.words, [_read(asked.kind, path), *([_read("input", given)] if given.is_file() else [])])


def _card_of(path: Path, *more: str) -> dict[str, Any]:
    asked = making.read(path)
    facts = [asked.checkpoint, f"seed {asked.seed}", *asked.settings, *more]
    return {"article": _article_of(path), "facts": facts, "wav": str(path)}


def _drawn(name: str, title: str, sounds: Sequence[Sound]) -> str:
    from soundmill.listening.side_by_side import match_loudness

    matched = match_loudness(sounds) if len(sounds) > 1 else sounds
    article = draw_section(Section("", "", (Card(name, title, "", tuple(matched)),)), [])["articles"][0]
    return article.replace('preload="none"', 'preload="metadata"')  # few enough to show how long they are


def _cards(cards: list[dict[str, Any]], otherwise: str = "") -> str:
    return page.render(__package__, "sounds.html", sounds=cards, otherwise=otherwise)
