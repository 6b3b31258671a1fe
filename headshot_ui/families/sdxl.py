"""Stable Diffusion XL and whatever has its layout: one UNet, two CLIP text encoders, one VAE.

The work is in ``sdxl_parts``; this file is what discovery finds, and loads no torch by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headshot_ui.families.bases import find_bases

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo, LoadedBase
    from headshot_ui.settings import Settings


class SdxlFamily:
    """See ``protocol.Family``."""

    id = "sdxl"

    def bases(self, settings: Settings) -> tuple[BaseInfo, ...]:
        """Base models of this family found under ``settings.models_dir``."""
        return find_bases(self.id, settings)

    def load(self, info: BaseInfo, settings: Settings) -> LoadedBase:
        """Read the model. Raises ModelError naming the file that is missing or damaged."""
        from headshot_ui.families.sdxl_parts.loaded import LoadedSdxl

        return LoadedSdxl.read(info, settings)


FAMILY = SdxlFamily()
