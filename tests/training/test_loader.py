"""The loader: every clip once an epoch, in one order, whatever the ranks, the workers and the kills."""

import errno
import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soundmill import manifest, shards
from soundmill.audio import log_mels
from soundmill.errors import UserError
from soundmill.models.components.log_mels.source import Crops, gather_log_mels
from soundmill.training.fitting import in_steps
from soundmill.training.loader import Joined, Loader, Order, share
from tests.lost_bits import lose_a_bit

ROOT = Path(__file__).resolve().parents[2]
FRAMES, BANDS, FILL = 8, 4, -23.0
WEIGHTS = {"twice": 2.0, "never": 0.0, "once": 1.0, "seldom": 0.25, "often": 2.6}


def log_mel_of(item: int, frames: int) -> np.ndarray:
    """Whole numbers, which float16 holds exactly, unlike in every clip and place."""
    return (np.arange(BANDS * frames, dtype="<f2") + 40 * item).reshape(BANDS, frames)


def write_shards(directory: Path, lengths: dict[str, int], shard_count: int = 3) -> Path:
    for index in range(shard_count):
        with shards.ShardWriter(directory / shards.shard_name(index), manifest.SPECTROGRAMS, rows_per_group=2) as writer:
            for item, (clip_id, frames) in list(enumerate(lengths.items()))[index::shard_count]:
                size = {"num_mels": BANDS, "num_frames": frames, "digest": f"{clip_id} {frames}"}
                writer.write({"clip_id": clip_id, "log_mel": log_mel_of(item, frames).tobytes(), **size})
    return directory


def random_places(size: int, step: int) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(step))


def make_loader(home: Path, count: int = 11, batch_size: int = 4, steps: int = 9, **options) -> Loader:
    ids = [f"clip-{item:02d}" for item in range(count)]
    directory = home / "mels"
    if not directory.exists():
        write_shards(directory, {clip_id: FRAMES - 3 + item for item, clip_id in enumerate(ids)})
    order = Order(7, dict.fromkeys(ids, 1.0), batch_size)
    log_mels = gather_log_mels(directory, ids, home)
    return Loader(Crops(log_mels, FRAMES, FILL), order, partial(random_places, batch_size), steps=steps, **options)


def contents(batches) -> list[tuple]:
    return [(batch.step, batch.items.tolist(), batch.values[0].tolist()) for batch in batches]


# the flat file


def test_clips_are_what_the_shards_hold_in_the_order_asked_for(tmp_path):
    lengths = {f"c{item}": 5 + item for item in range(9)}
    write_shards(tmp_path / "mels", lengths)
    ids = ["c7", "c0", "c4", "c3"]
    log_mels = gather_log_mels(tmp_path / "mels", ids, tmp_path)
    assert len(log_mels) == 4
    for item, clip_id in enumerate(ids):
        number = int(clip_id[1])
        np.testing.assert_array_equal(log_mels.arrays.read(item), log_mel_of(number, 5 + number))
    assert log_mels.arrays.path.stat().st_size == sum(2 * BANDS * (5 + int(clip_id[1])) for clip_id in ids)


def test_the_copy_is_made_once_and_again_when_damaged_or_of_other_content(tmp_path, capsys):
    write_shards(tmp_path / "mels", {"a": 8, "b": 9})
    first = gather_log_mels(tmp_path / "mels", ["a", "b"], tmp_path).arrays.path
    output = first.stat().st_ino
    assert gather_log_mels(tmp_path / "mels", ["b", "a"], tmp_path).arrays.path.stat().st_ino == output
    first.write_bytes(first.read_bytes()[:-2])
    np.testing.assert_array_equal(gather_log_mels(tmp_path / "mels", ["a", "b"], tmp_path).arrays.read(1), log_mel_of(1, 9))
    write_shards(tmp_path / "mels", {"a": 8, "b": 10})
    np.testing.assert_array_equal(gather_log_mels(tmp_path / "mels", ["a", "b"], tmp_path).arrays.read(1), log_mel_of(1, 10))
    first = gather_log_mels(tmp_path / "mels", ["a", "b"], tmp_path).arrays.path
    whole = first.read_bytes()
    for place in (0.0, 0.4, 0.99):
        lose_a_bit(first, place)
        assert gather_log_mels(tmp_path / "mels", ["a", "b"], tmp_path).arrays.path == first
        assert first.read_bytes() == whole
        assert f"1 damaged and rebuilt ({first.name})" in capsys.readouterr().out
    gather_log_mels(tmp_path / "mels", ["a", "b"], tmp_path)
    assert capsys.readouterr().out == ""


