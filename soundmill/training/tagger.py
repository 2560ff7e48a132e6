"""The tagger: a small CNN on log-mels, trained on the real training split, whose embeddings of ~1 s patches the scores use."""

import contextlib
import itertools
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from scipy.cluster import vq
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, cross_entropy, pad, relu

from soundmill import hashing
from soundmill.audio.mel import MelSpec, log_mel
from soundmill.errors import UserError
from soundmill.params import Decibels, Probability, Seconds, Seed, StageParams, read_yaml
from soundmill.training import checkpoint
from soundmill.training.curve import speed
from soundmill.training.device import of_equal_length, torch_threads

POOLED = 8  # frames of the spectrogram per frame of the network's features
CLIPS_AT_ONCE = 16  # batch size outside training
ROUNDS = 50  # of k-means
CURVE = ("step", "loss/train", "loss/valid", "accuracy/valid")  # columns
FUNCTION_WORDS = frozenset(read_yaml(Path(__file__).with_suffix(".yaml"))["function_words"])  # that name no sound


@dataclass(frozen=True)
class Targets:
    """Names of the classes and, for every clip that has a target, a distribution over them (rows sum to 1).

    The classes are labels; words of captions if a corpus has no labels; clusters if it has neither.
    """

    kind: Literal["labels", "caption words", "clusters"]
    classes: list[str]
    of_clip: Mapping[str, np.ndarray]  # float32 [K]


def from_names(
    names: Mapping[str, Sequence[str]], training: Sequence[str], kind: Literal["labels", "caption words"]
) -> Targets | None:
    """Targets that split each clip's weight evenly among its names; None if the training clips have fewer than two classes."""
    classes = sorted({name for clip_id in training for name in names[clip_id]})
    if len(classes) < 2:
        return None
    index_of = {name: index for index, name in enumerate(classes)}
    of_clip = {}
    for clip_id, clip_names in names.items():
        indices = sorted({index_of[name] for name in clip_names if name in index_of})
        if indices:
            of_clip[clip_id] = np.zeros(len(classes), np.float32)
            of_clip[clip_id][indices] = 1 / len(indices)
    return Targets(kind, classes, of_clip)


def caption_words(captions: Mapping[str, Sequence[str]], training: Sequence[str], count: int) -> dict[str, list[str]]:
    """The content words of each clip's captions: of the `count` most frequent in training clips, without near-universal ones."""
    words = {
        clip_id: sorted({word for text in texts for word in re.findall(r"[^\W\d_]{3,}", text.lower())} - FUNCTION_WORDS)
        for clip_id, texts in captions.items()
    }
    frequency = Counter(word for clip_id in training for word in words[clip_id])
    # A word of a single clip cannot be learnt; one of nearly every clip distinguishes nothing.
    ranked = [(-number, word) for word, number in frequency.items() if 2 <= number <= 0.9 * len(training)]
    kept = {word for _, word in sorted(ranked)[:count]}
    return {clip_id: [word for word in own if word in kept] for clip_id, own in words.items()}


def cluster(statistics: Mapping[str, np.ndarray], training: Sequence[str], count: int) -> Targets:
    """k-means on standardised statistics [F] of clips; initialised by farthest points, so nothing is random."""
    ids = sorted(training)
    points = np.stack([statistics[clip_id] for clip_id in ids]).astype(np.float64)
    mean, deviation = points.mean(0), points.std(0)
    deviation[deviation <= 1e-6] = 1
    points = (points - mean) / deviation
    centres = points[[np.argmin((points**2).sum(1))]]
    while len(centres) < count:
        distance = ((points[:, None] - centres[None]) ** 2).sum(2).min(1)
        if distance.max() <= 1e-12:  # fewer distinct sounds than clusters
            break
        centres = np.vstack([centres, points[distance.argmax()]])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty")  # its centre stays
        centres, _ = vq.kmeans2(points, centres, ROUNDS, minit="matrix")
    of_all = np.stack([(values - mean) / deviation for values in statistics.values()])
    one_hot = np.eye(len(centres), dtype=np.float32)[vq.vq(of_all, centres)[0]]
    of_clip = dict(zip(statistics, one_hot, strict=True))
    return Targets("clusters", [f"cluster {index}" for index in range(len(centres))], of_clip)


