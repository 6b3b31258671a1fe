"""Shapes of the demo networks: the classes of the real Stable Diffusion XL, only small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase

TEXT_WIDTHS = (96, 128)
PROJECTION = 128
#: The latents' standard deviation is made 1 / SCALING_FACTOR when the VAE is saved (train_vae.normalise).
SCALING_FACTOR = 0.5


def make_vae(smoke: bool = False) -> AutoencoderKL:
    """256 px ↔ 32 x 32 latents of 4 channels."""
    from diffusers import AutoencoderKL

    widths = (8, 8, 16, 16) if smoke else (32, 64, 96, 128)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=256,
        scaling_factor=SCALING_FACTOR,
        force_upcast=False,
    )


def make_unet(smoke: bool = False) -> UNet2DConditionModel:
    """Three blocks with SDXL's names of parts; the outer one without attention, as in SDXL."""
    from diffusers import UNet2DConditionModel

    widths, heads, depth = ((32, 32, 64), (1, 1, 2), (1, 1, 1)) if smoke else ((64, 128, 160), (2, 4, 5), (1, 1, 1))
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=depth,
        attention_head_dim=heads,
        cross_attention_dim=sum(TEXT_WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=PROJECTION + 6 * 32,
        use_linear_projection=True,
        norm_num_groups=16,
    )


def make_refiner(smoke: bool = False) -> UNet2DConditionModel:
    """The same kind of network, smaller: it sees the second text encoder only, and five numbers instead of six."""
    from diffusers import UNet2DConditionModel

    widths, heads = ((32, 32, 64), (1, 1, 2)) if smoke else ((64, 64, 80), (2, 2, 2))
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=heads,
        cross_attention_dim=TEXT_WIDTHS[1],
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=PROJECTION + 5 * 32,
        use_linear_projection=True,
        norm_num_groups=16,
    )


def make_text_encoders(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Two CLIP text encoders of different width, so that mixing them up cannot go unnoticed."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def config(tokenizer: PreTrainedTokenizerBase, width: int, act: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=3,
            num_attention_heads=width // 32,
            max_position_embeddings=77,
            projection_dim=PROJECTION,
            hidden_act=act,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    return (
        CLIPTextModel(config(first, TEXT_WIDTHS[0], "quick_gelu")),
        CLIPTextModelWithProjection(config(second, TEXT_WIDTHS[1], "gelu")),
    )


def make_scheduler() -> EulerDiscreteScheduler:
    """Velocity prediction with zero terminal signal-to-noise ratio (arXiv 2305.08891), trailing timesteps."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        steps_offset=1,
        interpolation_type="linear",
    )


def signal_levels() -> torch.Tensor:
    """(1000,) cumulative signal levels (alphas_cumprod) of the demo's noise schedule, float32."""
    return make_scheduler().alphas_cumprod.float()
