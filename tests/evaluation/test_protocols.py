"""Protocols: all can be read, mistakes in one are named by key, and work with other embedders."""

from pathlib import Path

import pytest

from soundmill import params
from soundmill.errors import UserError
from soundmill.evaluation import embedders, protocols
from soundmill.metrics import scores


@pytest.mark.parametrize("name", protocols.NAMES)
def test_every_protocol_can_be_read(name):
    result = protocols.load(name)
    assert result.name == name
    assert result.label.endswith(f"-{result.version}")
    assert result.parity
    assert len({score.key for score in result.scores}) == len(result.scores)
    fad, limit = ({score.embedder for score in result.scores if score.metric == metric} for metric in ("fad", "fad_inf"))
    assert fad == limit  # FAD stands beside its limit


def test_the_command_and_the_stage_score_by_the_same_metrics():
    project = protocols.load("project")
    assert project.label == "soundmill-3"
    assert protocols.PROJECT == project.name
    assert project.with_embedders(list(project.embedders)) == project  # as the stage chooses them


def changed(tmp_path: Path, **changes: object) -> str:
    document = params.read_yaml(protocols.DIRECTORY / "google-fad.yaml") | {"name": "mine"} | changes
    path = tmp_path / "mine.yaml"
    params.write_yaml({key: value for key, value in document.items() if value != "gone"}, path)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"replicatse": 5}, "replicatse: unknown key; did you mean 'replicates'"),
        ({"seed": "gone"}, "seed: missing"),
        ({"version": 1.5}, "version: "),
        ({"label": "google-fad"}, "label: 'google-fad' does not end with the version, -1"),
        ({"scores": [{"metric": "fadd", "embedder": "vggish"}]}, "scores.0.metric: .*unknown metric 'fadd'; did you mean 'fad'"),
        ({"scores": [{"metric": "fad", "embedder": "vgish"}]}, "scores.0.embedder: .*unknown embedder 'vgish'"),
        ({"scores": [{"metric": "kl", "embedder": "vggish"}]}, "scores.0: .*kl needs a classifier, not vggish"),
        ({"scores": [{"metric": "fad_per_clip", "embedder": "clap"}]}, "fad_per_clip needs several embeddings per clip, not clap"),
        ({"scores": [{"metric": "fad", "embedder": "audiobox"}]}, "fad needs embeddings, not audiobox"),
        ({"scores": [{"metric": "production_quality", "embedder": "vggish"}]}, "production_quality needs a predictor of ratings"),
        ({"scores": [{"metric": "clap_score", "embedder": "vggish"}]}, "clap_score needs embeddings of texts"),
        ({"scores": [{"metric": "fad", "embedder": "vggish"}] * 2}, "scores: fad_vggish is listed twice"),
        ({"embedders": {"vggish": {}, "yamnet": {}}}, "embedders: yamnet must be listed here and in a score"),
        ({"embedders": {"vggsh": {}}}, "embedders.*: .*unknown embedder 'vggsh'; did you mean 'vggish'"),
        ({"resampler": "sox"}, "resampler: .*unknown resampler 'sox'"),
        ({"parity": []}, "parity: "),
        ({"name": "other"}, "name: 'other' differs from the file's name, 'mine'"),
    ],
)
def test_a_mistake_is_named_by_file_and_key(tmp_path, changes, named):
    with pytest.raises(UserError, match=rf"mine\.yaml: .*{named}"):
        protocols.load(changed(tmp_path, **changes))


def test_an_own_file_is_a_protocol_too_and_what_is_none_is_named(tmp_path):
    result = protocols.load(changed(tmp_path, seed=7))
    assert (result.name, result.seed) == ("mine", 7)
    with pytest.raises(UserError, match="unknown protocol 'fadtk-vgish'; did you mean 'fadtk-vggish'"):
        protocols.load("fadtk-vgish")
    with pytest.raises(UserError, match=r"absent\.yaml: no such file; give a protocol's"):
        protocols.load(str(tmp_path / "absent.yaml"))


def test_other_embedders_score_by_the_metrics_they_support():
    result = protocols.load("project").with_embedders(["vggish", "clap", "panns_cnn14_16k"])
    keys = [score.key for score in result.scores]
    assert {"fad_vggish", "kl_panns_cnn14_16k", "is_panns_cnn14_16k", "clap_score", "coverage_clap"} < set(keys)
    assert not {"kl_vggish", "is_clap", "clap_score_vggish"} & set(keys)
    assert list(result.embedders) == ["vggish", "clap", "panns_cnn14_16k"]
    with pytest.raises(UserError, match="unknown embedder 'vgish'; did you mean 'vggish'"):
        result.with_embedders(["vgish"])


def test_ratings_are_all_that_a_predictor_of_ratings_gives():
    result = protocols.load("project").with_embedders(["audiobox", "vggish"])
    keys = [score.key for score in result.scores]
    assert keys[:4] == [f"{name}_audiobox" for name in scores.RATINGS]
    assert not any(key.endswith("_audiobox") for key in keys[4:])
    assert embedders.find("audiobox").ratings == tuple(scores.RATINGS)


def test_all_metrics_can_be_asked_for():
    requested = {score.metric for score in protocols.load("project").with_embedders([*embedders.NAMES]).scores}
    assert requested == set(scores.METRICS) - {"fd", "reverse_kl", "exact_kl", "kad"}  # variants, for other tools' protocols
