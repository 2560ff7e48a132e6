"""What generates of families over the latents of a codec of waves: v-diffusion by the 1-D U-Net, by label or unconditional."""
