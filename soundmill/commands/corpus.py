"""Commands about a corpus, and about the clips prepared from it: check, duplicates, export; list, show."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from soundmill import disk, terminal
from soundmill.commands import project
from soundmill.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Inspect a corpus before using it. Only outputs that you name are written.")
clips_app = typer.Typer(no_args_is_help=True, help="Find a clip, hear it, trace it back to its recording and offset.")

FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Follow symbolic links that lead out of the folder (corpus.follow_links).")
]


@app.command("check")
def check_corpus(
    path: Annotated[
        str,
        typer.Argument(
            help="Folder or bucket of recordings and metadata; or a params.yaml, for the corpus (or union) that it names."
        ),
    ],
    format: Annotated[str, typer.Option(help="Format (docs/corpora.md); auto: detect it.")] = "auto",
    json: Annotated[Path | None, typer.Option(help="Write the whole report to this file.")] = None,
    missing: Annotated[Path | None, typer.Option(help="Write a csv of the clips without a file, for a downloader.")] = None,
    headers: Annotated[bool, typer.Option("--headers", help="Open every recording's header to find damage.")] = False,
    follow_links: FollowLinks = False,
) -> None:
    """Report what a corpus contains: coverage, missing clips, orphans, collisions, ambiguous and damaged files."""
    from soundmill.corpora import buckets, check

    place = buckets.root_of(path, Path()) if buckets.is_url(path) else Path(path)
    from_params = isinstance(place, Path) and place.is_file() and place.suffix.lower() in (".yaml", ".yml")
    if from_params and (format != "auto" or follow_links):
        raise UserError(f"{path}: has corpus.format and corpus.follow_links; leave out --format and --follow-links")
    outputs = [output for output in (json, missing) if output]
    if from_params and place.resolve() in [output.resolve() for output in outputs]:
        raise UserError(f"{path}: would be overwritten; choose another file")
    places = [part.root for part in check.directories_of(place)] if from_params and outputs else [place]
    for output in outputs:
        check.check_outside(output, places)
        project.writable_file(output)
    with project.progress_bar(None, "tags and headers", "file") as tick:
        if from_params:
            report = check.check_params(place, headers, tick)
        else:
            report = check.check(place, format, headers, tick, follow_links)
    check.show(report, terminal.console())
    if json:
        disk.write_json(json, report.as_json(), indent=1, sort_keys=False)
    if missing:
        terminal.say(f"{missing}: {check.write_missing(report, missing)} rows to download")


@app.command("duplicates")
def corpus_duplicates(
    path: Annotated[
        Path, typer.Argument(help="Folder of audio files, or of Parquet tables with audio inside; subfolders are included.")
    ],
    json: Annotated[Path | None, typer.Option(help="Write the pairs (a, b, score) here.")] = None,
    threshold: Annotated[float, typer.Option(min=0.05, max=1, help="Lowest score of a pair: the share of sound in common.")] = 0.4,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (default: one per CPU core).")] = None,
    follow_links: FollowLinks = False,
) -> None:
    """List pairs of files with the same sound, even after a gain, a shift, a cut, resampling or a lossy codec."""
    from soundmill.corpora import check, duplicates

    if json:
        check.check_outside(json, [path])
        project.writable_file(json)
    with project.progress_bar(None, "fingerprints", "file") as tick:
        result, unreadable = duplicates.find_in_folder(path, workers or os.cpu_count() or 1, threshold, tick, follow_links)
    for pair in result.pairs:
        terminal.say(f"{pair['score']:.2f}  {pair['a']}  {pair['b']}")
    if json:
        duplicates.write_json(result.pairs, json)
    for row in unreadable:
        terminal.say(f"not read: {row['path']}: {row['reason']} ({row['detail']})", error=True, color="yellow")
    summary = f"{len(result.pairs)} pairs among {result.names.num_rows} files"
    if result.featureless:
        summary += f"; {len(result.featureless)} are too short or too steady, and were compared only byte by byte"
    terminal.say(summary + (f"; {len(unreadable)} not read" if unreadable else ""), error=True)


@app.command("export")
def export_corpus(
    format: Annotated[
        str,
        typer.Argument(
            help="amphion, audiocaps, audiocraft, audiofolder, audiofolder_csv, audiofolder_parquet, audioldm, clotho, esc, "
            "folder, lhotse, musiccaps, panns, stable_audio, tango, urbansound8k, wavcaps or webdataset."
        ),
    ],
    directory: Annotated[Path, typer.Argument(help="A new or empty directory for audio and manifests.")],
    split: project.Split = None,
    variant: project.Clips = "default",
    root: project.Root = None,
) -> None:
    """Write the prepared clips in another tool's format."""
    from soundmill import exports

    project.check_apart(directory, root)
    with project.progress_bar(None, f"export {format}", "clip") as tick:
        where, rate = project.tables(root, variant), project.sample_rate_of(root, variant)
        result = exports.export(where, format, directory, rate, split=split, progress=tick)
    terminal.say(f"{directory}: {result.written} clips as {format}")
    if result.left_out:
        clip_id, reason = result.left_out[0]
        message = f"left out: {len(result.left_out)} clips, first {clip_id} ({reason}); all are in {directory / exports.LEFT_OUT}"
        terminal.say(message, color="yellow")


