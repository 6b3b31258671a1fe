"""The parts of the SDXL family. Imported only when a model is loaded, so torch may be at the top."""

import sys

# See shared_parts: diffusers and peft must not look for bitsandbytes.
sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