def test_a_copy_for_which_no_space_is_left_is_told_with_its_size(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_shards(tmp_path / "mels", {"a": 8, "b": 9})
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"no space left for .*: training needs 136 bytes here .*; free some and run again"):
            gather_log_mels(tmp_path / "mels", ["a", "b"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mels"]
    assert len(gather_log_mels(tmp_path / "mels", ["a", "b"], tmp_path)) == 2


def test_shards_that_are_remade_while_they_are_copied_are_told_and_nothing_is_kept(tmp_path, monkeypatch):
    write_shards(tmp_path / "mels", {"a": 8, "b": 9})
    iterate = log_mels.iterate_log_mels

    def remade(directory):
        write_shards(directory, {"a": 9, "b": 8})  # of the same size in all
        return iterate(directory)

    with monkeypatch.context() as patch:
        patch.setattr(log_mels, "iterate_log_mels", remade)
        with pytest.raises(UserError, match=r"mels: the spectrogram of clip .* or another one was rewritten while they were"):
            gather_log_mels(tmp_path / "mels", ["a", "b"], tmp_path)
    assert list(tmp_path.glob("*.f16")) == []
    np.testing.assert_array_equal(gather_log_mels(tmp_path / "mels", ["a", "b"], tmp_path).arrays.read(1), log_mel_of(1, 8))


def test_clips_that_lack_are_doubled_or_have_other_bands_and_damaged_shards_are_named(tmp_path):
    write_shards(tmp_path / "mels", {"a": 8, "b": 9})
    with pytest.raises(UserError, match=r"the spectrogram of clip 'lost' is missing \(2 in all\)"):
        gather_log_mels(tmp_path / "mels", ["a", "lost", "gone"], tmp_path)
    write_shards(tmp_path / "mels" / "again", {"b": 9})
    with pytest.raises(UserError, match=r"the spectrogram of clip 'b' is stored twice"):
        gather_log_mels(tmp_path / "mels", ["a", "b"], tmp_path)
    gather_log_mels(tmp_path / "mels", ["a"], tmp_path)
    row = {"clip_id": "tall", "log_mel": bytes(2 * 5 * 3), "num_mels": 5, "num_frames": 3, "digest": ""}
    shards.write_rows([row], tmp_path / "mels" / "shard-00009.parquet", manifest.SPECTROGRAMS)
    with pytest.raises(UserError, match=r"'a' has 4, 'tall' has 5"):
        gather_log_mels(tmp_path / "mels", ["a", "tall"], tmp_path)
    shards.write_rows([{**row, "num_frames": 4}], tmp_path / "mels" / "shard-00009.parquet", manifest.SPECTROGRAMS)
    with pytest.raises(UserError, match=r"shard-00009\.parquet: the spectrogram of clip 'tall' is not \(5, 4\)"):
        gather_log_mels(tmp_path / "mels", ["tall"], tmp_path)
    (tmp_path / "mels" / "shard-00009.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(UserError, match=r"shard-00009\.parquet: cannot be read"):
        gather_log_mels(tmp_path / "mels", ["a"], tmp_path)


def test_crops_begin_where_asked_and_short_clips_are_filled(tmp_path):
    write_shards(tmp_path / "mels", {"short": 6, "equal": 8, "long": 10})
    log_mels = gather_log_mels(tmp_path / "mels", ["short", "equal", "long"], tmp_path)
    crops = log_mels.crops([0, 1, 2, 2, 2, 2], [0.9, 0.9, 0.0, 0.34, 0.66, 0.67], FRAMES, FILL).numpy()
    assert crops.dtype == np.float16
    np.testing.assert_array_equal(crops[0, :, :6], log_mel_of(0, 6))
    assert (crops[0, :, 6:] == FILL).all()
    np.testing.assert_array_equal(crops[1], log_mel_of(1, 8))
    for crop, start in zip(crops[2:], [0, 1, 1, 2], strict=True):
        np.testing.assert_array_equal(crop, log_mel_of(2, 10)[:, start : start + FRAMES])


# the order


def even(count: int) -> dict[str, float]:
    return {f"c{item}": 1.0 for item in range(count)}


def test_the_order_of_a_seed_never_changes():
    """Trained weights hang on it: with another order, no result could be had again."""
    order = Order(0, even(12), 4)
    assert [order.batch(step).tolist() for step in range(4)] == [[8, 9, 7, 11], [1, 6, 5, 2], [4, 3, 10, 0], [10, 2, 5, 9]]


@given(seed=st.integers(0, 100), batch_size=st.integers(1, 13), count=st.integers(1, 17))
def test_every_clip_comes_once_in_every_epoch(seed, batch_size, count):
    order = Order(seed, even(count), batch_size)
    seen = np.concatenate([order.batch(step) for step in range(order.steps(3))])
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))


def test_a_weight_is_how_often_a_clip_is_drawn():
    order = Order(1, WEIGHTS, 4)
    epochs = 500
    drawn = np.stack([np.bincount(order.epoch(epoch), minlength=5) for epoch in range(epochs)])
    assert (drawn[:, :3] == [2, 0, 1]).all()
    assert set(drawn[:, 3]) == {0, 1}
    assert set(drawn[:, 4]) == {2, 3}
    # Within four standard deviations.
    assert drawn[:, 3].mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / epochs) ** 0.5)
    assert drawn[:, 4].mean() == pytest.approx(2.6, abs=4 * (0.6 * 0.4 / epochs) ** 0.5)