class AugmentationParams(StageParams):
    """Augmentations that make the tagger invariant to level, position and small gaps; drawn for every clip and step."""

    gain_db: Decibels = Field(ge=0, le=60, description="largest gain, up or down")
    roll: bool = Field(description="shift the clip circularly by a random time")
    masked_bands: Probability = Field(description="largest fraction of bands set to the mean")
    masked_frames: Probability = Field(description="largest fraction of frames set to the mean")


class TaggerParams(StageParams):
    mel: str = Field(min_length=1, description="name of the mel spec")
    width: int = Field(ge=4, le=1024, description="channels of the first block")
    embedding_size: int = Field(ge=2, le=8192)
    patch_seconds: Seconds = Field(gt=0, le=60)
    crop_seconds: Seconds = Field(gt=0, le=600, description="length of the crop of each clip in one step")
    dropout: float = Field(ge=0, lt=1)
    epochs: int = Field(ge=1, le=1_000_000)
    max_steps: int = Field(ge=1, description="ends training before `epochs` on a large corpus")
    max_clips: int = Field(ge=1, description="training clips held in memory; of more, a fixed subset chosen by hash")
    batch_size: int = Field(ge=1, le=65_536)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    augmentation: AugmentationParams
    max_words: int = Field(ge=2, description="number of classes if clips have captions and no labels")
    clusters: int = Field(ge=2, description="number of classes if clips have neither")
    seed: Seed
    threads: int = Field(ge=1)


