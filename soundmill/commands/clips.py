"""Commands about the prepared clips: list, show, export."""

from pathlib import Path
from typing import Annotated

import typer

from soundmill import terminal
from soundmill.commands.project import TAKES_IDS, Clips, Project, Split, check_apart, project_root, sample_rate_of, tables
from soundmill.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Find a clip, hear it, trace it back to its recording and offset.")

Label = Annotated[str | None, typer.Option(help="Only clips with this label.")]
Text = Annotated[str | None, typer.Option("--text", help="Only clips with this text in a caption, the id or the source path.")]


@app.command("list")
def list_clips(
    split: Split = None,
    label: Label = None,
    text: Text = None,
    limit: Annotated[int, typer.Option(min=0, help="Show at most this many (0: all).")] = 50,
    variant: Clips = "default",
    project: Project = None,
) -> None:
    """List clips: id, split, source, labels, first caption."""
    from soundmill import clips

    rows = clips.find(tables(project_root(project), variant), split=split, label=label, text=text)
    shown = rows[:limit] if limit else rows
    width = max((len(row["clip_id"]) for row in shown), default=0)
    for row in shown:
        caption = row["captions"][0] if row["captions"] else "(no caption)"
        labels = ", ".join(row["labels"]) or "-"
        terminal.say(f"{row['clip_id']:<{width}}  {row['split']:<5}  {row['source']} @ {row['start']:g} s  [{labels}]  {caption}")
    terminal.say(f"{len(shown)} of {len(rows)} clips" + ("; --limit 0 shows all" if len(shown) < len(rows) else ""), error=True)


@app.command("show", context_settings=TAKES_IDS)
def show_clip(clip_id: str, variant: Clips = "default", project: Project = None) -> None:
    """Show a clip's facts, including the recording and the second that it was cut from."""
    from soundmill import clips
    from soundmill.audio import flac

    root = project_root(project)
    row = clips.get(tables(root, variant), clip_id)
    wave = flac.decode_flac(row["audio"]["bytes"])
    peak = float(abs(wave).max(initial=0.0))
    sample_rate = sample_rate_of(root, variant)
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
    terminal.say(f"hear it:   soundmill clips export {option}{clip_id}")


@app.command("export", context_settings=TAKES_IDS)
def export_clips(
    clip_ids: Annotated[list[str] | None, typer.Argument(help="Clip ids (default: all that the options select).")] = None,
    split: Split = None,
    label: Label = None,
    text: Text = None,
    output: Annotated[Path, typer.Option(help="Directory for the WAV files.")] = Path("clips"),
    variant: Clips = "default",
    project: Project = None,
) -> None:
    """Write clips as WAV files."""
    from soundmill import clips

    root = project_root(project)
    where = tables(root, variant)
    for clip_id in clip_ids or []:
        clips.get(where, clip_id)
    selected = clip_ids or [row["clip_id"] for row in clips.find(where, split=split, label=label, text=text)]
    if not selected:
        raise UserError("no clip matches; `soundmill clips list` shows all clips")
    check_apart(output, root)
    for path in clips.export(where, selected, output, sample_rate_of(root, variant)):
        terminal.say(path)