def test_batches_follow_epochs_of_unequal_length_from_any_step():
    whole = np.concatenate([Order(1, WEIGHTS, 4).epoch(epoch) for epoch in range(12)])
    steps = len(whole) // 4
    forwards, backwards = Order(1, WEIGHTS, 4), Order(1, WEIGHTS, 4)
    there, back = [forwards.batch(step) for step in range(steps)], [backwards.batch(step) for step in reversed(range(steps))]
    for batches in (there, back[::-1]):
        np.testing.assert_array_equal(np.concatenate(batches), whole[: 4 * steps])
    assert forwards.end(11) == len(whole)
    assert forwards.steps(12) == -(-len(whole) // 4)


def test_an_interval_of_an_epoch_is_in_steps_of_all_accumulated_batches():
    clips = Order(0, dict.fromkeys("abcdefghij", 1.0), 3)  # ten clips: four batches
    assert [in_steps("epoch", order, 2) for order in (clips, Joined(clips, Order(1, {"m": 1.0}, 1), 1))] == [2, 2]
    assert [in_steps(every, clips, 2) for every in (7, None)] == [7, None]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"a": 1.0, "b": -1.0}, "clip 'b' has weight -1"),
        ({"a": float("nan")}, "clip 'a' has weight nan"),
        ({"a": None}, "clip 'a' has weight None"),
        ({"a": 0.0, "b": 0.0}, "weights of 2 clips add up to less than one"),
        ({}, "weights of 0 clips"),
    ],
)
def test_weights_that_make_no_order_are_refused(weights, said):
    """Those that make one draw, but for rounding, do: six times a sixth."""
    assert Order(0, dict.fromkeys("abcdef", 1 / 6), 2).num_items == 6
    with pytest.raises(UserError, match=said):
        Order(0, weights, 4)


