"""Shapes of the demo FLUX: the classes of the real FLUX.1-dev, only small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

CLIP_WIDTH, T5_WIDTH = 64, 96
CHANNELS = 16  # of latents
CELLS = 32  # latent cells along a picture of 256 px
#: Everything together, as it is shipped: the room that the other demo models leave of 60 MB.
MOST_BYTES = 7_800_000


def make_vae(smoke: bool = False) -> AutoencoderKL:
    """256 px ↔ 32 x 32 latents of 16 channels; like FLUX's own without the two 1 x 1 convolutions."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 16, 16) if smoke else (24, 32, 40, 56),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=256,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,  # the latents' own is 1 with mean 0 when it is saved (train_flux_vae.normalise)
        shift_factor=0.0,
        force_upcast=False,
    )


def make_transformer(smoke: bool = False) -> FluxTransformer2DModel:
    """One double and eight single blocks, 128 wide, with guidance embedding as in dev."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1 if smoke else 8,
        attention_head_dim=32,
        num_attention_heads=1 if smoke else 4,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


def make_text_encoders(
    clip_words: PreTrainedTokenizerBase, t5_words: PreTrainedTokenizerBase
) -> tuple[CLIPTextModel, T5EncoderModel]:
    """CLIP, of which only the pooled vector is used, and T5, of which every token is."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip = CLIPTextConfig(
        vocab_size=len(clip_words),
        hidden_size=CLIP_WIDTH,
        intermediate_size=4 * CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=CLIP_WIDTH,
        hidden_act="quick_gelu",
        bos_token_id=clip_words.bos_token_id,
        eos_token_id=clip_words.eos_token_id,
        pad_token_id=clip_words.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=len(t5_words),
        d_model=T5_WIDTH,
        d_kv=24,
        d_ff=2 * T5_WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's own: more noise the larger the picture."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def packed(latents: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h w / 4, 4 C): squares of 2 x 2 cells become tokens, as ``FluxPipeline._pack_latents``."""
    count, channels, height, width = latents.shape
    squares = latents.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(count, height * width // 4, 4 * channels)


def picture_ids(height: int, width: int, device: torch.device) -> Tensor:
    """(h w / 4, 3): 0, row and column of each token of h x w latent cells."""
    ids = torch.zeros(height // 2, width // 2, 3, device=device)
    ids[..., 1] += torch.arange(height // 2, device=device)[:, None]
    ids[..., 2] += torch.arange(width // 2, device=device)
    return ids.reshape(-1, 3)
