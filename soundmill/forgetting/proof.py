"""What still contains forgotten sounds, by id, digest and fingerprint; removing them from what the stages do not rebuild."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from soundmill import hashing, ledger, shards, tracking
from soundmill.corpora.forgotten import Entry, Forgotten
from soundmill.decoding import decode
from soundmill.errors import UserError, first_of
from soundmill.forgetting import listing
from soundmill.forgetting.listing import Progress, Traces, in_force
from soundmill.holdings import Project, piece_of

LISTED = 3  # objects of the cache that a message names
ERASE = "`soundmill forget --erase` removes it"


@dataclass
class Proof:
    """One sentence for each thing that still contains a forgotten sound, and for each that was not searched."""

    found: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(root: Path, things: Sequence[str] = (), cache: Path | None = None, progress: Progress = lambda n: None) -> Proof:
    """Search for everything forgotten, or only for `things` (as in `forget`, or files), listed or not.

    Searched are the project and its workspaces, their scratch, DVC's cache (`cache`), and the files of runs and registered
    models in MLflow. Nothing is changed.
    """
    project, proof = Project(root), Proof()
    listed = in_force(root)
    if things:
        listed = Forgotten(tuple(entry for thing in things for entry in _entries(project, listed, thing)))
    elif absent := ledger.missing(root):
        proof.found += [f"{ledger.FILE} does not list {entry['source']}; `soundmill forget --update` adds it" for entry in absent]
    traces = _holding(project, listed, proof, "", "", progress)
    all_traces = [traces]
    for workspace in workspaces(root):
        name, checkout = workspace.relative_to(root), Project(workspace, is_workspace=True)
        all_traces.append(_holding(checkout, listed, proof, f"{name}/", f"; delete {name}, or run it again", progress))
    if traces:
        _in_runs(root, listed, traces, proof, progress)
        _in_cache(cache, traces, proof)
    unreadable = [path for one_traces in all_traces for path in one_traces.unreadable]
    proof.notes += [f"{shown(path, root)}: cannot be read, so it was not searched" for path in unreadable]
    proof.notes = list(dict.fromkeys(proof.notes))
    return proof


def workspaces(root: Path) -> list[Path]:
    """The workspaces of the project at `root` that have data."""
    return sorted(path for path in (root / tracking.WORKSPACES).glob("*") if (path / "data").is_dir())


def traces_of(project: Project, listed: Forgotten) -> Traces:
    """The traces of the listed entries in this checkout."""
    pieces = [listing.piece_of_entry(entry) for entry in listed.entries]
    digests = {clip.digest for entry in listed.entries for clip in entry.clips}
    listed_digests = pa.array(sorted(digests), pa.string())
    named = {None, *(entry.recording_id for entry in listed.entries)}
    for table in project.clips.values():
        pieces += [piece_of(row) for row in table.filter(pc.is_in(table["digest"], listed_digests)).to_pylist()]
    for table in project.tables():  # their seconds may be those of a loop; the entries have the right ones
        rows = table.filter(pc.is_in(table["digest"], listed_digests)).to_pylist()
        pieces += [piece_of(row) for row in rows if row["recording_id"] not in named]
    return Traces.of(listed.entries, dict.fromkeys(pieces))


def _entries(project: Project, listed: Forgotten, thing: str) -> list[Entry]:
    """What a word names: an entry of the lists, something of the project, or a file that is in no table."""
    entries = [entry for entry in listed.entries if thing in (entry.recording_id, entry.source, str(entry))]
    if project.find(thing):
        entries.append(listing.describe(project, listing.piece_of_name(project, thing), "requested", None))
    if entries:
        return entries
    path = next((path for path in (Path(thing), *(place / thing for place in project.corpora)) if path.is_file()), None)
    if path is None:
        raise project.unknown(thing)
    try:
        words = listing.encoded(listing.words_of_file(path))
    except decode.DecodeError as error:
        raise UserError(f"{path}: cannot be decoded ({error})") from None
    digest = hashing.file_digest(path)
    values = {"recording_id": digest, "source": thing, "digest": digest, "start": None, "end": None, "clips": []}
    return [Entry(**values, fingerprint=words, copy_of=None, reason="requested")]


def _holding(project: Project, listed: Forgotten, proof: Proof, prefix: str, remedy: str, progress: Progress) -> Traces:
    """Search a checkout's outputs and scratch; each sentence is put between `prefix` and `remedy`."""
    found: list[str] = []
    for row in project.recordings.values():
        if entry := listed.whole(row["recording_id"], row["digest"]):
            found.append(f"data/corpus: recording {row['path']} is {entry}")
    traces = traces_of(project, listed)
    held = project.held(traces.pieces, {clip.clip_id for entry in listed.entries for clip in entry.clips}, traces.digests)
    found += [f"data/clips/{variant}: clip {row['clip_id']}" for variant, rows in held.clips.items() for row in rows]
    found += [f"data/mixes: {mix}" for mix in held.mixes]
    loops = project.loops_of({entry.recording_id for entry in listed.entries if entry.is_whole})
    found += [f"{path}: {rows} loops of it" for path, rows in loops.items()]
    told = "data/mixes/", *(f"data/clips/{variant}/" for variant in held.clips)
    found += [f"{path}: {rows} rows of it" for path, rows in held.shards.items() if not path.startswith(told)]
    for weights, part, clips, mixes in held.weights:
        where = f"{weights.name}/{part}" if part else weights.name
        erased = "" if weights.is_of_graph else f"; {ERASE}"
        found.append(f"{where}: trained on {clips} clips of it" + (f", and on {mixes} mixes" if mixes else "") + erased)
    found += [f"{path}: a sound named after a clip of it{_remedy(path)}" for path in held.files]
    found += [f"{path}: names it{_remedy(path)}" for path in held.reports]
    ids = {row["clip_id"] for rows in held.clips.values() for row in rows}
    for variant in project.clips:
        for entry, clip_id in listing.clips_like(project.data / "clips" / variant, listed.entries, progress):
            if clip_id not in ids:
                found.append(f"data/clips/{variant}: clip {clip_id} sounds like {entry}, by fingerprint")
    reported = set(held.files)
    paths = [path for path in project.sounds() if str(path.relative_to(project.root)) not in reported]
    for entry, path in listing.files_like(project.root, paths, listed.entries, progress):
        found.append(f"{path}: sounds like {entry}, by fingerprint{_remedy(path)}")
    proof.found += [f"{prefix}{sentence}{remedy}" for sentence in found]
    traces = Traces.of(listed.entries, traces.pieces, [*held.mixes, *ids])
    if traces:
        for path, why in listing.kept(project.root, traces):
            proof.found.append(f"{prefix}{path.relative_to(project.root)}: {why}; {ERASE}")
        for path in listing.scratch(project.root):
            proof.notes.append(f"{prefix}{path.relative_to(project.root)}: a stage's scratch directory, not searched; {ERASE}")
    proof.notes += [f"{prefix}{sentence}" for sentence in project.gone]
    return traces