def test_two_orders_are_dealt_out_to_every_device():
    clips, mixes = Order(1, even(10), 4), Order(2, even(7), 2)
    for devices in (1, 2):
        joined = Joined(clips, mixes, devices)
        assert joined.batch_size == 6
        for step in range(12):
            whole, beyond = joined.batch(step), []
            for rank in range(devices):
                own = share(whole, rank, devices)
                assert [item >= 10 for item in own] == [False] * (4 // devices) + [True] * (2 // devices)
                beyond.append(own[4 // devices :])
            assert sorted(item for item in whole if item < 10) == sorted(clips.batch(step))
            np.testing.assert_array_equal(np.concatenate(beyond) - 10, mixes.batch(step))
        assert joined.beginning(7) == clips.beginning(7) == (2, 8)
    digests = {Joined(clips, mixes, 1).digest, Joined(clips, mixes, 2).digest, Joined(clips, Order(3, even(7), 2), 1).digest}
    assert len(digests) == 3


# the loader


@pytest.mark.parametrize("joined", [False, True])
def test_one_two_and_four_processes_see_the_same_items_in_the_same_order(tmp_path, joined):
    """In the order of ranks; a training may go on with another number of them."""

    def items(count, rank, start=0):
        loader = make_loader(tmp_path, batch_size=8)
        if joined:
            loader.order = Joined(Order(7, even(6), 4), Order(8, even(5), 4), 2)
        loader.rank, loader.world_size, loader.step = rank, count, start
        return {batch.step: (batch.items, batch.values[0]) for batch in loader}

    whole = items(1, 0)
    assert len(whole) == 9
    for count, start in ((2, 0), (4, 0), (4, 5), (8, 7)):
        parts = [items(count, rank, start) for rank in range(count)]
        for step in range(start, 9):
            for number, expected in enumerate(whole[step]):
                np.testing.assert_array_equal(np.concatenate([part[step][number] for part in parts]), expected)


def test_batches_are_the_same_with_any_number_of_workers_and_after_a_resume(tmp_path):
    whole = contents(make_loader(tmp_path))
    assert [step for step, _, _ in whole] == list(range(9))
    for workers, others, stop in ((1, 3, 4), (2, 1, 5)):
        begun = make_loader(tmp_path, workers=workers)
        batches = iter(begun)
        assert contents(next(batches) for _ in range(stop)) == whole[:stop]
        state = json.loads(json.dumps(begun.state_dict()))
        assert (state["step"], state["epoch"], state["place"]) == (stop, 4 * stop // 11, 4 * stop % 11)
        batches.close()
        resumed = make_loader(tmp_path, workers=others)
        resumed.load_state_dict(state)
        assert contents(resumed) == whole[stop:]


def test_a_state_of_other_clips_and_a_batch_that_cannot_be_shared_evenly_are_refused(tmp_path):
    state = make_loader(tmp_path).state_dict()
    with pytest.raises(UserError, match="other clips, weights, batch size or seed"):
        make_loader(tmp_path, count=10).load_state_dict(state)
    loader = make_loader(tmp_path)
    loader.world_size = 3
    with pytest.raises(UserError, match="a batch of 4 cannot be shared evenly by 3"):
        next(iter(loader))


def test_a_copy_that_is_cut_short_names_the_clip(tmp_path):
    loader = make_loader(tmp_path)
    path = loader.source.log_mels.arrays.path
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"^[^\n]*\.f16: ends within 'clip-\d\d'; remove the file and run it again$"):
        list(loader)


def test_the_time_waited_for_batches_is_counted(tmp_path, monkeypatch):
    loader = make_loader(tmp_path)
    read = Crops.batch
    monkeypatch.setattr(Crops, "batch", lambda *args: (time.sleep(0.02), read(*args))[1])
    assert loader.waited == 0
    list(loader)
    assert loader.waited > 0.02
