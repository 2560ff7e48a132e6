"""Quality measures of clips (the columns of manifest.QUALITY), taken while they are decoded."""

import functools
import math

import numpy as np
import scipy.fft

from soundmill.audio.levels import FLOOR_DB, a_weighting, window_length

SILENCE_DBFS = -60.0  # a window whose RMS without its mean is below this is silent
NOISE_DBFS = -101.1  # quantisation noise of 16 bits: power 2^-30 / 12
NOISE_MARGIN_DB = 10.0  # a band above this contains sound; dither adds 4.8 dB
SPECTRUM_RANGE_DB = 70.0  # lower bands are leakage of filters and codecs
BANDS = 128  # of equal width, to find the end of the spectrum
MIRROR_HZ = 4_000.0  # Nyquist frequency at 8 kHz; poor upsampling leaves a mirror image above it
MIRROR_BINS = range(4, 64)  # from there, up to 0.5 kHz; nearer bins are correlated by the window
MIRROR_AGREEMENT = 0.98  # lower bound for images; real sound has less (bench/bandwidth.py)
MIRROR_WINDOWS = 3  # minimum with energy there: a click, which is in two windows, looks like an image
MIRROR_DB = -3.0  # the worst filter's attenuation of an image; tones with mirrored harmonics are louder
FAR_MIRROR_DB = -50.0  # every filter's attenuation of an image away from 4 kHz
STFT_WINDOWS = 40  # in memory at once

CEILING_TOLERANCE = 2**-14  # two steps of 16 bits
CEILING_RUN = 3  # samples at the ceiling; shorter runs are not clipping
LOWEST_CEILING = 10 ** (-40 / 20)  # below it quantisation looks like a ceiling
HIGHEST_OVERSHOOT = 4.0  # codecs decode clipped waves beyond full scale; above this, sound was scaled
METER_SAMPLES = 1 << 18  # of all channels; fixed block size of sums, so that results do not depend on the decoder's blocks
MIN_METER_FRAMES = 256  # shorter blocks would cut runs
BINS_PER_SECOND = 10  # resolution of a recording's clipping counts


