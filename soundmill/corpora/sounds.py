"""Sound-event generators of the embedded corpus, with numpy only: `f(rng, seconds, rate) -> wave [T]` float64.

Pitch, pace, brightness and small irregularities are drawn from `rng`; the caller sets the level.
"""

from collections.abc import Callable

import numpy as np

Wave = np.ndarray
Generator = Callable[[np.random.Generator, float, int], Wave]


def time_axis(seconds: float, rate: int) -> Wave:
    return np.arange(round(seconds * rate)) / rate


def oscillator(frequency: Wave | float, rate: int, size: int) -> Wave:
    """Phase [T] in radians of an oscillator of constant or varying frequency in Hz."""
    return 2 * np.pi * np.cumsum(np.broadcast_to(frequency, size)) / rate


def _shaped(wave: Wave, rate: int, gain: Callable[[Wave], Wave]) -> Wave:
    """Zero-phase filter with this gain by frequency."""
    # Zero-padded, so that the end does not wrap around, to a length with a fast transform.
    size = 1 << (len(wave) + rate // 20 - 1).bit_length() if len(wave) < rate else _smooth_size(len(wave) + rate // 20)
    spectrum = np.fft.rfft(wave, size)
    return np.fft.irfft(spectrum * gain(np.fft.rfftfreq(size, 1 / rate)), size)[: len(wave)]


def _smooth_size(size: int) -> int:
    """The next length with a fast transform: 1, 3, 5 … 15 times 2^k."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


def band(low: float, high: float, order: float = 4.0) -> Callable[[Wave], Wave]:
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


def noise(rng: np.random.Generator, seconds: float, rate: int, gain: Callable[[Wave], Wave]) -> Wave:
    noise = _shaped(rng.standard_normal(round(seconds * rate)), rate, gain)
    return noise / max(np.sqrt(np.mean(noise**2)), 1e-12)


def _drift(rng: np.random.Generator, seconds: float, rate: int, period: float) -> Wave:
    """A smooth random curve [T] in [-1, 1] with a knot every `period` seconds."""
    size = round(seconds * rate)
    knots = rng.uniform(-1, 1, int(np.ceil(seconds / period)) + 3)
    position = np.arange(size) / rate / period
    left = position.astype(int)
    blend = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    return knots[left] * (1 - blend) + knots[left + 1] * blend


def decay(seconds: float, rate: int, half_life: float, attack: float = 0.002) -> Wave:
    t = time_axis(seconds, rate)
    return np.exp2(-t / half_life) * np.minimum(1, t / attack)


def add(wave: Wave, sound: Wave, at: float, rate: int) -> None:
    """Add a sound at a time in seconds, cut at the end of the wave."""
    start = round(at * rate)
    part = sound[: max(0, len(wave) - start)]
    wave[start : start + len(part)] += part


def _in_a_room(rng: np.random.Generator, wave: Wave, rate: int, decay: float, level: float) -> Wave:
    """Add reverberation: noise with time constant `decay` in seconds, at `level` relative to the sound."""
    echo = rng.standard_normal(round(6 * decay * rate)) * np.exp(-time_axis(6 * decay, rate) / decay)
    size = _smooth_size(len(wave) + len(echo))
    wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(echo, size), size)[: len(wave)]
    return wave + level * wet / np.sqrt(np.sum(echo**2))


def _steady_times(rng: np.random.Generator, seconds: float, interval: float, jitter: float) -> list[float]:
    """Times every `interval` seconds from 0, each but the first shifted by up to `jitter` intervals."""
    count = int(np.ceil(seconds / interval))
    times = [(number + (rng.uniform(-jitter, jitter) if number else 0)) * interval for number in range(count)]
    return [float(time) for time in times if time < seconds]


def dog(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """Barks in ones, twos and threes: a voice that jumps up and falls within a fifth of a second, in a room."""
    wave = np.zeros(round(seconds * rate))
    pitch, length, tilt = rng.uniform(950, 1300), rng.uniform(0.17, 0.25), rng.uniform(0.1, 0.35)
    mouth, nose = rng.uniform(1200, 1450), rng.uniform(2300, 2900)
    throat = _resonances((mouth, 250, 1.0), (nose, 550, 1.0), (4000, 1500, 0.2), (500, 250, 0.15))
    at = 0.0
    while at < seconds:
        for _ in range(rng.integers(1, 4)):
            span = length * rng.uniform(0.9, 1.1)
            t = time_axis(span, rate)
            jump = np.exp(-(((t / span - 0.31) / 0.28) ** 2))
            wobble = 1 + 0.05 * _drift(rng, span, rate, 0.004)
            phase = oscillator(pitch * rng.uniform(0.96, 1.04) * (0.39 + 0.61 * jump) * wobble, rate, len(t))
            voice = sum(np.sin(k * phase + 0.7 * k * k) / k**tilt for k in range(1, int(7000 / pitch) + 1))
            breath = noise(rng, span, rate, band(300, 7000)) * rng.uniform(0.1, 0.3)
            loud = np.minimum(1, t / 0.025) * np.exp(-2.9 * (t / span) ** 1.4) * np.minimum(1, (span - t) / 0.01)
            add(wave, _shaped(voice / voice.std() + breath, rate, throat) * loud, at, rate)
            at += span + rng.uniform(0.15, 0.3)
        at += rng.uniform(0.1, 0.45)
    return _in_a_room(rng, wave, rate, 0.022, 0.5)


def rain(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A hiss that hardly moves, and many drops on leaves and roof."""
    hiss = noise(rng, seconds, rate, band(rng.uniform(500, 1400), rng.uniform(5000, 9000), 2.0))
    wave = hiss * (1 + 0.15 * _drift(rng, seconds, rate, 1.5)) * 0.5
    drops = [
        np.sin(2 * np.pi * frequency * time_axis(0.012, rate)) * decay(0.012, rate, half_life, 0.0005)
        for frequency, half_life in zip(rng.uniform(1500, 6500, 16), rng.uniform(0.001, 0.003, 16), strict=True)
    ]
    for _ in range(round(seconds * rng.uniform(60, 220))):
        add(wave, drops[rng.integers(16)] * rng.pareto(2.5) * 0.9, rng.uniform(0, seconds), rate)
    return np.clip(wave, -4, 4)


def siren(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """An emergency siren: a slow wail, a quick yelp, or two tones in turn."""
    t = time_axis(seconds, rate)
    low = rng.uniform(450, 700)
    high = low * rng.uniform(1.7, 2.5)
    kind = rng.choice(["wail", "wail", "yelp", "two tones"])
    cycle = (t / {"wail": rng.uniform(2.0, 3.5), "yelp": rng.uniform(0.4, 0.7), "two tones": rng.uniform(0.9, 1.3)}[kind]) % 1
    if kind == "two tones":
        frequency = np.where(cycle < 0.5, low, low * 4 / 3)
    else:
        frequency = low * (high / low) ** (0.5 - 0.5 * np.cos(2 * np.pi * cycle))
    phase = oscillator(frequency, rate, len(t))
    dullness = rng.uniform(0.9, 1.5)
    horn = sum(np.sin(k * phase) / k**dullness for k in (1, 2, 3, 4, 5))
    return _shaped(horn, rate, _resonances((1100, 900, 1.0), (2600, 900, 0.5))) * (1 + 0.1 * _drift(rng, seconds, rate, 0.8))


def engine(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A motor idling: some 30 uneven bursts of exhaust a second through a muffler, with valve clatter at twice that."""
    size = round(seconds * rate)
    slow, quick = _drift(rng, seconds, rate, rng.uniform(1.0, 3.0)), _drift(rng, seconds, rate, 0.04)
    phase = np.cumsum(rng.uniform(25, 37) * (1 + 0.06 * slow) * (1 + 0.04 * quick)) / rate
    body = rng.uniform(180, 260)
    muffler = _resonances((body, body / 2, 1.0), (body * 2.4, body, 0.19), (body * 6, body * 3, 0.7), (1500, 900, 0.35))
    exhaust = _shaped(rng.standard_normal(size) * (np.exp(-4 * (phase % 1)) + 0.43), rate, muffler)
    clatter = noise(rng, seconds, rate, band(rng.uniform(550, 1200), 5500, 2)) * (np.exp(-8 * ((2 * phase) % 1)) + 0.03)
    return exhaust / exhaust.std() + rng.uniform(0.5, 0.75) * clatter / clatter.std()


def bell(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A struck bell: inharmonic partials (hum, prime, minor third, fifth, octave …) that ring out."""
    wave = np.zeros(round(seconds * rate))
    prime, ring = rng.uniform(330, 900), rng.uniform(0.35, 0.9)
    partials = [(0.5, 0.5, 1.6), (1, 0.9, 1.2), (1.19, 0.7, 0.9), (1.5, 0.35, 0.7), (2, 1, 0.8), (2.51, 0.3, 0.4), (2.66, 0.3, 0.4)]
    partials += [(3.01, 0.35, 0.35), (4.17, 0.3, 0.25), (5.43, 0.2, 0.15)]
    for at in _steady_times(rng, seconds, rng.uniform(0.9, 1.6), 0.03):
        blow = rng.uniform(0.8, 1)
        for ratio, height, life in partials:
            t = time_axis(min(11 * life * ring, seconds - at), rate)  # 66 dB down
            beating = 1 + 0.15 * np.cos(2 * np.pi * rng.uniform(0.5, 3) * t)
            tone = np.sin(2 * np.pi * prime * ratio * t + rng.uniform(0, 6)) * np.exp2(-t / (life * ring)) * beating
            add(wave, blow * height * tone * np.minimum(1, t / 0.001), at, rate)
        click = noise(rng, 0.02, rate, band(2000, 7000)) * np.linspace(0.5, 0, round(0.02 * rate))
        add(wave, blow * click, at, rate)
    return wave


def footsteps(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """Somebody walking on a hard floor: heel, a tenth of a second later the ball of the foot, and the faint rub of the sole."""
    wave = np.zeros(round(seconds * rate))
    dull, tap, rub = rng.uniform(160, 240), rng.uniform(380, 500), rng.uniform(0.03, 0.05)
    for number, at in enumerate(_steady_times(rng, seconds, rng.uniform(0.4, 0.5), 0.05)):
        side = 1.1 if number % 2 else 1.0
        heel = noise(rng, 0.08, rate, band(60, dull * side, 3)) * decay(0.08, rate, 0.01, 0.003)
        touch = noise(rng, 0.04, rate, band(tap * side, tap * 3, 3)) * decay(0.04, rate, 0.007, 0.0005) * rng.uniform(0.17, 0.25)
        span = rng.uniform(0.07, 0.09)
        sole = noise(rng, span, rate, band(1200, 3400, 2)) * np.sin(np.pi * time_axis(span, rate) / span) ** 1.5
        parts = [(heel * rng.uniform(0.8, 1), 0), (touch, 0), (0.45 * touch, rng.uniform(0.1, 0.13)), (rub * sole, 0.045)]
        for part, later in parts:
            add(wave, part, at + later, rate)
    return _in_a_room(rng, wave, rate, rng.uniform(0.028, 0.036), 0.16)


def _beats(rng: np.random.Generator, seconds: float, interval: float) -> list[float]:
    """Beats in time with a few left out, never two in a row."""
    beats, left_out = [], True
    for at in _steady_times(rng, seconds, interval, 0.01):
        left_out = not left_out and bool(rng.random() < 0.1)
        if not left_out:
            beats.append(at)
    return beats


def kick_drum(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A bass drum: a sine that falls from the beater's click to 48–75 Hz."""
    wave = np.zeros(round(seconds * rate))
    t = time_axis(0.35, rate)
    bottom, sweep, life = rng.uniform(48, 75), rng.uniform(2.5, 5), rng.uniform(0.06, 0.11)
    tone = np.sin(oscillator(bottom * (1 + sweep * np.exp(-t / 0.025)), rate, len(t))) * decay(0.35, rate, life, 0.001)
    click = noise(rng, 0.01, rate, band(1500, 5000))[: rate // 100]
    tone[: rate // 100] += click * np.linspace(rng.uniform(0.2, 0.6), 0, rate // 100)
    for at in _beats(rng, seconds, rng.uniform(0.42, 0.6)):
        add(wave, np.tanh(1.5 * tone) * rng.uniform(0.85, 1), at, rate)
    return wave


def snare_drum(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A snare drum: two modes of the head and the rattle of the wires, with a roll now and then."""
    wave = np.zeros(round(seconds * rate))
    head, life, wires = rng.uniform(170, 250), rng.uniform(0.04, 0.08), rng.uniform(0.6, 1.2)
    t = time_axis(0.3, rate)
    interval = rng.uniform(0.4, 0.65)
    for beat in _beats(rng, seconds, interval):
        stops = [0, 0.25, 0.5, 0.75] if rng.random() < 0.15 else [0]
        for part in stops:
            tone = np.sin(2 * np.pi * head * (1 + 0.3 * np.exp(-t / 0.01)) * t) + 0.6 * np.sin(2 * np.pi * head * 1.59 * t)
            rattle = noise(rng, 0.3, rate, band(1200, 7500, 3)) * decay(0.3, rate, life, 0.001) * wires
            stroke = (tone * decay(0.3, rate, life * 0.6, 0.001) * 0.8 + rattle) * rng.uniform(0.7, 1)
            add(wave, stroke, beat + part * interval, rate)
    return wave


def hi_hat(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A hi-hat in eighths: a bright metallic tick, open and longer at times."""
    wave = np.zeros(round(seconds * rate))
    closed, edge = rng.uniform(0.012, 0.028), rng.uniform(4200, 5600)
    partials = rng.uniform(3500, 7900, 14)
    for number, at in enumerate(_steady_times(rng, seconds, rng.uniform(0.16, 0.26), 0.01)):
        life = closed * (6 if rng.random() < 0.1 else 1)
        span = min(0.4, life * 8)
        t = time_axis(span, rate)
        metal = sum(np.sin(2 * np.pi * f * t + phase) for f, phase in zip(partials, rng.uniform(0, 6, 14), strict=True)) / 4
        tick = (noise(rng, span, rate, band(edge, 14000, 8)) + metal) * decay(span, rate, life, 0.0007)
        add(wave, tick * (1 if number % 2 == 0 else 0.6) * rng.uniform(0.85, 1), at, rate)
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
            t = time_axis(length, rate)
            glide = first * (last / first) ** (t / length) * (1 + 0.04 * np.sin(2 * np.pi * trill * t))
            phase = oscillator(glide, rate, len(t))
            add(wave, (np.sin(phase) + 0.08 * np.sin(2 * phase)) * np.sin(np.pi * t / length) ** 0.7, at, rate)
            at += length + rng.uniform(0.02, 0.05)
        at += rng.uniform(0.15, 0.5)
    return wave


def clock(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """A clock's tick and tock: two dry clicks in turn, exactly even, each with the escapement's second touch."""
    wave = np.zeros(round(seconds * rate))
    body, interval = rng.uniform(1800, 3400), float(rng.choice([0.25, 0.5, 0.5, 0.6]))
    touches = []
    for pitch in (body, body * 0.8):
        snap = noise(rng, 0.03, rate, band(pitch, pitch * 2.2, 3)) * decay(0.03, rate, 0.0018, 0.0002)
        wood = noise(rng, 0.03, rate, band(pitch * 0.25, pitch * 0.5, 4)) * decay(0.03, rate, 0.004, 0.0005)
        touches.append(snap + 0.25 * wood)
    for number, at in enumerate(_steady_times(rng, seconds, interval, 0.0)):
        add(wave, touches[number % 2], at, rate)
        add(wave, 0.45 * touches[number % 2], at + 0.018 + 0.004 * (number % 2), rate)
    return wave


def wind(rng: np.random.Generator, seconds: float, rate: int) -> Wave:
    """Gusts: a low rumble that swells and ruffles, and a faint howl whose pitch follows the strength."""
    size = round(seconds * rate)
    strength = 0.55 + 0.45 * _drift(rng, seconds, rate, rng.uniform(0.8, 1.8))
    edge, howl = rng.uniform(90, 200), rng.uniform(320, 600)
    rumble = noise(rng, seconds, rate, lambda f: 1 / (1 + (f / edge) ** 1.9)) * (1 + 0.4 * _drift(rng, seconds, rate, 0.07))
    rustle = noise(rng, seconds, rate, band(300, 1200, 2)) * strength
    narrow, quadrature = (noise(rng, seconds, rate, lambda f: 1 / (1 + (f / 35) ** 4)) for _ in range(2))
    phase = oscillator(howl * (0.7 + 0.7 * strength), rate, size)
    whistle = (narrow * np.cos(phase) + quadrature * np.sin(phase)) * strength
    return (0.3 + 0.7 * strength**1.5) * (rumble + 0.12 * rustle + rng.uniform(0.2, 0.5) * whistle)


GENERATORS: dict[str, Generator] = {
    generator.__name__.replace("_", " "): generator
    for generator in (bell, bird, clock, dog, engine, footsteps, kick_drum, rain, siren, snare_drum, wind)
} | {"hi-hat": hi_hat}
