"""Sound-event generators of the embedded corpus: numpy only, each `f(rng, seconds, rate) -> wave [T]` float64, one take.

Every take draws its own pitch, pace, brightness and small irregularities from `rng`; levels are the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Wave = np.ndarray
Generator = Callable[[np.random.Generator, float, int], Wave]


def _time(seconds: float, rate: int) -> Wave:
    return np.arange(round(seconds * rate)) / rate


def _oscillator(frequency: Wave | float, rate: int, size: int) -> Wave:
    """Phase [T] in radians of an oscillator whose frequency in Hz may move."""
    return 2 * np.pi * np.cumsum(np.broadcast_to(frequency, size)) / rate


def _shaped(wave: Wave, rate: int, gain: Callable[[Wave], Wave]) -> Wave:
    """Filter by a magnitude over frequency, zero phase."""
    # Zeros behind keep the end from wrapping round to the start, and make the length one the transform is quick at.
    size = 1 << (len(wave) + rate // 20 - 1).bit_length() if len(wave) < rate else _smooth_size(len(wave) + rate // 20)
    spectrum = np.fft.rfft(wave, size)
    return np.fft.irfft(spectrum * gain(np.fft.rfftfreq(size, 1 / rate)), size)[: len(wave)]


def _smooth_size(size: int) -> int:
    """The next multiple of a power of two with a small odd factor: 1, 3, 5 … 15 times 2^k."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


def _band(low: float, high: float, order: float = 4.0) -> Callable[[Wave], Wave]:
    """Gain of a band-pass with soft edges."""

    def gain(frequency: Wave) -> Wave:
        f = np.maximum(frequency, 1e-3)
        return 1 / np.sqrt((1 + (low / f) ** order) * (1 + (f / high) ** order))

    return gain


def _resonances(*peaks: tuple[float, float, float]) -> Callable[[Wave], Wave]:
    """Gain of a sum of resonances, each (centre in Hz, width in Hz, height)."""

    def gain(frequency: Wave) -> Wave:
        return sum(height / (1 + ((frequency - centre) / width) ** 2) for centre, width, height in peaks)

    return gain


def _noise(rng: np.random.Generator, seconds: float, rate: int, gain: Callable[[Wave], Wave]) -> Wave:
    noise = _shaped(rng.standard_normal(round(seconds * rate)), rate, gain)
    return noise / max(np.sqrt(np.mean(noise**2)), 1e-12)


def _drift(rng: np.random.Generator, seconds: float, rate: int, period: float) -> Wave:
    """A smooth random curve [T] in [-1, 1] that takes about `period` seconds from knot to knot."""
    size = round(seconds * rate)
    knots = rng.uniform(-1, 1, int(np.ceil(seconds / period)) + 3)
    position = np.arange(size) / rate / period
    left = position.astype(int)
    blend = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    return knots[left] * (1 - blend) + knots[left + 1] * blend


def _decay(seconds: float, rate: int, half_life: float, attack: float = 0.002) -> Wave:
    t = _time(seconds, rate)
    return np.exp2(-t / half_life) * np.minimum(1, t / attack)


def _add(wave: Wave, sound: Wave, at: float, rate: int) -> None:
    """Add a sound at a time in seconds; what goes beyond the end is cut."""
    start = round(at * rate)
    part = sound[: max(0, len(wave) - start)]
    wave[start : start + len(part)] += part


def _steady_times(rng: np.random.Generator, seconds: float, interval: float, jitter: float) -> list[float]:
    """Moments `interval` seconds apart, each off by up to `jitter` of it, the first at once."""
    times = [
        (number + (rng.uniform(-jitter, jitter) if number else 0)) * interval for number in range(int(np.ceil(seconds / interval)))
    ]
    return [float(time) for time in times if time < seconds]


