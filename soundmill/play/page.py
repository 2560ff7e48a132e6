"""The page in Gradio: where its fields and buttons are, what they call, and who may open it."""

import hmac
import json
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from fastapi import Depends, HTTPException, Request

from soundmill import page
from soundmill.errors import UserError
from soundmill.listening.answers import REAL
from soundmill.play import making
from soundmill.play.fields import FIELDS, KINDS
from soundmill.play.session import REAL_ONE, Play

LOCAL = ("127.0.0.1", "localhost")
MAX_PAGES = 100  # of which Gradio remembers the fields; each takes some 3 MB, also after it was closed
QUEUE = {"concurrency_id": "models", "concurrency_limit": 1}
PRIVATE = {"api_visibility": "private"}


def _marked(event: gr.EventData) -> tuple[float, float]:
    return round(event.start, 3), round(event.stop, 3)


def _only_here(names: Sequence[str]) -> Callable[[Request], Any]:
    """Refuses what a page of another site sends; with `names`, also what is sent to a name that its owner lets mean this machine.

    Files are those of this machine: Gradio would fetch an address, from the path of a request or of a file in its JSON.
    """

    async def check(request: Request) -> None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if names and urlsplit(f"//{host}").hostname not in names:
            raise HTTPException(403, f"this page is at {' or '.join(names)} only; for others, start it with --host and --password")
        if origin and urlsplit(origin).netloc != host:
            raise HTTPException(403, "requests of other sites are refused")
        paths = [str(value) for value in request.path_params.values()]
        if not request.headers.get("content-type", "").startswith(("multipart/", "application/x-www-form-urlencoded")):
            try:
                paths += re.findall(r'(?<!\\)"path": "([^"]*)', json.dumps(json.loads(await request.body() or b"{}")))
            except ValueError:
                raise HTTPException(400, "not JSON") from None
        if any(re.match("https?:", path, re.IGNORECASE) for path in paths):
            raise HTTPException(403, "only files of this page can be read")

    return check


def build(play: Play) -> gr.Blocks:
    """The page: a checkpoint, five tabs, and the session's sounds."""
    names, listen, stops = list(play.found), page.render(__package__, "listen.js"), []
    at: dict[str, Any] = {}

    def sounds(*classes: str, **more: Any) -> gr.HTML:
        return gr.HTML("", js_on_load=listen, elem_classes=["sounds", *classes], **more)

    def lay(*names: str) -> None:
        for name in names:
            given = dict(FIELDS[name])
            at[name] = getattr(gr, given.pop("is"))(elem_id=name, **given)

    def press(name: str) -> gr.Button:
        with gr.Row():
            button = gr.Button(name, variant="primary", elem_id=name.lower(), scale=4, min_width=110)
            stops.append(gr.Button("Stop", scale=1, min_width=90, elem_classes="end"))
        return button

    with gr.Blocks(title="Soundmill", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        model = gr.Dropdown(play.choices, value=names[0], label="Model, the newest first", elem_id="model-checkpoint")
        with gr.Tabs():
            with gr.Tab("Make") as tab_make:
                lay("make-labels")
                examples = sounds("examples")
                lay("make-prompt")
                make = press("Make")
                with gr.Row():
                    lay("make-seed", "make-count")
                    die = gr.Button("Another seed", min_width=110)
                with gr.Accordion("How it is sampled (empty: as trained)", open=False), gr.Row():
                    lay("make-num_steps", "make-guidance_scale", "make-sampler", "make-seconds", "make-settings")
            with gr.Tab("Change") as tab_change:
                lay("change-kind")
                with gr.Row():
                    lay("change-recording", "change-second")
                original = sounds()
                with gr.Row():
                    lay("change-amount", "change-start", "change-stop", "change-seconds")
                with gr.Row():
                    lay("change-words", "change-seed", "change-other_seed", "change-count")
                change = press("Change")
            with gr.Tab("Compare") as tab_compare:
                systems = gr.Dropdown([*play.choices, REAL_ONE], value=[*names, REAL][:2], multiselect=True, label="Which ones")
                with gr.Row():
                    request = gr.Textbox(label="Prompt or label", max_lines=1)
                    lay("compare-seed")
                blind = gr.Checkbox(True, label="Blind: two of them in a hidden order, until you have voted (keys 1 and 2)")
                compare = press("Compare")
                pair, ballot = sounds(), gr.State()
            with gr.Tab("Kept") as tab_kept:
                board = sounds()
                export = gr.Button("Export all as zip, with attribution")
                archive = gr.DownloadButton(visible="hidden", elem_id="archive")
            with gr.Tab("Live") as tab_live:
                live = gr.HTML("")
        with gr.Column() as results:
            copies, made = sounds(), sounds(min_height=120)

        own = ("labels", "prompt", "num_steps", "guidance_scale", "sampler", "seconds")
        kind, recording = at["change-kind"], at["change-recording"]
        chosen = [*(at[f"make-{name}"] for name in own), kind, live]
        gr.on([blocks.load, model.change], play.choose, model, chosen, trigger_mode="always_last", **QUEUE, **PRIVATE)
        blocks.load(play.offer, None, [model, systems], **PRIVATE)
        blocks.load(play.board, None, board, **PRIVATE)
        blocks.load(play.made, None, made, **PRIVATE)
        for tab in (tab_make, tab_change, tab_compare, tab_kept, tab_live):
            shown = gr.update(visible=tab in (tab_make, tab_change))
            tab.select(lambda shown=shown: shown, None, results, queue=False, **PRIVATE)
        at["make-labels"].change(play.examples, [model, at["make-labels"]], examples, show_progress="hidden", **PRIVATE)
        some = {name: at[f"change-{name}"] for name in sorted({name for _, *read in KINDS.values() for name in read})}
        kind.change(lambda kind: [gr.update(visible=one in KINDS.get(kind, ())) for one in some], kind, [*some.values()], **PRIVATE)
        die.click(None, None, at["make-seed"], js="() => Math.floor(Math.random() * 2 ** 31)", **PRIVATE)
        makes, changes = ({model, *(at[one] for one in at if one.startswith(tab))} for tab in ("make-", "change-"))
        asked = [systems, request, at["compare-seed"], blind]
        works = [
            gr.on([make.click, at["make-prompt"].submit], play.make, makes, made, validator=play.check_make, **QUEUE, **PRIVATE),
            made.again(play.again, None, made, **QUEUE, **PRIVATE),
            made.nearest(play.nearest, None, copies, **QUEUE, **PRIVATE),
            change.click(play.change, changes, made, validator=play.check_change, **QUEUE, **PRIVATE),
            compare.click(play.compare, asked, [pair, ballot], validator=play.check_compare, **QUEUE, **PRIVATE),
        ]
        gr.on([one.click for one in stops], play.stop, cancels=works, queue=False, **PRIVATE)
        made.change(lambda: "", None, copies, queue=False, **PRIVATE)  # it was about an earlier sound
        made.keep(play.keep, None, board, **PRIVATE)
        recording.change(play.original, recording, original, validator=play.check_recording, **PRIVATE)
        original.mark(_marked, None, [some["start"], some["stop"]], queue=False, **PRIVATE)
        pair.vote(play.vote, ballot, [pair, ballot], **PRIVATE)
        # A DownloadButton gives what it had before it was pressed, at first nothing.
        export.click(play.export, None, archive, **PRIVATE).success(js="() => document.querySelector('#archive').click()")
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
            state_session_capacity=MAX_PAGES,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be used ({error}); choose another --port") from None
    return blocks
