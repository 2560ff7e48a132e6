"""Captions and words beside sounds, by a small CLAP of random weights: scores, tags, captions that do not fit, the page."""

import os
from pathlib import Path

import pytest

from soundmill import manifest, shards
from soundmill.audio import flac
from soundmill.audio.resample import resample
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders import clap
from stages import zero_shot
from tests import clap_weights
from tests.stages.handling import CATALOG, NAMING, call, call_catalog, call_splits, failure, settle, table, verdicts
from tests.stages.test_quality import Page

WORDS = ["dog", "rain", "wind", "bell", "engine"]
ZERO_SHOT = {"embedder": "clap", "words": WORDS, "prompt": "the sound of {word}", "tags": 2}
OFF = {"embedder": None, "words": [], "prompt": "the sound of {word}", "tags": 3}
HOSTILE = '<img src=x onerror=alert(1)> "one"'
CAPTIONS = {"-aaaaaaaaaa_30": ['first "é"'], "-aaaaaaaaaa_35": ["second"], "bbbbbbbbbbb_0": [HOSTILE, "other"]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("weights")
    clap_weights.write(directory / clap.NAME)
    return directory


@pytest.fixture
def captioned(small, weights, monkeypatch) -> Path:
    """Three recordings, one of them without a caption; and CLAP."""
    monkeypatch.setenv("SOUNDMILL_WEIGHTS", str(weights))
    rows = table("data/corpus/captions.parquet")
    rows = [row | {"caption": HOSTILE if row["caption"] == "one" else row["caption"]} for row in rows]
    os.unlink("data/corpus/captions.parquet")
    shards.write_rows(rows, Path("data/corpus/captions.parquet"), manifest.CAPTIONS)
    verdicts()
    return small


def set_params(project: Path, compared: dict, workers: int = 1, **catalog) -> None:
    settle(project, workers, **NAMING | {"catalog": CATALOG | catalog, "zero_shot": compared})


PORTS = ("--corpus", "data/corpus", "--clips", "data/clips", "--scores", "data/zero_shot.parquet")


def compare() -> dict:
    return call(zero_shot, *PORTS)


def expected(texts: list[str]) -> dict[str, dict[str, float]]:
    """Clip → text → the cosine of both, by the network itself."""
    network = embedders.load("clap", None)
    clips = [row for path in shards.shard_paths(Path("data/clips")) for row in shards.read_rows(path, manifest.CLIPS)]
    waves = {row["clip_id"]: resample(flac.decode_mono(row["audio"]["bytes"]), 16_000, network.sample_rate) for row in clips}
    return {
        clip_id: dict(zip(texts, map(float, network.similarity(texts, [wave] * len(texts))), strict=True))
        for clip_id, wave in waves.items()
    }


def test_captions_that_do_not_fit_are_left_out_by_name_and_clips_without_one_are_described_by_tags(captioned):
    set_params(captioned, ZERO_SHOT)
    assert compare() == {"captions": 4, "clips": 4, "quarantined": 0}
    compared = {row["clip_id"]: row for row in table("data/zero_shot.parquet")}
    captions = CAPTIONS | {"0123456789ab_0": []}
    truth = expected([text for texts in captions.values() for text in texts] + [f"the sound of {word}" for word in WORDS])
    for clip_id, texts in captions.items():
        row, scores = compared[clip_id], truth[clip_id]
        assert [pair["caption"] for pair in row["captions"]] == texts
        assert [pair["score"] for pair in row["captions"]] == pytest.approx([scores[text] for text in texts], abs=1e-4)
        best = sorted(WORDS, key=lambda word: -scores[f"the sound of {word}"])[:2]
        assert [pair["tag"] for pair in row["tags"]] == best
        assert [pair["score"] for pair in row["tags"]] == pytest.approx([scores[f"the sound of {word}"] for word in best], abs=1e-4)

    # Between the two captions of one clip, so that at least one falls and one stays.
    fits, unfit = sorted(compared["bbbbbbbbbbb_0"]["captions"], key=lambda pair: -pair["score"])
    least = (fits["score"] + unfit["score"]) / 2
    tags = compared["0123456789ab_0"]["tags"]
    above = (tags[0]["score"] + tags[1]["score"]) / 2
    settings = {"min_caption_score": least, "min_tag_score": above, "caption_templates": ["a sound of {tags}"]}
    set_params(captioned, ZERO_SHOT, **settings)
    call_splits()
    metrics = call_catalog()
    kept, left_out = {}, []
    for clip_id, row in compared.items():
        kept[clip_id] = [pair["caption"] for pair in row["captions"] if pair["score"] >= least]
        left_out += [(clip_id, pair["caption"], pair["score"]) for pair in row["captions"] if pair["score"] < least]
        if not kept[clip_id] and (suitable := [pair["tag"] for pair in row["tags"] if pair["score"] >= above]):
            kept[clip_id] = [f"a sound of {' and '.join(suitable)}"]
    assert kept["bbbbbbbbbbb_0"] == [fits["caption"]]
    assert kept["0123456789ab_0"] == [f"a sound of {tags[0]['tag']}"]
    assert {row["clip_id"]: row["captions"] for row in table("data/catalog.parquet")} == kept

    source = {row["clip_id"]: row["source"] for row in table("data/catalog.parquet")}
    assert {(row["path"], row["reason"], row["detail"]) for row in table("data/quarantine/catalog.parquet")} == {
        (source[clip_id], "min_caption_score", f"score {score:g} < min_caption_score {least:g}, clip {clip_id}: {caption}")
        for clip_id, caption, score in left_out
    }
    assert metrics["quarantined"] == metrics["captions_left_out"] == len(left_out) > 0
    assert metrics["captions_compared"] == 4
    assert metrics["captioned_by"]["tags"] >= 1
    assert metrics["clips_tagged"] == sum(row["tags"][0]["score"] >= above for row in compared.values())

    text = Path("data/catalog.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags["svg"] == 2
    assert page.tags["audio"] == page.tags["img"] == 4  # of all captions
    assert page.handlers == []
    assert "<img src=x" not in text
    assert page.text.count(", quarantined") == len(left_out)
    assert f"score {unfit['score']:g}, quarantined" in page.text
    assert f"{len(left_out)} caption" in page.text


def write_scores(**scores: float) -> None:
    """What a network might say: the score of every caption, and of the word `dog` beside every clip."""
    clips = []
    for clip_id, texts in (CAPTIONS | {"0123456789ab_0": []}).items():
        told = [{"caption": text, "score": scores.get(text.split()[0], 0.5)} for text in texts]
        clips.append(
            {"clip_id": clip_id, "shard": int(clip_id[0] != "-"), "captions": told, "tags": [{"tag": "dog", "score": 0.1}]}
        )
    shards.write_rows(clips, Path("data/zero_shot.parquet"), manifest.ZERO_SHOT)


def test_clips_that_are_not_used_count_nowhere(captioned):
    write_scores(second=0.1, other=0.2)
    set_params(captioned, ZERO_SHOT, min_caption_score=0.3)
    call_splits()
    assert call_catalog()["captions_left_out"] == 2
    verdicts(bbbbbbbbbbb0="clipping")
    metrics = call_catalog()
    assert (metrics["captions_compared"], metrics["captions_left_out"]) == (2, 1)
    (left_out,) = table("data/quarantine/catalog.parquet")
    assert left_out["detail"].startswith("score 0.1 < min_caption_score 0.3, ")
    set_params(captioned, ZERO_SHOT, min_caption_score=0.3, only=["dog"])  # the first clip
    metrics = call_catalog()
    assert (metrics["captions_compared"], metrics["captions_left_out"]) == (1, 0)
    assert (metrics["clips"], metrics["captioned_by"]) == (1, {"window": 1})
    assert "1 clip · 1 caption compared" in Page(Path("data/catalog.html").read_text(encoding="utf-8")).text


def test_without_an_embedder_the_catalog_is_that_without_scores(captioned):
    write_scores()
    set_params(captioned, ZERO_SHOT)
    call_splits()
    call_catalog()
    compared = Path("data/catalog.parquet").read_bytes()
    set_params(captioned, OFF)
    assert compare() == {"captions": 0, "clips": 0, "quarantined": 0}
    assert table("data/zero_shot.parquet") == []
    metrics = call_catalog()
    assert Path("data/catalog.parquet").read_bytes() == compared
    Path("data/zero_shot.parquet").unlink()  # as in the graph
    assert call_catalog() == metrics
    assert Path("data/catalog.parquet").read_bytes() == compared
    assert (metrics["captions_compared"], metrics["captions_left_out"], metrics["clips_tagged"]) == (0, 0, 0)
    assert "No caption was compared" in Page(Path("data/catalog.html").read_text(encoding="utf-8")).text


def test_missing_weights_are_named_with_the_command_that_fetches_them(captioned, capsys):
    set_params(captioned, ZERO_SHOT | {"embedder": "clap_music_speech"})
    said = failure(capsys, zero_shot, *PORTS)
    assert "zero_shot.embedder clap_music_speech: music_speech_audioset_epoch_15_esc_89.98.pt is not in" in said
    assert "`soundmill weights fetch clap_music_speech`" in said
    assert not Path("data/zero_shot.parquet").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embedder": "yamnet"}, "yamnet embeds no texts; there are clap, clap_music_speech, msclap"),
        ({"embedder": "clamp"}, "did you mean 'clap'?"),
        ({"words": ["rain", "rain"]}, "contains a word twice"),
        ({"words": ["rain", " "]}, "or an empty one"),
        ({"prompt": "a sound"}, "'a sound' must contain {word}"),
        ({"tags": 0}, "zero_shot.tags"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(captioned, capsys, change, said):
    set_params(captioned, ZERO_SHOT | change)
    assert said in failure(capsys, zero_shot, *PORTS)