def _in_runs(root: Path, listed: Forgotten, traces: Traces, proof: Proof, progress: Progress) -> None:
    store = tracking.store(root)
    if store.artifacts is None:
        found, note = listing.on_server(root, store.shown, traces)
        proof.found += found
        proof.notes.append(note)
        return
    for directory in (Path(store.artifacts), store.journals):
        found = listing.in_store(directory, traces, listed.entries, progress)
        proof.found += [f"{shown(path, root)}: {why}; {ERASE}" for path, why in found.items()]


def _in_cache(cache: Path | None, traces: Traces, proof: Proof) -> None:
    if cache is None or not cache.is_dir():
        proof.notes.append("DVC's cache does not exist, so it was not searched")
        return
    objects = listing.in_cache(cache, traces)
    if objects:
        first = first_of([f"{path.relative_to(cache)}: {why}" for path, why in objects.items()], LISTED, "; ")
        size = sum(path.stat().st_size for path in objects)
        needed = ", except what a checkout needs or another project made"
        proof.found.append(f"DVC's cache: {len(objects)} objects, {size / 1e6:.1f} MB ({first}); {ERASE}{needed}")
    proof.notes.append("in DVC's cache, sounds were searched by name and table, not by fingerprint; pictures were not searched")


def shown(path: Path, root: Path) -> str:
    """A path for messages: relative to `root` if it is below."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _remedy(path: str) -> str:
    """How to remove a file that no stage rebuilds; empty for other files."""
    return "; delete data/report/bakeoff, or run the bake-off again" if path.startswith("data/report/bakeoff/") else ""


@dataclass
class Erasure:
    """What holds forgotten sounds and can be removed, with the reasons, and what cannot."""

    paths: dict[Path, str] = field(default_factory=dict)
    cached: list[Path] = field(default_factory=list)  # objects of DVC's cache that hold them, whoever needs them
    versions: list[tracking.RegisteredModel] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def sentences(self, root: Path) -> list[str]:
        """One for each thing that can be removed, except of the cache."""
        return [
            *(f"{shown(path, root)}: {why}" for path, why in self.paths.items()),
            *(f"{model}: trained on it" for model in self.versions),
        ]


def find(root: Path, cache: Path | None = None, progress: Progress = lambda n: None) -> Erasure:
    """Find forgotten sounds in scratch, DVC's cache, registered models and files of runs, in the project and its workspaces.

    Outputs of stages are not searched, because `dvc repro` rebuilds them. Files of runs on a server cannot be deleted from here.
    """
    listed, found = in_force(root), Erasure()
    if not listed.entries:
        return found
    project, store = Project(root), tracking.store(root)
    traces = traces_of(project, listed)
    for checkout in (project, *(Project(workspace, is_workspace=True) for workspace in workspaces(root))):
        found.paths |= listing.kept(checkout.root, traces if checkout is project else traces_of(checkout, listed))
        found.paths |= dict.fromkeys(listing.scratch(checkout.root), "a stage's scratch directory")
    if cache:
        found.cached = list(listing.in_cache(cache, traces))
    trained = project.weights_with(list(traces.pieces), traces.digests)
    found.versions = list({(model.name, model.version): model for weights, *_ in trained for model in weights.registered}.values())
    for model in found.versions:
        if model.directory is None:
            found.left.append(f"{model}: its files are at {store.shown}; delete them there")
    if store.artifacts is None:
        on_server, note = listing.on_server(root, store.shown, traces)
        found.left += [*on_server, note]
        return found
    found.paths |= listing.in_store(store.artifacts, traces, listed.entries, progress)
    waiting = listing.in_store(store.journals, traces, listed.entries, progress)
    found.left += [f"{shown(path, root)}: not in MLflow yet; `soundmill sync`, then erase again" for path in waiting]
    return found


def erase(root: Path, found: Erasure) -> None:
    """Delete what was found, except in DVC's cache: registered versions, and files, each shard with its report."""
    tracking.delete_versions(root, found.versions)
    for path in found.paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
            shards.report_path(path).unlink(missing_ok=True)
