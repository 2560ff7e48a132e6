"""The text-conditioned U-Net that denoises latents: diffusers' UNet2DConditionModel."""

from torch import Tensor, nn

from soundmill.models.tango.params import UNetParams


class TextUNet(nn.Module):
    """Predicts from (xt, t, states, mask): [B, z, frames, bands], [B], [B, L, text_width], boolean [B, L] (true: a token).

    It has 865,933,768 parameters at TANGO's sizes.
    """

    def __init__(self, params: UNetParams, latent_channels: int):
        from diffusers import UNet2DConditionModel

        super().__init__()
        levels = range(len(params.widths))
        self.unet = UNet2DConditionModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=params.widths,
            down_block_types=["CrossAttnDownBlock2D" if level in params.text_levels else "DownBlock2D" for level in levels],
            up_block_types=["CrossAttnUpBlock2D" if level in params.text_levels else "UpBlock2D" for level in reversed(levels)],
            layers_per_block=params.blocks,
            cross_attention_dim=params.text_width,
            attention_head_dim=params.heads,  # in diffusers this is the number of heads
            use_linear_projection=True,
            norm_num_groups=params.groups,
            norm_eps=1e-5,
        )
        if params.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()

    def forward(self, xt: Tensor, t: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return self.unet(xt, t, encoder_hidden_states=states, encoder_attention_mask=mask).sample
