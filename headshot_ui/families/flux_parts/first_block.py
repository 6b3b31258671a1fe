"""Drawing with FLUX.1 in fewer passes: where the first block changes little, what the others added last is added again.

First-block cache (ParaAttention's FBCache, after TeaCache, Liu et al. 2024, arXiv 2411.19108): of each step the first
block is computed. If the change it makes is nearly the one it made when all blocks were last computed (mean absolute
difference as a share of the mean), the sum of what the others changed then stands in for them. Decisions are those of
diffusers' ``FirstBlockCacheConfig``, but each picture of a batch has its own: the same seed gives the same picture in
any batch.

The decision looks at a number, so it cannot be part of a recorded step. The three pieces between decisions can: what
comes before it, what is computed without a cache, and what with one. The processor waits for the card once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from headshot_ui.families.protocol import Recorder, StepFunction

if TYPE_CHECKING:
    from headshot_ui.families.flux_parts.denoise import FlowStep

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class _Begin:
    """Up to the first block."""

    step: FlowStep

    @torch.no_grad()
    def __call__(
        self,
        pieces: torch.Tensor,
        share: torch.Tensor,
        guidance: torch.Tensor,
        prompts: torch.Tensor,
        pooled: torch.Tensor,
        words: torch.Tensor,
        places: torch.Tensor,
        *row: torch.Tensor,
    ) -> Tensors:
        """Tokens of picture and words after it, the change it made to the picture's, embedded time, cosines, sines."""
        _use(self.step, row)
        model, dtype = self.step.transformer, self.step.dtype
        before = model.x_embedder(pieces)
        numbers = [number.to(dtype) * 1000 for number in ((share, guidance) if self.step.guided else (share,))]
        time = model.time_text_embed(*numbers, pooled)
        turn = model.pos_embed(torch.cat((words, places), dim=0))
        said, tokens = model.transformer_blocks[0](
            hidden_states=before,
            encoder_hidden_states=model.context_embedder(prompts),
            temb=time,
            image_rotary_emb=turn,
        )
        return tokens, said, tokens - before, time, *turn


@dataclass(frozen=True)
class _Finish:
    """All blocks after the first."""

    step: FlowStep

    @torch.no_grad()
    def __call__(
        self,
        tokens: torch.Tensor,
        said: torch.Tensor,
        time: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        *row: torch.Tensor,
    ) -> Tensors:
        """The direction, in pieces, and what the blocks changed of the picture's tokens."""
        _use(self.step, row)
        model, first = self.step.transformer, tokens
        for block in (*model.transformer_blocks[1:], *model.single_transformer_blocks):
            said, tokens = block(
                hidden_states=tokens, encoder_hidden_states=said, temb=time, image_rotary_emb=(cosines, sines)
            )
        return _direction(model, tokens, time), tokens - first


@dataclass(frozen=True)
class _Repeat:
    """What they changed before instead of them."""

    step: FlowStep

    @torch.no_grad()
    def __call__(self, tokens: torch.Tensor, rest: torch.Tensor, time: torch.Tensor, *row: torch.Tensor) -> Tensors:
        _use(self.step, row)
        return (_direction(self.step.transformer, rest + tokens, time),)


def _direction(model: Any, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    direction: torch.Tensor = model.proj_out(model.norm_out(tokens, time))
    return direction.float()


def _use(step: FlowStep, row: Sequence[torch.Tensor]) -> None:
    if step.use is not None and row:
        step.use(row[0])


@dataclass
class _Known:
    """Of one picture, from the last step in which all blocks were computed."""

    change: torch.Tensor | None = None  # by the first block
    rest: torch.Tensor | None = None  # by the others


@dataclass
class FewerPasses:
    """Steps of one drawing, called as ``FlowStep`` is. Counts in ``reused`` how often blocks were left out."""

    step: FlowStep
    threshold: float  # 0: never
    begin: StepFunction
    finish: StepFunction
    repeat: StepFunction
    known: dict[int, _Known] = field(default_factory=dict)  # by the picture's place in the batch
    reused: int = 0

    @classmethod
    def of(cls, step: FlowStep, threshold: float, recorder: Recorder | None) -> FewerPasses:
        """None of the transformer's blocks may travel: they come in turn, and only in whole passes."""
        begin, finish, repeat = (
            piece if recorder is None else recorder(piece, step.transformer)
            for piece in (_Begin(step), _Finish(step), _Repeat(step))
        )
        return cls(step, threshold, begin, finish, repeat)

    def __call__(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        sigma: torch.Tensor,
        next_sigma: torch.Tensor,
        guidance: torch.Tensor,
        prompts: torch.Tensor,
        pooled: torch.Tensor,
        words: torch.Tensor,
        places: torch.Tensor,
        modulation: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``FlowStep.__call__``."""
        from headshot_ui.families.flux_parts.denoise import pack, unpack

        share = timestep.expand(1) / self.step.trained
        pieces = pack(latents).to(self.step.dtype)
        directions = []
        for place in range(len(latents)):
            one = slice(place, place + 1)
            rows = () if modulation is None else (modulation[one] if len(modulation) > 1 else modulation,)
            given = pieces[one], share, guidance[one], prompts[one], pooled[one], words, places, *rows
            directions.append(self._direction(self.known.setdefault(place, _Known()), given, rows))
        direction = unpack(torch.cat(directions), latents.shape[-2], latents.shape[-1])
        return latents + (next_sigma - sigma) * direction, latents - sigma * direction

    def _direction(self, known: _Known, given: Tensors, rows: Tensors) -> torch.Tensor:
        tokens, said, change, time, cosines, sines = self.begin(*given)
        if known.rest is not None and self._is_small(known, change):
            self.reused += 1
            return self.repeat(tokens, known.rest, time, *rows)[0]
        direction, known.rest = self.finish(tokens, said, time, cosines, sines, *rows)
        known.change = change
        return direction

    def _is_small(self, known: _Known, change: torch.Tensor) -> bool:
        """Waits for the card. What is no number is not small."""
        assert known.change is not None
        apart = (change - known.change).abs().mean() / known.change.abs().mean()
        return float(apart) < self.threshold
