"""The family `ddpm_mel`: diffusion on mel-spectrogram pictures, unconditional or by label (the interface of models/registry.py)."""

TITLE = "diffusion on pictures of mel spectrograms, unconditional or by label; phases by Griffin-Lim"
PAPER = "Ho, Jain & Abbeel 2020, Denoising diffusion probabilistic models (arXiv:2006.11239)"
