"""The family `tango`: sounds from text, by diffusion over latents of log-mels (the interface of models/registry.py)."""

TITLE = "text to sound: diffusion over latents of log-mels, told what to draw by a frozen text encoder"
PAPER = (
    "Ghosal, Majumder, Mehrish & Poria 2023, Text-to-audio generation using instruction-tuned LLM and latent diffusion model "
    "(arXiv:2304.13731)"
)
