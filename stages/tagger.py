"""Train the tagger, the small classifier behind the offline scores, on the real training split."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from soundmill import hashing, manifest, shards, stage, terminal
from soundmill.audio.log_mels import iterate_log_mels, read_spec
from soundmill.errors import UserError
from soundmill.stage import Context, Input, Output
from soundmill.training import tagger as taggers
from soundmill.training.checkpoint import write_trained_on
from soundmill.training.curve import write_curve
from soundmill.training.device import torch_threads


def run(params: taggers.TaggerParams, ctx: Context, mels: Input, catalog: Input, tagger: Output, curves: Output) -> dict[str, Any]:
    """Write the trained tagger and its learning curve; the metrics have its classes and accuracy."""
    spec = read_spec(mels)
    rows = shards.read_table(catalog, manifest.CATALOG).to_pylist()
    splits = {}
    for split in manifest.SPLITS:  # at most `max_clips`, those with the smallest hashes, so a growing corpus changes few of them
        own = sorted((row for row in rows if row["split"] == split), key=lambda row: hashing.digest(params.seed, row["clip_id"]))
        splits[split] = sorted(own[: params.max_clips], key=lambda row: row["clip_id"])
    if not splits["train"]:
        raise UserError(f"{catalog}: no clip in the training split")
    chosen = [row for split in splits.values() for row in split]
    ids = {row["clip_id"] for row in chosen}
    log_mels = {clip_id: values for clip_id, values in iterate_log_mels(mels) if clip_id in ids}
    missing = sorted(ids - set(log_mels))
    if missing:
        raise UserError(
            f"{mels}: no spectrogram of {len(missing)} clips of the catalog, first {missing[0]!r}; `dvc repro` rebuilds both"
        )

    targets = choose_targets(params, chosen, [row["clip_id"] for row in splits["train"]], log_mels)
    usable = {split: [row["clip_id"] for row in part if row["clip_id"] in targets.of_clip] for split, part in splits.items()}
    if targets.kind != "labels":
        terminal.say(
            f"tagger: too few clips have labels; its classes, and its scores, are of {len(targets.classes)} {targets.kind} instead"
        )
    ctx.tracking.log_dataset("training clips", hashing.file_digest(catalog), len(usable["train"]), catalog, "training")
    steps = taggers.num_steps(params, len(usable["train"]))
    with ctx.tracking.system_metrics(), ctx.progress(steps, ctx.name, "step") as tick:
        net, curve = taggers.train_tagger(
            params, spec, log_mels, targets, usable["train"], usable["valid"], ctx.tracking.log_curve, tick
        )
    digest = taggers.save_tagger(net, params, spec, targets, tagger)
    write_trained_on(tagger, catalog, usable["train"])
    write_curve(curve, curves, taggers.CURVE)
    with torch_threads(params.threads):
        scores = {split: taggers.evaluate(net, log_mels, targets, usable[split]) for split in ("valid", "test")}
    return {
        "targets": targets.kind,
        "classes": len(targets.classes),
        "clips": {split: len(part) for split, part in usable.items()},
        "without_target": sum(len(splits[split]) - len(usable[split]) for split in splits),
        "train_loss": curve[-1]["loss/train"],
        "weights": digest,
        **{split: score for split, score in scores.items() if score},
    }


def choose_targets(
    params: taggers.TaggerParams, rows: Sequence[dict[str, Any]], training: Sequence[str], log_mels: dict[str, np.ndarray]
) -> taggers.Targets:
    """Labels if at least half of the training clips have one; else caption words, under the same rule; else clusters of sounds."""
    targets = taggers.from_names({row["clip_id"]: row["labels"] for row in rows}, training, "labels")
    if targets is None or _share(targets, training) < 0.5:
        captions = {row["clip_id"]: row["captions"] for row in rows}
        targets = taggers.from_names(taggers.caption_words(captions, training, params.max_words), training, "caption words")
    if targets is None or _share(targets, training) < 0.5:
        wide = ((row["clip_id"], log_mels[row["clip_id"]].astype(np.float64)) for row in rows)
        # Mean and standard deviation over time of every band.
        statistics = {clip_id: np.concatenate([values.mean(1), values.std(1)]) for clip_id, values in wide}
        targets = taggers.cluster(statistics, training, max(1, min(params.clusters, len(training) // 2)))
    return targets


def _share(targets: taggers.Targets, training: Sequence[str]) -> float:
    return sum(clip_id in targets.of_clip for clip_id in training) / len(training)


if __name__ == "__main__":
    stage.main(run, section="tagger")