class RecordingMeter:
    """Clipping and channel correlation of a recording, once all blocks are added; keeps a number per 0.1 s and 3 per channel."""

    def __init__(self, sample_rate: int):
        self._bin = max(1, round(sample_rate / BINS_PER_SECOND))
        self._sample_rate = sample_rate
        self._pending: list[np.ndarray] = []
        self._waiting = 0  # frames in `_pending`
        self._frames = 0
        self.channels = 0
        self._ceiling = 0.0
        self._clipped = np.zeros(0, np.int64)  # clipped samples of all channels, by bin
        self._sums = self._squares = self._products = np.zeros(0)

    def add(self, block: np.ndarray) -> None:
        """Add float32 samples [n, channels] as decoded, before mixing and resampling; the array must not be changed afterwards."""
        self.channels = block.shape[1]
        size = max(MIN_METER_FRAMES, METER_SAMPLES // self.channels)
        while len(block):
            room = size - self._waiting
            part, block = block[:room], block[room:]
            whole = getattr(part.base, "nbytes", part.nbytes)  # a view keeps its base alive
            self._pending.append(part if 2 * part.nbytes > whole else part.copy())
            self._waiting += len(part)
            if self._waiting == size:
                self._finish()

    def channel_correlation(self) -> float | None:
        """Lowest Pearson correlation of the first channel with another, from -1 (inverted) to 1 (equal); None without any."""
        self._finish()
        if self.channels < 2:
            return None
        mean = self._sums / self._frames
        spread = np.maximum(self._squares / self._frames - mean**2, 0)
        common = self._products / self._frames - mean[0] * mean
        power = spread[0] * spread
        loud = np.minimum(spread[0], spread) > 10 ** (SILENCE_DBFS / 10)
        loud[0] = False
        return _plain(np.clip(common[loud] / np.sqrt(power[loud]), -1, 1).min(), 4) if loud.any() else None

    def clipping_ratio(self, start: float, seconds: float) -> float:
        """Share of the samples from `start` on that are in runs of at least 3 at the recording's ceiling."""
        self._finish()
        rate = self._sample_rate
        first, last = math.floor(start * rate / self._bin + 1e-6), math.ceil((start + seconds) * rate / self._bin - 1e-6)
        frames = min(last * self._bin, self._frames) - first * self._bin
        return _plain(self._clipped[first:last].sum() / (frames * self.channels), 6) if frames > 0 else 0.0

    def _finish(self) -> None:
        if self._pending:
            block = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
            self._pending, self._waiting = [], 0
            self._measure(block)

    def _measure(self, block: np.ndarray) -> None:
        channels = np.ascontiguousarray(block.T)  # sums along contiguous channels are ten times as fast
        with np.errstate(over="ignore", invalid="ignore"):  # the decoder rejects such samples later
            self._count_clipped(channels)
            if self.channels > 1:
                if not len(self._sums):
                    self._sums, self._squares, self._products = np.zeros((3, self.channels))
                self._sums += channels.sum(axis=1)
                self._squares += np.einsum("cn,cn->c", channels, channels)
                self._products += channels @ channels[0]
        self._frames += len(block)

    def _count_clipped(self, channels: np.ndarray) -> None:
        """Count by bin the samples [channels, n] in runs at the ceiling; a higher ceiling resets the counts."""
        num_frames = channels.shape[1]
        bins = -(-(self._frames + num_frames) // self._bin)
        if bins > len(self._clipped):
            self._clipped = np.concatenate([self._clipped, np.zeros(bins - len(self._clipped), np.int64)])
        highest, lowest = float(channels.max()), float(channels.min())
        peak = max(highest, -lowest)
        ceiling = 1.0 if 1.0 <= peak <= HIGHEST_OVERSHOOT else peak
        if ceiling * (1 - CEILING_TOLERANCE) > self._ceiling:
            self._ceiling = ceiling
            self._clipped[:] = 0
        if self._ceiling < LOWEST_CEILING:
            return
        threshold = self._ceiling * (1 - CEILING_TOLERANCE)
        for at in (
            np.flatnonzero(channels >= threshold) if highest >= threshold else (),
            np.flatnonzero(channels <= -threshold) if lowest <= -threshold else (),
        ):
            if len(at) >= CEILING_RUN:
                breaks = np.flatnonzero((np.diff(at) != 1) | (at[1:] % num_frames == 0)) + 1  # or the next channel starts
                lengths = np.diff(breaks, prepend=0, append=len(at))
                frames = at[np.repeat(lengths >= CEILING_RUN, lengths)] % num_frames + self._frames
                self._clipped += np.bincount(frames // self._bin, minlength=len(self._clipped))


def measure_clip(
    wave: np.ndarray, sample_rate: int, recording: RecordingMeter, start: float, gain: float = 1.0
) -> dict[str, float | None]:
    """All measures of a clip, float32 [T] or [C, T] without padding, `start` seconds into its recording.

    The peak is over all channels; level, silence, offset and bandwidth are of the mean channel. `gain`: the factor that brought the
    clip within full scale; the peak is before it. Returns a value of manifest.QUALITY, rounded to significant digits that are equal
    on every machine.
    """
    peak = float(np.abs(wave).max(initial=0.0))
    if wave.ndim > 1:
        wave = np.ascontiguousarray(wave[0]) if len(wave) == 1 else wave.mean(axis=0)
    seconds = len(wave) / sample_rate
    size = window_length(sample_rate)
    level, spectrum = _spectrum(wave, sample_rate, size)
    return {
        "seconds": _plain(seconds, 6),
        "peak": _plain(peak / gain, 5),
        "level_db": level,
        "silence_ratio": _silence_ratio(wave, size // 2),
        "clipping_ratio": recording.clipping_ratio(start, seconds) if len(wave) else 0.0,
        "dc_offset": _plain(wave.mean(), 5) if len(wave) else 0.0,
        "bandwidth_hz": _bandwidth(spectrum, sample_rate),
        "channel_correlation": recording.channel_correlation(),
    }


def _silence_ratio(wave: np.ndarray, size: int) -> float:
    """Share of silent windows of `size` samples (the last may be shorter); a constant is silent."""
    whole = len(wave) // size * size
    windows = wave[:whole].reshape(-1, size)
    windows = windows - windows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    power = np.einsum("ns,ns->n", windows, windows) / size
    silent = int((power < 10 ** (SILENCE_DBFS / 10)).sum())
    count = len(windows)
    if whole < len(wave):
        silent += int(wave[whole:].var() < 10 ** (SILENCE_DBFS / 10))
        count += 1
    return _plain(silent / count, 4) if count else 1.0


def _spectrum(wave: np.ndarray, sample_rate: int, size: int) -> tuple[float | None, np.ndarray]:
    """(A-weighted level in dB, mean power [size // 2 + 1]) of Hann windows of `size`, half overlapping.

    The mean excludes a last, partial window, whose edge has energy at all frequencies, and mirror images from upsampling.
    """
    window, weights = _window(size), _weights(size, sample_rate)
    hop = size // 2
    whole = max(0, (len(wave) - size) // hop + 1)
    loudest, total = 0.0, np.zeros(size + 2)
    mirror = _Mirror(sample_rate, size)

    def squares(frames: np.ndarray) -> np.ndarray:
        """Squared real and imaginary parts, interleaved, of these windows."""
        spectra = scipy.fft.rfft(frames * window)
        mirror.add(spectra)
        parts = spectra.view(np.float32)
        return np.square(parts, out=parts)

    for start in range(0, whole, STFT_WINDOWS):
        frames = np.lib.stride_tricks.sliding_window_view(wave, size)[: whole * hop : hop]
        powers = squares(frames[start : start + STFT_WINDOWS])
        loudest = max(loudest, float((powers @ weights).max()))
        total += powers.sum(axis=0)
    rest = wave[whole * hop :]
    if len(rest) > hop or not whole:  # otherwise it is in the previous window
        powers = squares(np.pad(rest, (0, size - len(rest)))[None])
        loudest = max(loudest, float((powers @ weights).max()))
        if not whole:
            total += powers[0]
    mean = total.reshape(-1, 2).sum(axis=1) / max(whole, 1)
    mirror.leave_out(mean)
    return (_plain(max(FLOOR_DB, 10 * math.log10(loudest)), 2) if loudest > 0 else None), mean


class _Mirror:
    """Detects a mirror image above 4 kHz: sound upsampled from 8 kHz by a short filter.

    Inserting zeros between samples makes the upper half of the spectrum the conjugate of the lower. With a linear-phase filter the
    product of mirrored bins has the same phase in all bins and windows; for other sounds the phases cancel. Memory: HELD windows
    of the bins near 4 kHz.
    """

    HELD = 512

    def __init__(self, sample_rate: int, size: int):
        """`size`: of the windows. Inactive if no bin is at 4 kHz or there are too few above it."""
        number = MIRROR_HZ * size / sample_rate
        self._bin = int(number) if number.is_integer() and number + MIRROR_BINS.stop <= size // 2 else 0
        self._noise = _bands(size)[2]
        self._waiting: list[np.ndarray] = []
        self._windows, self._agreement, self._below, self._above = 0, 0j, 0.0, 0.0

    def add(self, spectra: np.ndarray) -> None:
        """Add spectra complex64 [n, bins] of half-overlapping windows."""
        if self._bin:
            self._waiting.append(spectra[:, self._bin - MIRROR_BINS.stop : self._bin + MIRROR_BINS.stop + 1].copy())
            if len(self._waiting) * STFT_WINDOWS >= self.HELD:
                self._look()

    def _look(self) -> None:
        if not self._waiting:
            return
        spectra, self._waiting = np.concatenate(self._waiting), []
        middle, (first, stop) = MIRROR_BINS.stop, (MIRROR_BINS.start, MIRROR_BINS.stop)
        below, above = spectra[:, middle - stop + 1 : middle - first + 1], spectra[:, middle + first : middle + stop]
        powers = np.einsum("nb,nb->n", above.real, above.real) + np.einsum("nb,nb->n", above.imag, above.imag)
        loud = powers > self._noise * len(MIRROR_BINS)
        self._windows += int(loud.sum())
        self._above += float(powers.sum())
        self._below += float(np.vdot(below, below).real)
        if loud.any() and self._above <= self._below * 10 ** (MIRROR_DB / 10):  # else it is not an image
            products = below[loud, ::-1] * above[loud]
            agreements = products.sum(axis=1) / np.abs(products).sum(axis=1)
            self._agreement += complex(agreements.sum())  # each window counts equally

    def leave_out(self, mean: np.ndarray) -> None:
        """Set mirror images in the mean power [bins] to 0."""
        self._look()
        if not self._bin:
            return
        softer = self._above <= self._below * 10 ** (MIRROR_DB / 10)
        if softer and self._windows >= MIRROR_WINDOWS and abs(self._agreement) >= MIRROR_AGREEMENT * self._windows:
            mean[self._bin + 1 :] = 0
        elif mean[self._bin + MIRROR_BINS.start : self._bin + MIRROR_BINS.stop].mean() <= self._noise:
            # Nothing right above 4 kHz: energy further up may be the image of low sounds.
            above = mean[self._bin + 1 : 2 * self._bin + 1]
            below = mean[self._bin - len(above) : self._bin][::-1]
            above[above < below * 10 ** (FAR_MIRROR_DB / 10)] = 0


def _bandwidth(spectrum: np.ndarray, sample_rate: int) -> float:
    """Upper edge in Hz of the highest band above 16-bit noise and filter leakage; 0 if there is none."""
    size = 2 * (len(spectrum) - 1)
    edges, widths, noise = _bands(size)
    bands = np.add.reduceat(spectrum, edges[:-1]) / widths
    held = np.flatnonzero(bands > max(noise, float(bands.max()) * 10 ** (-SPECTRUM_RANGE_DB / 10)))
    return _plain(min((edges[held[-1] + 1] - 0.5) / size, 0.5) * sample_rate, 1) if len(held) else 0.0


@functools.lru_cache(maxsize=4)
def _window(size: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _bands(size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Bin edges of the bands (without bin 0), their widths, and the noise power per bin."""
    edges = np.linspace(1, size // 2 + 1, min(BANDS, size // 2) + 1).astype(int)
    noise = 10 ** ((NOISE_DBFS + NOISE_MARGIN_DB) / 10) * float(np.square(_window(size), dtype=np.float64).sum())
    return edges, np.diff(edges), noise


@functools.lru_cache(maxsize=4)
def _weights(size: int, sample_rate: int) -> np.ndarray:
    """A-weighting [size + 2] for interleaved real and imaginary parts."""
    return np.repeat(a_weighting(np.fft.rfftfreq(size, 1 / sample_rate)), 2).astype(np.float32)


def _plain(value: float, digits: int) -> float:
    return round(float(value), digits) + 0.0  # no negative zero
