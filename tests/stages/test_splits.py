"""Splits and the catalog: rejected clips are left out, and duplicates do not cross splits; captions and words beside sounds, by a
small CLAP of random weights: scores, tags, captions that do not fit, the page."""

import os
from pathlib import Path

import pytest

from soundmill import manifest, shards
from soundmill.audio import flac
from soundmill.audio.resample import resample
from soundmill.corpora import splits
from soundmill.evaluation import embedders
from soundmill.evaluation.embedders import clap
from soundmill.models.catalog import read_left_out
from stages import zero_shot
from tests import clap_weights
from tests.stages import handling
from tests.stages.handling import NAMING, SPLITS, call_catalog, call_rename, duplicate, refusal, settle, table, verdicts
from tests.stages.test_quality import Page


def test_rejected_clips_are_left_out_everywhere_and_their_captions_are_not_missing(small):
    verdicts(aaaaaaaaaa30="clipping")
    metrics = call_rename()
    assert metrics["rejected"] == 1
    assert (metrics["matched"], metrics["missing"]) == (4, 1)
    assert metrics["clips"] == 3
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_35", "bbbbbbbbbbb_0", "0123456789ab_0"]
    assert not (small / "data/audiocaps/audio/-aaaaaaaaaa_30.wav").exists()
    assert [row["captions"] for row in handling.json_rows("train")] == ["second"]


def test_duplicates_across_given_splits_fail_by_name_or_are_dropped_outside_test(small, capsys):
    pairs = [duplicate("-aaaaaaaaaa_35", "bbbbbbbbbbb_0"), duplicate("-aaaaaaaaaa_30", "-aaaaaaaaaa_35")]
    said = refusal(capsys, *pairs)
    assert "1 clips are the same sound or video as one in another of the corpus's own splits (given)" in said
    assert "-aaaaaaaaaa.wav (-aaaaaaaaaa_35, train) and bbbbbbbbbbb.wav (bbbbbbbbbbb_0, test)" in said
    assert "`splits.duplicates: drop`" in said
    settle(small, **NAMING | {"splits": SPLITS | {"duplicates": "drop"}})
    metrics = call_rename(*pairs)
    assert (metrics["duplicate_pairs"], metrics["duplicates_dropped"]) == (1, 1)
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_30", "bbbbbbbbbbb_0", "0123456789ab_0"]
    assert not (small / "data/audiocaps/audio/-aaaaaaaaaa_35.wav").exists()
    (rejected,) = table("data/quarantine/splits.parquet")
    assert rejected["path"] == "-aaaaaaaaaa.wav"
    assert rejected["reason"] == "duplicate"
    assert "the same sound or video as bbbbbbbbbbb_0 (test)" in rejected["detail"]


def refuse(*names: str) -> None:
    rows = [{"recording_id": name, "path": f"{name}.wav", "detail": "licence X"} for name in names]
    shards.write_rows(rows, Path("data/refused.parquet"), manifest.REFUSED)


def test_copies_of_a_refused_recording_are_left_out_by_name_and_fail_no_split(small):
    refuse("bbbbbbbbbbb")
    metrics = call_rename(duplicate("-aaaaaaaaaa_35", "bbbbbbbbbbb_0"))
    assert (metrics["duplicate_pairs"], metrics["duplicates_dropped"], metrics["copies_of_refused"]) == (0, 1, 1)
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_30", "0123456789ab_0"]
    assert [row["recording_id"] for row in table("data/splits.parquet")] == ["-aaaaaaaaaa", "0123456789ab"]
    (rejected,) = table("data/quarantine/splits.parquet")
    assert (rejected["path"], rejected["reason"]) == ("-aaaaaaaaaa.wav", "terms")
    assert "-aaaaaaaaaa_35 is the same sound or video as bbbbbbbbbbb_0 of bbbbbbbbbbb.wav: licence X" in rejected["detail"]


def test_copies_that_quality_rejects_are_left_out_of_other_variants_too(small):
    refuse("bbbbbbbbbbb")
    verdicts(aaaaaaaaaa30="clipping", aaaaaaaaaa35="clipping")
    assert call_rename(duplicate("-aaaaaaaaaa_35", "bbbbbbbbbbb_0"))["clips"] == 1
    assert [row["recording_id"] for row in table("data/splits.parquet")] == ["0123456789ab"]
    assert [row["path"] for row in table("data/quarantine/splits.parquet")] == ["-aaaaaaaaaa.wav"]


