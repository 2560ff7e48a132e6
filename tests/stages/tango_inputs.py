"""What families train on that diffuse latents of log-mels: an autoencoder, latents of clips and mixes, states of their captions."""

from pathlib import Path

import numpy as np

from soundmill import manifest, shards, text
from soundmill.models.components.contracts import save_codec
from soundmill.models.components.latents.store import ABOUT_KEY, LatentsAbout
from soundmill.shards import shard_name
from stages.encode_text import encode_shard
from tests import prepared
from tests.models.components.test_mel_autoencoder import SPEC, untrained
from tests.stages import of_waves

LENGTH, SHORT = 4000, 3000  # samples of a clip, and of the sound in test-0's
FRAMES = 32  # of a log-mel; latents are [4, 16, 8]
SCRATCH = {"width": 16, "layers": 1, "heads": 2, "seed": 0}
CAPTIONS = {  # any text is one, though as matplotlib's mathematics some would end a training
    "clip-0": ["a dog barks", r"$\frac{$ a hound 🐶"], "clip-1": ["rain falls"], "clip-2": [], "clip-3": ["a bell"],
    "held-0": ["rain falls"], "test-0": ["a bell"], "test-1": ["a dog barks, then $x^$ rain " * 400],
}  # fmt: skip
SPLITS = {"clip": "train", "held": "valid", "test": "test"}
MIXES = {"mix-0": ["a dog barks and rain falls"], "mix-1": ["a bell and rain falls"]}
MIXED = {"mix-0": ("clip-0", "clip-1"), "mix-1": ("clip-3", "clip-1")}


def write(directory: Path) -> Path:
    """`inputs/`, which a training takes, catalogs, and `clips/` for the generating."""
    digest = save_codec(untrained(), directory / "inputs" / "autoencoder", {"kind": "train"})["digest"]
    about = LatentsAbout(autoencoder=digest, scaling_factor=0.5, num_samples=FRAMES * SPEC.hop_length)
    write_latents(directory / "inputs" / "latents" / "clips", CAPTIONS, about)
    write_latents(directory / "inputs" / "latents" / "mixes", MIXES, about)
    encoder = text.make_scratch(directory / "encoder", **SCRATCH)
    spoken = sorted({"", *(one for texts in [*CAPTIONS.values(), *MIXES.values()] for one in texts)})
    config = {**encoder.identity(), "max_tokens": 64, "scratch": SCRATCH}
    (directory / "inputs" / "text").mkdir()
    encode_shard(spoken, encoder, config, directory / "inputs" / "text" / shard_name(0))

    rng, rows = np.random.default_rng(0), []
    for number, (one, captions) in enumerate(CAPTIONS.items()):
        told = {"captions": captions, "labels": [of_waves.LABELS[number % 2]], "split": SPLITS[one[:4]]}
        wave = (0.1 * rng.standard_normal(LENGTH)).astype(np.float32)
        seconds = (SHORT if one == "test-0" else LENGTH) / SPEC.sample_rate
        rows.append(prepared.sound(one, wave, SPEC.sample_rate, recording_id="r", source="r.wav", seconds=seconds, **told))
    of_waves.write_catalogs(rows, directory)
    prepared.write_rows(rows, directory / "clips" / shard_name(0), manifest.CLIPS)
    return directory


def write_latents(directory: Path, captions: dict[str, list[str]], about: LatentsAbout) -> None:
    schema = manifest.LATENTS.with_metadata({ABOUT_KEY: about.model_dump_json().encode()})
    rows = []
    for number, (one, texts) in enumerate(captions.items()):
        posterior = np.stack([np.full((4, 16, 8), number), np.full((4, 16, 8), -4.0)]).astype("<f2")
        size = {"channels": 4, "frames": 16, "bands": 8, "digest": f"{one} {about.autoencoder}"}
        mixed = dict(zip(("first", "second"), MIXED.get(one, (None, None)), strict=True))
        split = SPLITS.get(one[:4], "train")
        rows.append({"clip_id": one, "split": split, "captions": texts, **mixed, "posterior": posterior.tobytes(), **size})
    shards.write_rows(rows, directory / shard_name(0), schema)