class Tagger(nn.Module):
    """Log-mels [B, n_mels, frames] → embeddings [B, P, D] of overlapping patches, and clip-level logits [B, K].

    Embeddings are taken before the last ReLU, as is usual for VGGish. Logits use the mean and the maximum over patches, so that an
    event of one second counts in a long clip.
    """

    def __init__(self, spec: MelSpec, num_classes: int, width: int, embedding_size: int, patch_seconds: float, dropout: float):
        super().__init__()
        widths = [1, width, 2 * width, 4 * width, 4 * width]
        blocks = []
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            blocks += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            if index < 3:
                blocks.append(nn.AvgPool2d(2, ceil_mode=True))
        self.trunk = nn.Sequential(*blocks)
        self.patch = max(2, round(patch_seconds * spec.sample_rate / spec.hop_length / POOLED))
        self.embedding = nn.Linear(2 * widths[-1], embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(embedding_size, num_classes)
        self.silence = math.log(spec.floor)
        self.register_buffer("band_mean", torch.zeros(spec.n_mels))
        self.register_buffer("band_scale", torch.ones(spec.n_mels))

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        missing = self.patch * POOLED - log_mel.shape[-1]
        if missing > 0:
            log_mel = pad(log_mel, (0, missing), value=self.silence)
        x = (log_mel - self.band_mean[:, None]) * self.band_scale[:, None]
        features = self.trunk(x[:, None].contiguous(memory_format=torch.channels_last))
        features = torch.cat([features.mean(2), features.amax(2)], 1)  # over bands: [B, C, frames / 8]
        patches = avg_pool1d(features, self.patch, max(1, self.patch // 2)).transpose(1, 2)
        embedding = self.embedding(patches)
        active = relu(embedding)
        return embedding, self.classifier(self.dropout(active.mean(1) + active.amax(1)))


class TaggerConfig(checkpoint.Config):
    """A tagger's `config.json`."""

    params: TaggerParams
    mel_spec: MelSpec
    targets: str  # kind of classes: labels, caption words, clusters
    labels: list[str]
    digest: str  # of the weights


@dataclass
class TaggerModel:
    """A trained tagger with its parameters and classes."""

    net: Tagger
    spec: MelSpec
    params: TaggerParams
    targets: str  # kind: labels, caption words, clusters
    labels: list[str]
    digest: str

    def embed(self, waves: Sequence[np.ndarray], threads: int | None = None) -> tuple[list[np.ndarray], np.ndarray]:
        """Embeddings [P_i, D] of every wave [T_i] (float32, at `spec.sample_rate`), and logits [N, K], both float32.

        `threads` is the number of torch's threads (None: unchanged). A clip shorter than a patch is padded with silence to one
        patch.
        """
        embeddings: list[np.ndarray] = [np.empty(0)] * len(waves)
        logits = np.zeros((len(waves), len(self.labels)), np.float32)
        self.net.eval()
        with torch_threads(threads), torch.inference_mode():
            for some in of_equal_length([len(wave) for wave in waves], CLIPS_AT_ONCE):
                mels = log_mel(np.stack([waves[index] for index in some]), self.spec)
                patches, scores = self.net(torch.from_numpy(mels))
                for index, patch, score in zip(some, patches.numpy(), scores.numpy(), strict=True):
                    embeddings[index], logits[index] = patch.copy(), score
        return embeddings, logits


def num_steps(params: TaggerParams, num_clips: int) -> int:
    return min(params.epochs * math.ceil(num_clips / params.batch_size), params.max_steps)


def train_tagger(
    params: TaggerParams,
    spec: MelSpec,
    log_mels: Mapping[str, np.ndarray],
    targets: Targets,
    training: Sequence[str],
    valid: Sequence[str],
    on_epoch: Callable[[dict[str, float], int], None],
    tick: Callable[[int], None],
) -> tuple[Tagger, list[dict[str, float]]]:
    """Fit a tagger to the `training` clips, which all have targets; returns it and its learning curve.

    `log_mels` are float16 [n_mels, frames] by clip id. Bit-identical for the same inputs, parameters and number of threads.
    """
    with torch_threads(params.threads), torch.random.fork_rng(devices=[]), _deterministic():
        torch.manual_seed(params.seed)
        rng = np.random.default_rng(params.seed)
        net = Tagger(spec, len(targets.classes), params.width, params.embedding_size, params.patch_seconds, params.dropout)
        net.to(memory_format=torch.channels_last)
        mean, deviation = _band_statistics(log_mels[clip_id] for clip_id in training)
        net.band_mean.copy_(torch.from_numpy(mean))
        net.band_scale.copy_(1 / torch.from_numpy(deviation).clamp_min(0.1))

        per_epoch = math.ceil(len(training) / params.batch_size)
        steps = num_steps(params, len(training))
        optimiser = torch.optim.AdamW(net.parameters(), params.learning_rate, weight_decay=params.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, params.learning_rate, total_steps=steps)
        frames = max(1, round(params.crop_seconds * spec.sample_rate / spec.hop_length))
        curve: list[dict[str, float]] = []
        losses: list[float] = []
        order: list[str] = []
        since, waited = time.monotonic(), 0.0
        for step in range(1, steps + 1):
            asked = time.monotonic()
            while len(order) < params.batch_size:
                order += [training[index] for index in rng.permutation(len(training))]
            batch, order = order[: params.batch_size], order[params.batch_size :]
            x, y = _batch(batch, log_mels, targets, frames, net, spec, params.augmentation, rng)
            waited += time.monotonic() - asked
            net.train()
            loss = cross_entropy(net(x)[1], y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
            tick(1)
            if step % per_epoch == 0 or step == steps:
                point = {"step": step, "loss/train": sum(losses) / len(losses)}
                scores = evaluate(net, log_mels, targets, valid)
                point |= {f"{key}/valid": value for key, value in scores.items() if key in ("loss", "accuracy")}
                curve.append(point)
                now, items = time.monotonic(), len(losses) * params.batch_size
                speeds = speed(now - since, len(losses), items, params.crop_seconds, waited)
                on_epoch({key: value for key, value in point.items() if key != "step"} | speeds, step)
                losses, since, waited = [], now, 0.0
    return net.eval(), curve


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _band_statistics(log_mels: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every band over all frames, float32 [n_mels] each."""
    count, total, squares = 0, 0.0, 0.0
    for values in log_mels:
        wide = values.astype(np.float64)
        count, total, squares = count + wide.shape[1], total + wide.sum(1), squares + (wide**2).sum(1)
    mean = total / count
    return mean.astype(np.float32), np.sqrt(np.maximum(squares / count - mean**2, 0)).astype(np.float32)


def _batch(
    clip_ids: Sequence[str],
    log_mels: Mapping[str, np.ndarray],
    targets: Targets,
    frames: int,
    net: Tagger,
    spec: MelSpec,
    augmentation: AugmentationParams,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Augmented crops [B, n_mels, frames] and their targets [B, K]."""
    x = np.full((len(clip_ids), spec.n_mels, frames), net.silence, np.float32)
    decibel = math.log(10) / 20 * spec.power  # 1 dB in log-mel units
    for item, clip_id in zip(x, clip_ids, strict=True):
        values = log_mels[clip_id]
        if augmentation.roll:
            values = np.roll(values, int(rng.integers(values.shape[1])), 1)
        start = int(rng.integers(max(1, values.shape[1] - frames + 1)))
        values = values[:, start : start + frames].astype(np.float32)
        gain = rng.uniform(-augmentation.gain_db, augmentation.gain_db) * decibel
        item[:, : values.shape[1]] = np.maximum(values + np.float32(gain), net.silence)
    mean = net.band_mean.numpy()
    for item in x:
        for axis, largest in ((0, augmentation.masked_bands), (1, augmentation.masked_frames)):
            size = int(rng.uniform(0, largest) * item.shape[axis])
            start = int(rng.integers(item.shape[axis] - size + 1))
            if axis == 0:
                item[start : start + size] = mean[start : start + size, None]
            else:
                item[:, start : start + size] = mean[:, None]
    return torch.from_numpy(x), torch.from_numpy(np.stack([targets.of_clip[clip_id] for clip_id in clip_ids]))


def evaluate(net: Tagger, log_mels: Mapping[str, np.ndarray], targets: Targets, clip_ids: Sequence[str]) -> dict[str, float]:
    """Cross-entropy, accuracy (the top class is one of the clip's) and mean average precision; empty without clips."""
    if not clip_ids:
        return {}
    net.eval()
    logits, relevant = [], []
    with torch.inference_mode():
        for numbers in of_equal_length([log_mels[clip_id].shape[1] for clip_id in clip_ids], CLIPS_AT_ONCE):
            some = [clip_ids[number] for number in numbers]
            batch = torch.from_numpy(np.stack([log_mels[clip_id] for clip_id in some]).astype(np.float32))
            logits.append(net(batch)[1])
            relevant.append(torch.from_numpy(np.stack([targets.of_clip[clip_id] for clip_id in some])))
        scores, target = torch.cat(logits), torch.cat(relevant)
        loss = float(cross_entropy(scores, target))
        correct = target.gather(1, scores.argmax(1, keepdim=True)) > 0
    precision = [average_precision(s, t) for s, t in zip(scores.T.numpy(), (target > 0).T.numpy(), strict=True) if t.any()]
    return {"loss": loss, "accuracy": float(correct.double().mean()), "mean_average_precision": float(np.mean(precision))}


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean precision at each relevant item, with items sorted by descending score (ties keep their order)."""
    hits = relevant[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def save_tagger(net: Tagger, params: TaggerParams, spec: MelSpec, targets: Targets, directory: Path) -> str:
    """Write model.safetensors and config.json; returns the digest of the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint.write_weights(net.state_dict(), directory / checkpoint.WEIGHTS)
    digest = hashing.file_digest(directory / checkpoint.WEIGHTS)
    config = TaggerConfig(params=params, mel_spec=spec, targets=targets.kind, labels=targets.classes, digest=digest)
    checkpoint.write_config(config.model_dump(mode="json"), directory, sort_keys=False)
    return digest


def load_tagger(directory: Path) -> TaggerModel:
    config, weights = checkpoint.load_config(directory, TaggerConfig, "tagger"), directory / checkpoint.WEIGHTS
    params, spec, labels = config.params, config.mel_spec, config.labels
    made = partial(Tagger, spec, len(labels), params.width, params.embedding_size, params.patch_seconds, params.dropout)
    net = checkpoint.load_weights(made, weights)
    if hashing.file_digest(weights) != config.digest:
        raise UserError(f"{weights}: the digest differs from that in {checkpoint.CONFIG}; train again: `dvc repro -f tagger`")
    return TaggerModel(net.to(memory_format=torch.channels_last), spec, params, config.targets, labels, config.digest)