def test_of_a_loop_whose_times_differ_a_copy_leaves_nothing(small):
    refuse("bbbbbbbbbbb")
    (small / "data/corpus/audio").mkdir(exist_ok=True)
    shards.write_rows([], small / "data/corpus/audio/shard-00000.parquet", manifest.LOOPS)  # as of loops
    call_rename(duplicate("-aaaaaaaaaa_35", "bbbbbbbbbbb_0"))
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["0123456789ab_0"]


def test_a_copy_of_a_copy_is_refused_with_its_recording_and_its_captions(small, capsys):
    pairs = [duplicate("-aaaaaaaaaa_35", "0123456789ab_0"), duplicate("0123456789ab_0", "bbbbbbbbbbb_0")]
    refuse("bbbbbbbbbbb")
    verdicts(aaaaaaaaaa30="clipping")
    message = refusal(capsys, *pairs)
    assert "corpus.terms: no clip is left" in message
    assert "bbbbbbbbbbb.wav: licence X" in message
    refuse("0123456789ab")
    metrics = call_rename(pairs[0])
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["bbbbbbbbbbb_0"]
    assert (metrics["clips"], metrics["copies_of_refused"]) == (1, 0)


@pytest.mark.parametrize("copied", [["-aaaaaaaaaa_35"], ["-aaaaaaaaaa_30", "-aaaaaaaaaa_35"]])
def test_rejected_copies_join_what_they_are_copies_of(small, copied):
    """Sounds of which no pair was found, but of all with a clip that a rule refuses."""
    verdicts(**{"0123456789ab0": "max_dc_offset"})
    settle(small, **NAMING | {"splits": SPLITS | {"duplicates": "drop"}})
    metrics = call_rename(*(duplicate(name, "0123456789ab_0") for name in (*copied, "bbbbbbbbbbb_0")))
    assert (metrics["duplicate_pairs"], metrics["duplicates_dropped"]) == (len(copied), len(copied))
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == [*["-aaaaaaaaaa_30"][len(copied) - 1 :], "bbbbbbbbbbb_0"]


def test_copies_that_hang_together_with_one_in_test_are_all_dropped():
    """Of forty copies of one sound not every two are a pair."""
    split = ["train"] * 4 + ["valid", "test", "train", "train"]
    assert splits.across_splits(split, [(0, 1), (1, 2), (2, 5), (3, 4), (6, 7)]) == {0: 5, 1: 5, 2: 5, 3: 4}


def test_a_video_in_two_given_splits_fails_by_name_or_is_dropped_outside_test(small, capsys):
    """Also where its windows do not meet, so that no pair of clips is found."""
    recordings = table("data/corpus/recordings.parquet")
    for row, name in zip(recordings, ("-aaaaaaaaaa_30", "-aaaaaaaaaa_90", "0123456789ab"), strict=True):
        row["recording_id"] = name
        row["group"] = None if name == "0123456789ab" else "-aaaaaaaaaa"
    shards.write_rows(recordings, small / "data/corpus/recordings.parquet", manifest.RECORDINGS)
    clips = [
        [handling.clip("-aaaaaaaaaa_30", "-aaaaaaaaaa_30", 0.0), handling.clip("-aaaaaaaaaa_35", "-aaaaaaaaaa_30", 5.0)],
        [handling.clip("-aaaaaaaaaa_90", "-aaaaaaaaaa_90", 0.0), handling.clip("0123456789ab_0", "0123456789ab", 0.0)],
    ]
    for number, rows in enumerate(clips):
        shards.write_rows(rows, small / "data/clips" / shards.shard_name(number), manifest.CLIPS)
    said = refusal(capsys)
    assert "2 clips are the same sound or video as one in another of the corpus's own splits" in said
    assert "(-aaaaaaaaaa_30, train)" in said
    assert "(-aaaaaaaaaa_90, test)" in said
    settle(small, **NAMING | {"splits": SPLITS | {"duplicates": "drop"}})
    assert call_rename()["duplicates_dropped"] == 2
    assert [row["clip_id"] for row in table("data/catalog.parquet")] == ["-aaaaaaaaaa_90", "0123456789ab_0"]
    # A copy of what has to go by its video goes too, and the clip that is named is one that stays.
    assert call_rename(duplicate("-aaaaaaaaaa_30", "0123456789ab_0"))["duplicates_dropped"] == 3
    assert all("as -aaaaaaaaaa_90 (test)" in row["detail"] for row in table("data/quarantine/splits.parquet"))


