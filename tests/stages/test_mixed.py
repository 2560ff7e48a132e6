"""Clips and their mixes as one variant, and families trained on it."""

import shutil
from pathlib import Path

import pytest

from soundmill import manifest, shards, stage
from soundmill.params import write_yaml
from stages import mixed, mixup, spectrogram
from tests.stages import of_waves
from tests.stages.families import ROWS


def run(home: Path, name: str, function, *paths: str, more: tuple[str, ...] = ()) -> None:
    ports = [f"--{one.replace('=', f'={home}/')}" for one in paths]
    stage.main(function, name, [*ports, *more, "--metrics", f"{home}/{name}.json", "--params", f"{home}/params.yaml"])


def mix(home: Path) -> None:
    run(home, "mixup", mixup.run, "clips=clips", "catalog=catalog.parquet", "mixes=mixes", "picture=mixup.png", "report=mixes.html")
    paths = ("clips=clips", "catalog=catalog.parquet", "mixes=mixes", "mixed=mixed", "described=mixed.parquet")
    run(home, "mixed", mixed.run, *paths, more=("--variant", "mixed"))


@pytest.mark.parametrize("name", ["ddpm_mel", "ddpm_mel_dit_caption", "waveform_unet", "diffwave_label"])
def test_a_family_is_trained_on_clips_and_mixes_and_told_both_labels(tmp_path, trainings, name, capfd):
    row, home = ROWS[name], tmp_path / "data"
    shutil.copytree(trainings.data(name), home)
    document = row.composed("mixing=on", "mixup.ratio=0.4")
    assert document["families"][row.family]["trained_on"] == "mixed"
    write_yaml(document, home / "params.yaml")
    mix(home)
    clips = list(shards.rows_below(home / "clips", manifest.CLIPS, ["clip_id", "audio"]))
    both = {one["clip_id"]: one for one in shards.rows_below(home / "mixed", manifest.CLIPS, manifest.CLIPS.names)}
    mixes = {one["clip_id"]: one for one in shards.rows_below(home / "mixes", manifest.MIXES, manifest.MIXES.names)}
    assert both.keys() == {*mixes, *(one["clip_id"] for one in clips)}
    assert len(mixes) == 2
    for one in (*clips, *mixes.values()):
        assert both[one["clip_id"]]["audio"] == one["audio"]
    rows = {one["clip_id"]: one for one in shards.read_rows(home / "mixed.parquet", manifest.MIXED_CATALOG)}
    for clip_id, one in mixes.items():
        told = rows[clip_id]
        assert (told["split"], told["captions"], told["labels"]) == ("train", [one["caption"]], one["labels"])
        assert told["mixed"] == [one["first"], one["second"]]
        assert told["seconds"] == max(rows[one["first"]]["seconds"], rows[one["second"]]["seconds"])

    shutil.rmtree(home / "clips")
    (home / "mixed").rename(home / "clips")
    (home / "mixed.parquet").rename(home / "catalog.parquet")
    if row.mels:
        run(home, "spectrogram", spectrogram.run, "audio=clips", "spectrograms=inputs", more=("--variant", row.family))
    if document["text"]:
        of_waves.make_texts(row.family, home, document, "parts/text")
    metrics = of_waves.train(row.family, tmp_path / "home", home, document)
    captions = {"captions": len({caption for one in rows.values() for caption in one["captions"]})} if document["text"] else {}
    expected = row.told | captions | {"mixes": 2}
    assert {key: metrics[key] for key in expected} == expected
    told = shards.read_table(tmp_path / "home/model" / manifest.TRAINED_ON_FILE, manifest.TRAINED_ON).to_pylist()
    alone = {one["clip_id"] for one in told if not one["mix"]}
    assert len(alone) == row.told["clips"]
    assert all(rows[clip_id]["split"] == "train" for clip_id in alone)
    assert alone.isdisjoint(mixes)
    assert [(one["mix"], one["clip_id"]) for one in told if one["mix"]] == [
        (mix, clip_id) for mix in sorted(mixes) for clip_id in (mixes[mix]["first"], mixes[mix]["second"])
    ]


def test_without_a_mix_the_remedy_is_named(tmp_path, trainings):
    home = tmp_path / "data"
    shutil.copytree(trainings.data("waveform_unet"), home)
    write_yaml(ROWS["waveform_unet"].composed("mixing=on", "mixup.pairing=none"), home / "params.yaml")
    with pytest.raises(SystemExit, match=r"mixes: no mixes to train on: set mixup\.pairing and mixup\.ratio, or leave"):
        mix(home)
