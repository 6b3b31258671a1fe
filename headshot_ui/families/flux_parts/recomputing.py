"""Gradient checkpointing of some or all blocks: what they computed is computed again instead of kept.

All blocks of FLUX.1 have about the same activations and take about the same time, so a share of them saves that share
of the memory for that share of the time. They are spread evenly.
"""

from __future__ import annotations

from typing import Any

from torch.utils.checkpoint import checkpoint


def recompute(transformer: Any, share: float) -> None:
    """Have the ``share`` of all blocks, 0 to 1, recompute. Gradients are the same to the last bit."""
    if share <= 0:
        transformer.disable_gradient_checkpointing()
        return
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    chosen = {id(block) for number, block in enumerate(blocks) if int((number + 1) * share) > int(number * share)}

    def carried_out(block: Any, *arguments: Any) -> Any:
        """Nothing is random in the transformer, and keeping the generators' states waits."""
        if id(block) not in chosen:
            return block(*arguments)
        return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)

    transformer.enable_gradient_checkpointing(carried_out)