def test_copies_of_one_sound_leave_no_test_and_are_told_so(small, capsys):
    """Before anything is trained; where the corpus brings splits, a class that one of them lacks is named."""
    recordings = table("data/corpus/recordings.parquet")
    handling.call_splits()
    assert "splits: warning: 2 of 2 labels have no clip in test: dog, rain; add recordings" in capsys.readouterr().out
    rows = [{**row, "split": None, "fold": None} for row in recordings]
    shards.write_rows(rows, small / "data/corpus/recordings.parquet", manifest.RECORDINGS)
    handling.call_splits(duplicate("-aaaaaaaaaa_35", "bbbbbbbbbbb_0"), duplicate("bbbbbbbbbbb_0", "0123456789ab_0"))
    said = capsys.readouterr().out
    assert "splits: warning: no clip is in test" in said
    assert "all recordings have one source or are copies of one sound" in said


def test_only_clips_with_a_wanted_label_are_used(small, capsys):
    recordings = table("data/corpus/recordings.parquet")
    for row, labels in zip(recordings, (["kick"], ["snare", "kick"], ["hat"]), strict=True):
        row["labels"] = labels
    shards.write_rows(recordings, small / "data/corpus/recordings.parquet", manifest.RECORDINGS)
    everything = call_rename()
    assert (everything["clips"], everything["left_out"], read_left_out(small / "data/catalog.parquet")) == (4, 0, [])
    ids = {row["clip_id"] for row in table("data/catalog.parquet")}
    settle(small, **NAMING | {"catalog": NAMING["catalog"] | {"only": ["snare", "hat"]}})
    some = call_rename()
    assert some["clips"] + some["left_out"] == 4
    assert {label for row in table("data/catalog.parquet") for label in row["labels"]} == {"kick", "snare", "hat"}
    settle(small, **NAMING | {"catalog": NAMING["catalog"] | {"only": ["hat"]}})
    call_rename()
    assert {tuple(row["labels"]) for row in table("data/catalog.parquet")} == {("hat",)}
    left_out = read_left_out(small / "data/catalog.parquet")
    assert set(left_out) == ids - {row["clip_id"] for row in table("data/catalog.parquet")} != set()
    settle(small, **NAMING | {"catalog": NAMING["catalog"] | {"only": ["snares"]}})
    assert "no clip has the label 'snares'; did you mean 'snare'? (labels: dog, hat, kick, rain, snare)" in refusal(capsys)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"catalog": NAMING["catalog"] | {"caption_templates": ["{label}", "a {sound}"]}}, "'a {sound}' must contain {label}, "),
        ({"splits": SPLITS | {"valid_fraction": 0.6, "test_fraction": 0.5}}, "must be below 1"),
        ({"splits": SPLITS | {"valid_fraction": 1.5}}, "splits.valid_fraction"),
    ],
)
def test_parameters_of_splits_and_catalog(small, capsys, changes, said):
    settle(small, **NAMING | changes)
    assert said in refusal(capsys)


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
    settle(project, workers, **NAMING | {"catalog": handling.CATALOG | catalog, "zero_shot": compared})


PORTS = ("--corpus", "data/corpus", "--clips", "data/clips", "--scores", "data/zero_shot.parquet")


def compare() -> dict:
    return handling.call(zero_shot, *PORTS)


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
    handling.call_splits()
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
    rows = []
    for clip_id, texts in (CAPTIONS | {"0123456789ab_0": []}).items():
        told = [{"caption": text, "score": scores.get(text.split()[0], 0.5)} for text in texts]
        rows.append({"clip_id": clip_id, "shard": int(clip_id[0] != "-"), "captions": told, "tags": [{"tag": "dog", "score": 0.1}]})
    shards.write_rows(rows, Path("data/zero_shot.parquet"), manifest.ZERO_SHOT)


def test_clips_that_are_not_used_count_nowhere(captioned):
    write_scores(second=0.1, other=0.2)
    set_params(captioned, ZERO_SHOT, min_caption_score=0.3)
    handling.call_splits()
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
    handling.call_splits()
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
    said = handling.failure(capsys, zero_shot, *PORTS)
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
    assert said in handling.failure(capsys, zero_shot, *PORTS)
