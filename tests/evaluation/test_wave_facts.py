"""Silent, clipped and duplicate sounds are distinguished from good ones."""

import numpy as np

from soundmill.audio.flac import decode_mono, encode_flac
from soundmill.evaluation.wave_facts import shares, wave_facts


def test_facts_of_a_wave():
    tone = (0.5 * np.sin(np.arange(16000) / 10)).astype(np.float32)
    assert wave_facts(tone).num_samples == 16000
    assert not wave_facts(tone).silent
    assert not wave_facts(tone).clipped
    assert wave_facts(np.zeros(100, np.float32)).silent
    assert wave_facts(tone * 0.001).silent
    assert wave_facts(np.clip(tone * 10, -1, 1)).clipped
    peak = tone.copy()
    peak[5] = 1.0
    assert not wave_facts(peak).clipped  # one sample at full scale is a peak


def test_shares_count_every_copy_but_the_first():
    tone = np.sin(np.arange(1000)).astype(np.float32) * 0.5
    sounds = [wave_facts(wave) for wave in (tone, tone, tone, np.zeros(1000, np.float32))]
    assert shares(sounds) == {"silent": 0.25, "clipped": 0.0, "duplicate": 0.5}
    assert wave_facts(tone).digest == wave_facts(decode_mono(encode_flac(tone, 16000))).digest  # equal as 16-bit sound
    assert shares([]) == {"silent": 0.0, "clipped": 0.0, "duplicate": 0.0}
