"""The arithmetic of protocols against the own code of the tools that they are named after, on the same embeddings and sounds.

kadtk is installed by `make test-bench`. The others are no packages: --tool is a checkout of
github.com/Stability-AI/stable-audio-metrics or github.com/hkchengrex/av-benchmark. Only their Python files are needed, no weights.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile

from bench import references
from soundmill.audio.flac import write_wav
from soundmill.evaluation import protocols
from soundmill.evaluation.embedders import clap, passt
from soundmill.evaluation.features import set_level
from soundmill.metrics import scores
from soundmill.metrics.divergence import softmax

CLIPS = 90  # with fewer than a hundred the inception score has one split here
CLASSES = 527
SECONDS = (0.9, 1.5, 4.0, 10.0, 12.3, 31.0)  # of the sounds whose windows are compared


@dataclass(frozen=True)
class Compared:
    """One value by a tool and by us; `tolerance` is the largest relative difference."""

    name: str
    theirs: float
    ours: float
    tolerance: float = 1e-6

    @property
    def difference(self) -> float:
        return abs(self.theirs - self.ours) / abs(self.theirs)


def sides(size: int, patches: int = 1) -> tuple[scores.EmbeddingSet, scores.EmbeddingSet]:
    """Random generated and reference embeddings and logits, similar but not equal, float32."""
    random = np.random.default_rng(size)
    ids = [f"{number:03d}" for number in range(CLIPS)]
    mix = random.standard_normal((size, size)) / np.sqrt(size)
    logits = {clip_id: random.standard_normal(CLASSES) * 2 for clip_id in ids}

    def side(shift: float) -> scores.EmbeddingSet:
        frames = {clip_id: (random.standard_normal((patches, size)) @ mix + shift).astype(np.float32) for clip_id in ids}
        noisy = {clip_id: (logits[clip_id] + random.standard_normal(CLASSES)).astype(np.float32) for clip_id in ids}
        return scores.EmbeddingSet.of(frames, noisy)

    return side(0.2), side(0.0)


def ours(metric: str, generated: scores.EmbeddingSet, reference: scores.EmbeddingSet) -> float:
    return scores.compute(metric, generated, reference, seed=0, replicates=0)["value"]


def rows(side: scores.EmbeddingSet) -> np.ndarray:
    return np.concatenate(side.clips())


def logits(side: scores.EmbeddingSet) -> np.ndarray:
    return np.stack([side.logits[clip_id] for clip_id in side.ids])


def stable_audio_metrics(tool: Path) -> Iterator[Compared]:
    """FD of stereo embeddings, KL, the windows that its logits are averaged over, and the CLAP score."""
    import torch

    with imported_from(tool, "openl3", "hear21passt.base"):
        distance, divergence = references.module("src.openl3_fd"), references.module("src.passt_kld")
    generated, reference = sides(1024, patches=20)
    statistics = [distance.calculate_embd_statistics(list(rows(side))) for side in (generated, reference)]
    yield Compared(
        "FD", float(distance.calculate_frechet_distance(*statistics[0], *statistics[1])), ours("fd", generated, reference)
    )

    probabilities = {
        name: {clip_id: torch.from_numpy(softmax(values)) for clip_id, values in side.logits.items()}
        for name, side in (("generated", generated), ("reference", reference))
    }

    def stored(model: Any, path: str, collect: str) -> Any:
        return probabilities[Path(path).parent.name][Path(path).stem]

    with tempfile.TemporaryDirectory() as place, mock.patch.object(divergence, "return_probabilities", stored), in_directory(place):
        folders = {name: str(Path(place) / name) for name in probabilities}
        for folder in folders.values():
            Path(folder).mkdir()
        theirs = divergence.passt_kld(list(generated.ids), folders["generated"], ref_path=folders["reference"])
    yield Compared("KL", float(theirs), ours("reverse_kl", generated, reference))

    random = np.random.default_rng(0)
    weights = (random.standard_normal((passt.WINDOW, 3)) / 100).astype(np.float32)
    for seconds in SECONDS:
        wave = (0.1 * random.standard_normal(round(seconds * passt.SAMPLE_RATE))).clip(-1, 1).astype(np.float32)
        with tempfile.TemporaryDirectory() as place, mock.patch.object(torch.Tensor, "cuda", lambda self: self):
            path = Path(place) / "sound.wav"
            write_wav(path, wave, passt.SAMPLE_RATE)
            theirs = divergence.return_probabilities(lambda audio: audio @ torch.from_numpy(weights[: audio.shape[1]]), str(path))
            heard = set_level(soundfile.read(path, dtype="float32")[0], "peak")
        windows = passt.FRONT_ENDS["stable-audio-metrics"](heard)
        mean = np.mean([window @ weights[: len(window)] for window in windows], axis=0)
        yield Compared(f"windows of {seconds} s", float(theirs[0]), float(softmax(mean)[0]), 1e-3)
    yield _clap_score(tool, random)


def _clap_score(tool: Path, random: np.random.Generator) -> Compared:
    """Of sounds up to ten seconds; a random projection stands in for each of CLAP's networks."""
    import torch

    with imported_from(tool, "laion_clap", "clap_module", "clap_module.factory"):
        cosines = references.module("src.clap_score")
    weights = (random.standard_normal((clap.WINDOW, 8)) / 100).astype(np.float32)
    seconds = [length for length in SECONDS if length <= 10]
    texts = {f"{number}": f"{number}" for number in range(len(seconds))}
    of_texts = {name: random.standard_normal((1, 8)).astype(np.float32) for name in texts}
    network = mock.MagicMock()
    network.get_text_embedding = lambda some, use_tensor: torch.from_numpy(np.concatenate([of_texts[text] for text in some]))
    network.get_audio_embedding_from_data = lambda x, use_tensor: x @ torch.from_numpy(weights[: x.shape[1]])
    checkpoint = "music_speech_audioset_epoch_15_esc_89.98.pt"
    of_sounds = {}
    with (
        tempfile.TemporaryDirectory() as place,
        mock.patch.object(cosines.laion_clap, "CLAP_Module", return_value=network),
        in_directory(place),
    ):
        Path("load/clap_score").mkdir(parents=True)
        Path("load/clap_score", checkpoint).touch()  # else it downloads
        for name, length in zip(texts, seconds, strict=True):
            wave = (0.1 * random.standard_normal(round(length * clap.SAMPLE_RATE))).clip(-1, 1).astype(np.float32)
            write_wav(Path(f"{name}.wav"), wave, clap.SAMPLE_RATE)
            heard = set_level(soundfile.read(f"{name}.wav", dtype="float32")[0], "peak")
            of_sounds[name] = heard[None] @ weights[: len(heard)]
        theirs = float(cosines.clap_score(texts, place, clap_model=checkpoint))
    sides = (scores.EmbeddingSet.of(of, {name: np.zeros(0) for name in of}) for of in (of_sounds, of_texts))
    return Compared("CLAP score", theirs, ours("clap_score", *sides), 1e-3)  # the tool rounds sounds to 16 bits


