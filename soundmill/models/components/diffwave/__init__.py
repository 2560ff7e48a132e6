"""DiffWave (Kong et al. 2021, arXiv:2009.09761): diffusion of waves, here as a vocoder trained on the corpus."""

from soundmill.models.components.contracts import Kind
from soundmill.models.components.diffwave.params import DiffWaveParams

KIND = Kind(DiffWaveParams, maker=f"{__name__}.make", component=f"{__name__}.vocoder")
