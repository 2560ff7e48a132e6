"""Sounds cut into pieces and windows: what is made of them is what is made of the whole, and no more is held; loops that close."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch

from soundmill.audio.pieces import closed, equal_power, faded, pieces, window_starts, windows


def blocks_of(wave: torch.Tensor, size: int, taken: list[int]) -> Iterator[torch.Tensor]:
    for block in wave.split(size, -1):
        taken.append(block.shape[-1])
        yield block


@pytest.mark.parametrize("length", [1, 7, 99, 100, 101, 512, 1000])
@pytest.mark.parametrize(("size", "around"), [(100, 12), (10, 40), (100, 0), (3000, 12)])
def test_a_convolution_of_pieces_is_that_of_the_whole(length, size, around):
    wave, kernel = torch.randn(2, 1, length), torch.randn(1, 1, 2 * around + 1)
    whole = torch.nn.functional.conv1d(wave, kernel, padding=around)
    taken, given, output = [], 0, []
    for piece in pieces(blocks_of(wave, 64, taken), size, around):
        output.append(piece.inner(torch.nn.functional.conv1d(piece.values, kernel, padding=around)))
        assert piece.start == given
        given += piece.count
        assert sum(taken) - given <= 64 + around + size  # it has read no further than it had to
    torch.testing.assert_close(torch.cat(output, 2), whole)


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 1899, 1901, 7777])
def test_windows_are_cut_and_faded_as_of_the_whole(length):
    size, overlap, wave = 1000, 100, torch.randn(2, length)
    starts = window_starts(length, size, overlap)
    cut = dict(windows(wave.split(64, 1), starts, size))
    assert list(cut) == starts
    assert all(torch.equal(part, wave[:, start : start + size]) for start, part in cut.items())

    parts = {start: torch.full((1, len(part[0])), float(number)) for number, (start, part) in enumerate(cut.items())}
    output = torch.cat(list(faded(iter(parts.items()), overlap, torch.lerp)), 1)[0]
    ends = [start + len(part[0]) for start, part in parts.items()]
    fade, expected = torch.linspace(0, 1, overlap + 2)[1:-1], torch.zeros(length)
    for number, (before, after) in enumerate(pairwise(ends)):  # over the last `overlap` samples of what there is
        expected[before - overlap : before], expected[before:after] = number + fade, number + 1
    torch.testing.assert_close(output, expected)


def test_windows_are_faded_on_the_device_that_they_are_on():
    """A GPU, as a rule; `meta` is as far from the CPU."""
    parts = ((start, torch.empty(2, 1000, device="meta")) for start in (0, 900, 1800))
    assert [(block.device.type, block.shape[1]) for block in faded(parts, 100, equal_power)] == [
        ("meta", size) for size in (900, 900, 1000)
    ]


def test_what_is_done_comes_out_before_the_next_window_is_read():
    length, size, overlap, taken, given = 50_000, 1000, 100, [], 0
    cut = windows(blocks_of(torch.zeros(1, length), 64, taken), window_starts(length, size, overlap), size)
    for block in faded(cut, overlap, equal_power):
        given += block.shape[1]
        assert sum(taken) - given <= 2 * size + 64
    assert given == length


def test_a_closed_loop_goes_on_at_its_beginning():
    """Of a sound that has nothing to do with the loop's length, the seam is as smooth as any other place."""
    wave = np.sin(2 * np.pi * 37.3 * np.arange(4000, dtype=np.float32) / 4000)
    loop = closed(wave[None, None], 1000, 2000, 100)[0, 0]
    assert (loop[:1900] == wave[1000:2900]).all()
    jumps, plainly = np.abs(np.roll(loop, -1) - loop), np.abs(np.diff(wave)).max()
    assert jumps[-1] <= plainly  # as anywhere in the wave itself
    assert jumps[:-1].max() < 1.2 * plainly
    assert abs(wave[1000] - wave[2999]) > 5 * jumps[-1]