def av_benchmark(tool: Path) -> Iterator[Compared]:
    """FD, KL, inception score and CLAP score."""
    import torch
    from torch.nn.functional import cosine_similarity

    with imported_from(tool):
        fad, kl, isc = (references.module(f"av_bench.metrics.{name}") for name in ("fad", "kl", "isc"))
    for name, size in (("PaSST", 768), ("PANNs", 2048), ("VGGish", 128)):
        generated, reference = sides(size)
        if size < CLIPS * 20:  # the tool's matrix square root needs more patches than dimensions
            generated, reference = sides(size, patches=-(-2 * size // CLIPS))
        yield Compared(f"FD, {name}", fad.compute_fd(rows(generated), rows(reference)), ours("fd", generated, reference), 1e-5)
    generated, reference = sides(4)
    of_generated, of_reference = (torch.from_numpy(logits(side)).double() for side in (generated, reference))
    yield Compared("KL", kl.compute_kl([of_generated], of_reference)["kl_softmax"], ours("exact_kl", generated, reference))
    score = isc.compute_isc(of_generated, None, rng_seed=2020, samples_shuffle=True, splits=1)["inception_score_mean"]
    yield Compared("IS", score, ours("is", generated, reference))
    sounds, texts = sides(512)
    # As in the tool's evaluate.py, which needs a GPU and the weights of all its networks.
    cosines = cosine_similarity(*(torch.from_numpy(rows(side)) for side in (texts, sounds)), dim=-1)
    yield Compared("CLAP score", float(cosines.mean()), ours("clap_score", sounds, texts), 1e-5)


def kadtk(tool: Path | None) -> Iterator[Compared]:
    """The distance, with its own bandwidth."""
    import torch

    unused = ("hypy_utils", "hypy_utils.tqdm_utils", "kadtk.emb_loader", "kadtk.model_loader")
    with imported_from(tool, *unused):
        kad = references.module("kadtk.kad")
    for size, patches in ((2048, 1), (512, 5)):
        generated, reference = sides(size, patches)
        theirs = kad.calc_kernel_audio_distance(
            *(torch.from_numpy(rows(side)) for side in (reference, generated)), (None, None), "cpu"
        )
        yield Compared(
            f"KAD, {size} dimensions", float(theirs), ours("kad", generated, reference), 1e-3
        )  # the tool's sums have 32 bits


TOOLS: Mapping[str, Callable[[Any], Iterator[Compared]]] = {
    "av-benchmark": av_benchmark,
    "kadtk": kadtk,
    "stable-audio-metrics": stable_audio_metrics,
}


@contextmanager
def imported_from(tool: Path | None, *unused: str) -> Iterator[None]:
    """Modules are found in a checkout; those named, which the compared code imports but does not use, are empty."""
    empty = {name: mock.MagicMock() for name in unused if name not in sys.modules}
    sys.modules.update(empty)
    sys.path[:0] = [str(tool)] if tool else []
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]
        if tool:
            sys.path.remove(str(tool))


@contextmanager
def in_directory(place: str) -> Iterator[None]:
    """For code that writes into the working directory and prints."""
    with chdir(place), redirect_stdout(None):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=TOOLS)
    parser.add_argument("--tool", type=Path, help="a checkout of the tool")
    args = parser.parse_args()
    if args.tool is None and args.protocol != "kadtk":
        parser.error(f"{args.protocol} is no package: give a checkout with --tool")
    print(protocols.load(args.protocol).label)
    wrong = 0
    for one in TOOLS[args.protocol](args.tool and args.tool.resolve()):
        equal = one.difference <= one.tolerance
        wrong += not equal
        print(
            f"{one.name:<24} theirs {one.theirs:<12.7g} ours {one.ours:<12.7g} {one.difference:.1e} {'' if equal else 'DIFFERENT'}"
        )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
