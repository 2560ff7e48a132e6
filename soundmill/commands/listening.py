"""Commands to judge models by ear: listen, blind listening tests, and the page to play with them."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soundmill import disk, terminal
from soundmill.commands.project import Project, Root, progress_bar, project_if_any, project_root, writable_file
from soundmill.errors import UserError
from soundmill.params import MAX_SEED

if TYPE_CHECKING:
    from soundmill.listening.answers import Key
    from soundmill.listening.material import Material, Model, Request, Sounds

app = typer.Typer()
test = typer.Typer(no_args_is_help=True, help="Blind listening tests: make the raters' page, score their answers.")
app.add_typer(test, name="listening-test")

LOCAL = "127.0.0.1"

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL|[NAME=]DIR…",
        help="A family whose sounds this checkout has (data/generated/MODEL), or any folder of sounds. Files with equal names, "
        "without suffix, answer the same request.",
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(help="Folder of the real sounds, with the same names (default: the checkout's clips, if it has them)."),
]
Captions = Annotated[Path | None, typer.Option(help="Captions of the folders' sounds: a csv with the columns id and caption.")]
Scores = Annotated[
    list[str] | None,
    typer.Option(
        "--scores",
        metavar="NAME=DIR",
        help="Report of `soundmill evaluate --report DIR` on a folder's sounds; repeatable. Families need none.",
    ),
]


@app.command()
def listen(
    models: Models,
    reference: Reference = None,
    captions: Captions = None,
    scores: Scores = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=writable_file, help="The page: one file that plays without a network.")
    ] = Path("listen.html"),
    megabytes: Annotated[float, typer.Option(min=0.1, help="Largest size of the page, in MB; it names what does not fit.")] = 40.0,
    project: Project = None,
) -> None:
    """Write one page to compare models by ear: one row per request, one column for the real sound and for each model.

    Players of a row switch at the same position and have the same loudness; spectrograms share one scale. Rows can be searched by
    caption and label, and sorted by the scores of their sounds.
    """
    from soundmill.listening import side_by_side

    material = gather(models, reference, captions, scores or [], project)
    with progress_bar(len(material.requests), "listen", "request") as tick:
        written = side_by_side.write(output, material, megabytes, tick)
    for fault in written.faults:
        terminal.say(fault, error=True, color="yellow")
    if written.left_out:
        terminal.say(
            f"{len(written.left_out)} of {len(material.requests)} requests did not fit in {megabytes:g} MB: the page names them; "
            "raise --megabytes to include them",
            error=True,
            color="yellow",
        )
    terminal.say(output)


@test.command("new")
def new_test(
    models: Models,
    reference: Reference = None,
    captions: Captions = None,
    scores: Scores = None,
    questions: Annotated[
        str,
        typer.Option(
            help="Comma-separated: quality, relevance (to the text), similarity (to the real sound), loopability, drummability, "
            "or names from --own."
        ),
    ] = "quality",
    own: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="YAML file of your own questions (docs/listening.md).")
    ] = None,
    per_model: Annotated[
        int, typer.Option(min=3, max=500, help="Number of requests; raters hear every model and the real sound for each.")
    ] = 20,
    scale: Annotated[str, typer.Option(help="5: 1 to 5 (MOS); 100: 1 to 100, as TANGO's OVL and REL.")] = "5",
    ab: Annotated[bool, typer.Option("--ab", help="Compare two models at a time instead of rating one sound.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Same seed, sounds and key.json in --output: same test.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the page and its key.")] = Path("listening-test"),
    project: Project = None,
) -> None:
    """Write a blind test: test.html, which raters open from disk, and key.json, which says which model made each sound.

    Besides the models' sounds it has real ones, and deliberately bad ones and repeats that check the raters. Give every rater the
    page and their own number, starting at 1: it selects an order, and the orders are balanced. Keep the key to yourself.
    """
    from soundmill import hashing
    from soundmill.listening import blind

    known, names = blind.questions(own), [name.strip() for name in questions.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--questions: {unknown[0]!r} is not one of {', '.join(known)}")
    chosen = {name: known[name] for name in names}
    if scale not in ("5", "100"):
        raise UserError(f"--scale {scale}: must be 5 or 100")
    if ab and scale == "100":
        raise UserError("--ab and --scale 100 exclude each other: --ab compares two sounds, --scale rates one")
    material = gather(models, reference, captions, scores or [], project)
    plan = blind.Plan(chosen, per_model, seed, 100 if scale == "100" else 5, ab)
    models_dir = project_root(project) / "data" / "models" if any(model.family for model in material.models) else None
    checkpoints = {model.name: models_dir / model.family for model in material.models if model.family}
    weights = {name: hashing.model_digest(path) for name, path in checkpoints.items() if path.is_dir()}
    with progress_bar(None, "listening test", "sound") as tick:
        page, key = blind.write(output, material, plan, weights, tick)
    terminal.say(f"{page}  for the raters ({page.stat().st_size / 1e6:.1f} MB), each with their own number, starting at 1")
    terminal.say(f"{key}  for you alone: `soundmill listening-test score` reads it")


@test.command("score")
def score_test(
    files: Annotated[list[Path], typer.Argument(help="Files that raters saved: answers-TEST-NUMBER.json.")],
    key: Annotated[Path, typer.Option(help="The key that `listening-test new` wrote.")] = Path("listening-test/key.json"),
    json: Annotated[Path | None, typer.Option(callback=writable_file, help="Write the result to this file.")] = None,
    project: Project = None,
) -> None:
    """Score a listening test: means with intervals, corrected paired tests, agreement, raters who failed the checks.

    In a checkout the result is also logged to MLflow: one run per model, with the scores that it had when the test was made.
    """
    from soundmill.listening import answers, scoring

    test_key = answers.read_key(key)
    result = scoring.score(test_key, answers.read_all(files, test_key))
    if json:
        disk.write_json(json, result)
    if home := project_if_any(project):
        _record(home, test_key, result)
    scoring.show(result)


def _record(home: Path, key: Key, result: Mapping[str, Any]) -> None:
    """Log to MLflow: a run for the test and a nested one per model, with its ratings next to its other scores."""
    from soundmill import tracking
    from soundmill.listening import scoring

    name = f"listening test {key.test}"
    with tracking.result_run(home, name, "listening-test", {"listening_test": key.test}) as run:
        run.log_metrics_tree({**result, "counts": {outcome: len(raters) for outcome, raters in result["raters"].items()}})
        for model, facts in key.models.items() if result["questions"] else ():
            tags = {"listening_test": key.test, "family": facts.family or model}
            values = scoring.scores_of(key, result, model)
            with tracking.result_run(home, f"{model} · {name}", "listening-test", tags, run.id) as nested:
                nested.log_metrics_tree({**facts.scores, **values})
                if facts.weights:
                    nested.log_model_scores(facts.weights, facts.family, values)
        if run.id:
            terminal.say(f"recorded in MLflow: {name}; `make browse` shows it")


def gather(models: list[str], reference: Path | None, captions: Path | None, scores: list[str], project: Path | None) -> Material:
    from soundmill import clips
    from soundmill.listening import material

    root = project_if_any(project)
    families = sorted(path.name for path in (root / "data/generated").glob("*") if path.is_dir()) if root else []
    reports = dict(_named(text, "--scores") for text in scores)
    opened: list[Model] = []
    requests: dict[str, Request] = {}
    real: Sounds = {}
    for text in models:
        if text in families:
            data = root / "data"
            opened.append(material.read_family(text, *(data / kind / text for kind in ("generated", "codec", "report"))))
            if (prepared := clips.of_family(root, text)).catalog.is_file():
                found, asked = material.real_clips(prepared, opened[-1].sounds.keys())
                real, requests = {**found, **real}, {**requests, **asked}  # the catalog's requests are the most complete
            continue
        name, directory = (
            _named(text, "a model") if "=" in text and not Path(text).is_dir() else (Path(text).resolve().name, Path(text))
        )
        if not directory.is_dir():
            raise UserError(
                f"{text}: neither a folder nor a family with sounds here (there are: {', '.join(families) or 'none'}); "
                "give NAME=DIR, or make sounds with `dvc repro`"
            )
        folder = material.open_folder(directory)
        opened.append(material.read_folder(name, folder, reports.pop(name, None)))
        requests = {**material.folder_requests(folder, captions), **requests}
    if captions and all(model.family for model in opened):
        raise UserError("--captions: only for folders of sounds, and every model here is a family; leave it out")
    if reports:
        raise UserError(f"--scores: no folder is named {', '.join(sorted(reports))}; use NAME of NAME=DIR, or a DIR's last part")
    if reference:
        real = material.folder_sounds(material.open_folder(reference))
    return material.gather(opened, real, requests)


def _named(text: str, what: str) -> tuple[str, Path]:
    name, equals, directory = text.partition("=")
    if not (equals and name and directory):
        raise UserError(f"{what} {text!r}: expected NAME=DIR")
    return name, Path(directory)


@app.command()
def play(
    checkpoints: Annotated[
        list[Path] | None, typer.Argument(help="Directories of checkpoints to offer first, besides those of the project.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen on; any but 127.0.0.1 and localhost needs a password.")] = LOCAL,
    password: Annotated[
        str | None, typer.Option(envvar="SOUNDMILL_PLAY_PASSWORD", help="Asked of every visitor, with any user name.")
    ] = None,
    models: Annotated[
        int, typer.Option(min=1, max=100, help="Checkpoints kept in memory; the least recently used one is dropped.")
    ] = 2,
    root: Root = None,
) -> None:
    """Open a page on which to make sounds with trained models, change recordings, compare, and keep; stop it with Ctrl-C.

    Kept sounds go to data/kept, each with its request, from which `soundmill generate --from` makes it again.
    """
    if host not in (LOCAL, "localhost") and not password:
        raise UserError(f"--host {host}: whoever reaches it could use the page; give --password too")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="soundmill-play-") as place:
        # Read by Gradio when it is imported.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(Path(place) / "uploads"), HF_HUB_OFFLINE="1")
        terminal.say("starting…")
        from soundmill.play.checkpoints import Models as Loaded
        from soundmill.play.checkpoints import find

        offered = find(root, [path.resolve() for path in checkpoints or []])
        from soundmill.play import page

        opened = page.Play(root, offered, Loaded(models), Path(place))
        served = page.serve(opened, host, port, password)
        opened.ready.start()
        terminal.say(f"open {served.local_url}")
        served.block_thread()