def dog(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """Barks in twos and threes: a rough voice whose pitch jumps up and falls, through a dog's throat."""
    wave = np.zeros(round(seconds * rate))
    pitch, length, roughness = rng.uniform(260, 620), rng.uniform(0.13, 0.24), rng.uniform(0.2, 0.5)
    throat = _resonances((pitch * 2.1, 260, 1.0), (pitch * 3.6, 420, 0.6), (3000, 1200, 0.12), (300, 250, 0.3))
    at = 0.0
    while at < seconds:
        for _ in range(rng.integers(1, 4)):
            span = length * rng.uniform(0.85, 1.2)
            t = _time(span, rate)
            contour = pitch * rng.uniform(0.93, 1.07) * (0.75 + 0.5 * np.sin(np.pi * (t / span) ** 0.6))
            phase = _oscillator(contour * (1 + 0.02 * rng.standard_normal(len(t)).cumsum() / np.sqrt(len(t))), rate, len(t))
            voice = sum(np.sin(k * phase) / k**0.7 for k in range(1, 13))
            growl = 1 + roughness * np.sin(2 * np.pi * rng.uniform(55, 90) * t)
            breath = _noise(rng, span, rate, _band(900, 5000)) * 0.7
            _add(wave, _shaped((voice * growl + breath), rate, throat) * np.sin(np.pi * (t / span) ** 0.45) ** 1.5, at, rate)
            at += span + rng.uniform(0.08, 0.2)
        at += rng.uniform(0.2, 0.55)
    return wave


def rain(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A hiss that hardly moves, and many drops on leaves and roof."""
    hiss = _noise(rng, seconds, rate, _band(rng.uniform(500, 1400), rng.uniform(5000, 9000), 2.0))
    wave = hiss * (1 + 0.15 * _drift(rng, seconds, rate, 1.5)) * 0.5
    drops = [
        np.sin(2 * np.pi * frequency * _time(0.012, rate)) * _decay(0.012, rate, half_life, 0.0005)
        for frequency, half_life in zip(rng.uniform(1500, 6500, 16), rng.uniform(0.001, 0.003, 16), strict=True)
    ]
    for _ in range(round(seconds * rng.uniform(60, 220))):
        _add(wave, drops[rng.integers(16)] * rng.pareto(2.5) * 0.9, rng.uniform(0, seconds), rate)
    return np.clip(wave, -4, 4)


def siren(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """An emergency siren: a slow wail, a quick yelp, or two tones in turn."""
    t = _time(seconds, rate)
    low = rng.uniform(450, 700)
    high = low * rng.uniform(1.7, 2.5)
    kind = rng.choice(["wail", "wail", "yelp", "two tones"])
    cycle = (t / {"wail": rng.uniform(2.0, 3.5), "yelp": rng.uniform(0.4, 0.7), "two tones": rng.uniform(0.9, 1.3)}[kind]) % 1
    if kind == "two tones":
        frequency = np.where(cycle < 0.5, low, low * 4 / 3)
    else:
        frequency = low * (high / low) ** (0.5 - 0.5 * np.cos(2 * np.pi * cycle))
    phase = _oscillator(frequency, rate, len(t))
    dullness = rng.uniform(0.9, 1.5)
    horn = sum(np.sin(k * phase) / k**dullness for k in (1, 2, 3, 4, 5))
    return _shaped(horn, rate, _resonances((1100, 900, 1.0), (2600, 900, 0.5))) * (1 + 0.1 * _drift(rng, seconds, rate, 0.8))


def engine(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A running motor: uneven firing pulses at 25–70 Hz through a muffler, with valve clatter."""
    size = round(seconds * rate)
    firing = rng.uniform(25, 60) * (1 + 0.12 * _drift(rng, seconds, rate, rng.uniform(1.0, 3.0)))
    phase = np.cumsum(np.broadcast_to(firing, size)) / rate
    fired = np.flatnonzero(np.diff(np.floor(phase), prepend=0))
    pulses = np.zeros(size)
    pulses[fired] = (1 + 0.25 * np.array([1, -1, 0.5, -0.5]))[np.arange(len(fired)) % 4] * rng.uniform(0.8, 1.2, len(fired))
    body = rng.uniform(90, 160)
    muffler = _resonances((body, 35, 1.0), (body * 2.3, 80, 0.7), (body * 5, 220, 0.35), (1500, 700, 0.06))
    hum = _shaped(pulses, rate, muffler)
    hum /= np.sqrt(np.mean(hum**2))
    clatter = _noise(rng, seconds, rate, _band(400, 2500, 3)) * (0.5 + 0.5 * np.cos(2 * np.pi * phase)) ** 3
    return hum + rng.uniform(0.08, 0.25) * clatter


def bell(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A struck bell: inharmonic partials (hum, prime, minor third, fifth, octave …) that ring out."""
    wave = np.zeros(round(seconds * rate))
    prime, ring = rng.uniform(330, 900), rng.uniform(0.35, 0.9)
    partials = [(0.5, 0.5, 1.6), (1, 0.9, 1.2), (1.19, 0.7, 0.9), (1.5, 0.35, 0.7), (2, 1, 0.8), (2.51, 0.3, 0.4), (2.66, 0.3, 0.4)]
    partials += [(3.01, 0.35, 0.35), (4.17, 0.3, 0.25), (5.43, 0.2, 0.15)]
    for at in _steady_times(rng, seconds, rng.uniform(0.9, 1.6), 0.03):
        span = min(6.0, seconds - at)
        t = _time(span, rate)
        strike = np.zeros(len(t))
        for ratio, height, life in partials:
            beating = 1 + 0.15 * np.cos(2 * np.pi * rng.uniform(0.5, 3) * t)
            strike += height * np.sin(2 * np.pi * prime * ratio * t + rng.uniform(0, 6)) * np.exp2(-t / (life * ring)) * beating
        click = _noise(rng, min(0.02, span), rate, _band(2000, 7000)) * 0.5
        strike[: len(click)] += click * np.linspace(1, 0, len(click))
        _add(wave, strike * np.minimum(1, t / 0.001) * rng.uniform(0.8, 1), at, rate)
    return wave


def footsteps(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """Somebody walking: a heel's thump, then the crunch of the sole, left and right a little different."""
    wave = np.zeros(round(seconds * rate))
    thump, gravel = rng.uniform(70, 130), rng.uniform(0.5, 1.2)
    for number, at in enumerate(_steady_times(rng, seconds, rng.uniform(0.46, 0.64), 0.05)):
        t = _time(0.12, rate)
        tone = thump * (1.12 if number % 2 else 1)
        heel = np.sin(_oscillator(tone * (1 + np.exp(-t / 0.01)), rate, len(t))) * _decay(0.12, rate, 0.02) * 2.2
        _add(wave, heel, at, rate)
        span = rng.uniform(0.14, 0.2)
        crunch = _noise(rng, span, rate, _band(700, rng.uniform(2500, 4500), 3)) * np.sin(np.pi * _time(span, rate) / span)
        grains = rng.random(len(crunch)) < 900 / rate
        grit = _shaped(grains * rng.exponential(1, len(crunch)), rate, _band(800, 5000, 3))
        crunch *= 0.35 + np.minimum(2, np.abs(grit) / max(np.sqrt(np.mean(grit**2)), 1e-9))
        _add(wave, crunch * gravel * 0.5, at + 0.05, rate)
    return wave


def _beats(rng: np.random.Generator, seconds: float, interval: float, skip: float) -> list[float]:
    """Beats in time with a few left out, never two in a row."""
    beats, left_out = [], True
    for at in _steady_times(rng, seconds, interval, 0.01):
        left_out = not left_out and bool(rng.random() < skip)
        if not left_out:
            beats.append(at)
    return beats


def kick_drum(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A bass drum: a sine that falls from the beater's click to 48–75 Hz."""
    wave = np.zeros(round(seconds * rate))
    t = _time(0.35, rate)
    bottom, sweep, life = rng.uniform(48, 75), rng.uniform(2.5, 5), rng.uniform(0.06, 0.11)
    tone = np.sin(_oscillator(bottom * (1 + sweep * np.exp(-t / 0.025)), rate, len(t))) * _decay(0.35, rate, life, 0.001)
    tone[: rate // 100] += _noise(rng, 0.01, rate, _band(1500, 5000))[: rate // 100] * np.linspace(
        rng.uniform(0.2, 0.6), 0, rate // 100
    )
    for at in _beats(rng, seconds, rng.uniform(0.42, 0.6), 0.1):
        _add(wave, np.tanh(1.5 * tone) * rng.uniform(0.85, 1), at, rate)
    return wave


def snare_drum(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A snare drum: two modes of the head and the rattle of the wires, with a roll now and then."""
    wave = np.zeros(round(seconds * rate))
    head, life, wires = rng.uniform(170, 250), rng.uniform(0.04, 0.08), rng.uniform(0.6, 1.2)
    t = _time(0.3, rate)
    interval = rng.uniform(0.4, 0.65)
    for beat in _beats(rng, seconds, interval, 0.1):
        stops = [0, 0.25, 0.5, 0.75] if rng.random() < 0.15 else [0]
        for part in stops:
            tone = np.sin(2 * np.pi * head * (1 + 0.3 * np.exp(-t / 0.01)) * t) + 0.6 * np.sin(2 * np.pi * head * 1.59 * t)
            rattle = _noise(rng, 0.3, rate, _band(1200, 7500, 3)) * _decay(0.3, rate, life, 0.001) * wires
            _add(
                wave,
                (tone * _decay(0.3, rate, life * 0.6, 0.001) * 0.8 + rattle) * rng.uniform(0.7, 1),
                beat + part * interval,
                rate,
            )
    return wave


def hi_hat(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A hi-hat in eighths: a bright metallic tick, open and longer at times."""
    wave = np.zeros(round(seconds * rate))
    closed, edge = rng.uniform(0.012, 0.028), rng.uniform(4200, 5600)
    partials = rng.uniform(3500, 7900, 14)
    for number, at in enumerate(_steady_times(rng, seconds, rng.uniform(0.16, 0.26), 0.01)):
        life = closed * (6 if rng.random() < 0.1 else 1)
        span = min(0.4, life * 8)
        t = _time(span, rate)
        metal = sum(np.sin(2 * np.pi * f * t + phase) for f, phase in zip(partials, rng.uniform(0, 6, 14), strict=True)) / 4
        tick = (_noise(rng, span, rate, _band(edge, 14000, 8)) + metal) * _decay(span, rate, life, 0.0007)
        _add(wave, tick * (1 if number % 2 == 0 else 0.6) * rng.uniform(0.85, 1), at, rate)
    return wave


def bird(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A songbird: phrases of a few quick whistled notes that sweep between 2.2 and 6.5 kHz."""
    wave = np.zeros(round(seconds * rate))
    centre = rng.uniform(2800, 5000)
    notes = [
        (rng.uniform(0.05, 0.13), *np.clip(centre * rng.uniform(0.75, 1.3, 2), 2200, 6500), rng.choice([0, 0, rng.uniform(25, 45)]))
        for _ in range(3)
    ]
    at = 0.0
    while at < seconds:
        for length, first, last, trill in [notes[rng.integers(3)]] * rng.integers(2, 5) + [notes[rng.integers(3)]]:
            t = _time(length, rate)
            glide = first * (last / first) ** (t / length) * (1 + 0.04 * np.sin(2 * np.pi * trill * t))
            phase = _oscillator(glide, rate, len(t))
            _add(wave, (np.sin(phase) + 0.08 * np.sin(2 * phase)) * np.sin(np.pi * t / length) ** 0.7, at, rate)
            at += length + rng.uniform(0.02, 0.05)
        at += rng.uniform(0.15, 0.5)
    return wave


def clock(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A clock's tick and tock: two short woody clicks in turn, exactly even."""
    wave = np.zeros(round(seconds * rate))
    body, interval = rng.uniform(1100, 2600), rng.choice([0.25, 0.5, 0.5, 0.6])
    for number, at in enumerate(_steady_times(rng, seconds, float(interval), 0.0)):
        t = _time(0.08, rate)
        pitch = body * (1 if number % 2 == 0 else 0.8)
        click = np.zeros(len(t))
        for ratio, height, life in ((1, 1, 0.006), (1.7, 0.7, 0.004), (2.9, 0.5, 0.002), (0.35, 0.35, 0.012)):
            click += height * np.sin(2 * np.pi * pitch * ratio * t) * _decay(0.08, rate, life, 0.0003)
        _add(wave, click, at, rate)
        _add(wave, 0.35 * click, at + 0.022, rate)  # the escapement's second touch
    return wave


def wind(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """Gusts: a low rumble that swells, and a howl whose pitch follows the strength."""
    size = round(seconds * rate)
    strength = 0.55 + 0.45 * _drift(rng, seconds, rate, rng.uniform(0.8, 1.8))
    edge, howl = rng.uniform(120, 260), rng.uniform(320, 600)
    rumble = _noise(rng, seconds, rate, lambda f: 1 / (1 + (f / edge) ** 1.6))
    narrow = _noise(rng, seconds, rate, lambda f: 1 / (1 + (f / 35) ** 4))
    quadrature = _noise(rng, seconds, rate, lambda f: 1 / (1 + (f / 35) ** 4))
    phase = _oscillator(howl * (0.7 + 0.7 * strength), rate, size)
    whistle = narrow * np.cos(phase) + quadrature * np.sin(phase)
    return (0.3 + 0.7 * strength**1.5) * (rumble + rng.uniform(0.5, 1.0) * strength * whistle)


GENERATORS: dict[str, Generator] = {
    "bell": bell,
    "bird": bird,
    "clock": clock,
    "dog": dog,
    "engine": engine,
    "footsteps": footsteps,
    "hi-hat": hi_hat,
    "kick drum": kick_drum,
    "rain": rain,
    "siren": siren,
    "snare drum": snare_drum,
    "wind": wind,
}
