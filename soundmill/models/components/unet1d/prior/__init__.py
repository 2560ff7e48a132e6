"""Diffusion over the latents of a wave codec by the 1-D U-Net: by label, by caption or unconditional."""
