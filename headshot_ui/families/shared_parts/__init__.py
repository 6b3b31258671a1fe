"""What more than one family needs of a model: its files, its weights, CLIP's words, the VAE's pictures.

Nothing here knows a family. Imported only when a model is looked at or loaded; ``files`` and ``words`` need no torch.
"""

import sys

# diffusers and peft import bitsandbytes wherever it is installed, to look for quantised models. That took 1.8 s and
# 51 MB in every process, writes a warning on some processors, and would tie all loading to a library that only one
# optimizer needs. None here is Python's own way of saying that a module is not there; training/optimizers.py takes it
# back when bitsandbytes is wanted.
sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