Label = Annotated[str | None, typer.Option(help="Only clips with this label.")]
ClipId = Annotated[str, typer.Argument(help="A clip's id, as `soundmill clips list` shows it.")]
Text = Annotated[str | None, typer.Option("--text", help="Only clips with this text in a caption, the id or the source path.")]


@clips_app.command("list")
def list_clips(
    split: project.Split = None,
    label: Label = None,
    text: Text = None,
    limit: Annotated[int, typer.Option(min=0, help="Show at most this many (0: all).")] = 50,
    variant: project.Clips = "default",
    root: project.Root = None,
) -> None:
    """List clips: id, split, source, labels, first caption."""
    from soundmill import clips

    rows = clips.find(project.tables(root, variant), split=split, label=label, text=text)
    if not rows:
        raise UserError("no clip matches; `soundmill clips list --limit 0` shows all clips")
    shown = rows[:limit] if limit else rows
    width = max((len(row["clip_id"]) for row in shown), default=0)
    for row in shown:
        caption = row["captions"][0] if row["captions"] else "(no caption)"
        labels = ", ".join(row["labels"]) or "-"
        terminal.say(f"{row['clip_id']:<{width}}  {row['split']:<5}  {row['source']} @ {row['start']:g} s  [{labels}]  {caption}")
    terminal.say(f"{len(shown)} of {len(rows)} clips" + ("; --limit 0 shows all" if len(shown) < len(rows) else ""), error=True)


@clips_app.command("show", context_settings=project.TAKES_IDS)
def show_clip(clip_id: ClipId, variant: project.Clips = "default", root: project.Root = None) -> None:
    """Show a clip's facts, including the recording and the second that it was cut from."""
    from soundmill import clips
    from soundmill.audio import flac

    row = clips.get(project.tables(root, variant), clip_id)
    wave = flac.decode_flac(row["audio"]["bytes"])
    peak = float(abs(wave).max(initial=0.0))
    sample_rate = project.sample_rate_of(root, variant)
    clips.check_rate(row, sample_rate)
    facts = {
        "clip": row["clip_id"],
        "recording": row["source"],
        "starts at": f"{row['start']:g} s",
        "length": f"{wave.shape[1] / sample_rate:g} s at {sample_rate} Hz, {('mono', 'stereo')[len(wave) - 1]}",
        "peak": f"{peak:.3f}",
        "split": row["split"],
        "labels": ", ".join(row["labels"]) or "-",
        "captions": "\n           ".join(row["captions"]) or "-",
        "digest": row["digest"],
    }
    for key, value in facts.items():
        terminal.say(f"{key:<10} {value}")
    option = "" if variant == "default" else f"--clips {variant} "
    terminal.say(f"hear it:   soundmill clips export {option}{shlex.quote(clip_id)}")


@clips_app.command("export", context_settings=project.TAKES_IDS)
def export_clips(
    context: typer.Context,
    clip_ids: Annotated[list[str] | None, typer.Argument(help="Clip ids (default: all that the options select).")] = None,
    split: project.Split = None,
    label: Label = None,
    text: Text = None,
    output: Annotated[Path, typer.Option(help="Directory for the WAV files.")] = Path("clips"),
    variant: project.Clips = "default",
    root: project.Root = None,
) -> None:
    """Write clips as WAV files."""
    from soundmill import clips

    where, options = project.tables(root, variant), project.given(context, ("clip_ids", "output", "variant", "root"))
    if clip_ids and options:
        raise UserError(f"these ids say which clips to export; leave out {', '.join(one.opts[-1] for one in options)}")
    rows = clips.named(where, clip_ids) if clip_ids else clips.find(where, split=split, label=label, text=text)
    if not rows:
        raise UserError("no clip matches; `soundmill clips list --limit 0` shows all clips")
    project.check_apart(output, root)
    project.say_paths(clips.export(where, [row["clip_id"] for row in rows], output, project.sample_rate_of(root, variant)))
