"""Modulation computed beforehand, so that the layers which make it need no room on a card.

In FLUX.1 each block shifts, scales and gates its activations by numbers that linear layers make of timestep, guidance
and pooled prompt, and of nothing else (AdaLN-Zero, Peebles & Xie 2022, arXiv 2212.09748). These layers are 3.23 of the
11.9 billion parameters: 6.5 GB in 16 bit. Where all timesteps of a run are known they are asked once for each, one
layer after the other, and a row of 1,056,768 numbers per step stands in for them (2.1 MB in 16 bit): 28 steps are
59 MB, a training of 1,000 steps 2.1 GB of main memory. A table of every timestep and every caption would be larger
than the model.

The rows are made by the layers themselves with inputs of the same shape as in a step, so on the same device they are
bit-equal to what the step would have computed. What LoRAs do to these layers is in them: put LoRAs on first, and make
a new table when one is changed. A LoRA that is still learning must leave these layers alone.

Shapes: S steps, B rows of a step, N numbers of a row, P width of the pooled prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call

#: Reads a weight by its name in the transformer's files, e.g. "norm_out.linear.weight".
Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Condition:
    """What the modulation of one step depends on, as the transformer is given it."""

    timesteps: torch.Tensor  # (B,) in [0, 1]
    guidance: torch.Tensor | None  # (B,); None for a transformer without guidance embedding
    pooled: torch.Tensor  # (B, P)

    def key(self) -> tuple[bytes, ...]:
        """One for each picture; equal ones have equal rows."""
        return tuple(_keys(self))


@dataclass(frozen=True)
class Part:
    """One of the layers and its place in a row."""

    owner: str  # the module whose ``linear`` it is, e.g. "transformer_blocks.0.norm1"
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.owner}.linear"


def parts_of(transformer: torch.nn.Module) -> tuple[Part, ...]:
    """All modulation layers of a FluxTransformer2DModel, in the order in which a pass needs them."""
    owners = []
    for index in range(len(_child(transformer, "transformer_blocks"))):
        owners += [f"transformer_blocks.{index}.norm1", f"transformer_blocks.{index}.norm1_context"]
    owners += [
        f"single_transformer_blocks.{i}.norm" for i in range(len(_child(transformer, "single_transformer_blocks")))
    ]
    parts, start = [], 0
    for owner in (*owners, "norm_out"):
        stop = start + int(_linear(transformer, owner).out_features)
        parts.append(Part(owner, start, stop))
        start = stop
    return tuple(parts)


# --- beforehand -----------------------------------------------------------------------------------
@torch.no_grad()
def table(
    transformer: torch.nn.Module,
    conditions: Sequence[Condition],
    device: torch.device | str,
    dtype: torch.dtype,
    read: Read | None = None,
    told: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """The modulation of all steps: (S, B, N) in ``dtype``, in main memory.

    ``dtype`` is what the transformer computes in. Layers lie wherever they lie and are on ``device`` one at a time;
    those without weights (on "meta") are read by ``read``. ``told`` is called with (layers done, layers in all) and
    may raise to cancel. Raises ValueError where the conditions differ in shape or a LoRA is learning these layers.
    """
    if not conditions or len({(c.timesteps.shape, c.guidance is None, c.pooled.shape) for c in conditions}) != 1:
        raise ValueError("All steps of a table need conditions of the same shape, and at least one.")
    parts = parts_of(transformer)
    for part in parts:
        if any(weight.requires_grad and "lora" in name for name, weight in _weights(transformer, part.name).items()):
            raise ValueError("A LoRA that is learning changes the modulation, so it cannot be computed beforehand.")
    embedded = _embedded(transformer, conditions, device, dtype, read)  # S of (B, dim), through the SiLU
    rows = torch.empty(len(conditions), len(conditions[0].pooled), parts[-1].stop, dtype=dtype)
    for done, part in enumerate(parts):
        if told is not None:
            told(done, len(parts))
        layer = transformer.get_submodule(part.name)
        weights = _on_device(transformer, part.name, device, dtype, read)
        # One step at a time: a product with more rows may be computed by another kernel, with other last bits.
        made = torch.stack([functional_call(layer, weights, (step,)) for step in embedded])
        rows[:, :, part.start : part.stop] = made.to("cpu")
    if told is not None:
        told(len(parts), len(parts))
    return rows


@dataclass(frozen=True)
class Rows:
    """Rows for single pictures, found by what they are made of: a training looks its next step up here.

    Equal conditions share a row, so a training never has more rows than timesteps times captions.
    """

    table: torch.Tensor  # (rows, N) in main memory
    places: Mapping[bytes, int]

    def of(self, conditions: Condition) -> torch.Tensor:
        """(B, N) for B pictures, in main memory. Raises KeyError for a condition that none was made for."""
        return self.table[[self.places[key] for key in _keys(conditions)]]


def rows_for(
    transformer: torch.nn.Module,
    conditions: Iterable[Condition],
    device: torch.device | str,
    dtype: torch.dtype,
    read: Read | None = None,
    told: Callable[[int, int], None] | None = None,
) -> Rows:
    """A row for every picture of all ``conditions``, e.g. those of a whole training; else as ``table``.

    Rows are made one by one, so a step of one picture gets what it would compute, and one of several nearly that.
    """
    single: dict[bytes, Condition] = {}
    for several in conditions:
        for place, key in enumerate(_keys(several)):
            if key not in single:
                guidance = None if several.guidance is None else several.guidance[place : place + 1].clone()
                one = several.timesteps[place : place + 1].clone(), several.pooled[place : place + 1].clone()
                single[key] = Condition(one[0], guidance, one[1])
    made = table(transformer, list(single.values()), device, dtype, read, told)
    return Rows(made[:, 0], {key: row for row, key in enumerate(single)})


def _keys(conditions: Condition) -> list[bytes]:
    """One for each picture."""
    numbers = [conditions.timesteps[:, None]]
    numbers += [] if conditions.guidance is None else [conditions.guidance[:, None]]
    rows = torch.cat([part.detach().to("cpu", torch.float32) for part in (*numbers, conditions.pooled)], 1)
    return [row.tobytes() for row in rows.numpy()]


def _embedded(
    transformer: torch.nn.Module,
    conditions: Sequence[Condition],
    device: torch.device | str,
    dtype: torch.dtype,
    read: Read | None,
) -> list[torch.Tensor]:
    """What the layers are given in each step: timestep, guidance and pooled prompt embedded, and a SiLU."""
    embed = _child(transformer, "time_text_embed")
    weights = _on_device(transformer, "time_text_embed", device, dtype, read)
    out = []
    for condition in conditions:
        # The transformer multiplies in its own number format, which rounds; so it must be done here.
        numbers = [condition.timesteps] if condition.guidance is None else [condition.timesteps, condition.guidance]
        scaled = [number.to(device).to(dtype) * 1000 for number in numbers]
        made = functional_call(embed, weights, (*scaled, condition.pooled.to(device).to(dtype)))
        out.append(torch.nn.functional.silu(made))
    return out


def _on_device(
    transformer: torch.nn.Module, name: str, device: torch.device | str, dtype: torch.dtype, read: Read | None
) -> dict[str, torch.Tensor]:
    """The weights of a module for ``functional_call``: the model's own in ``dtype``, those of LoRAs as they are."""
    out = {}
    for key, weight in _weights(transformer, name).items():
        if weight.is_meta:
            if read is None:
                raise ValueError(f"The weights of {name} are not in memory, and nothing was given to read them with.")
            weight = read(f"{name}.{key}".replace(".base_layer.", "."))
        moved = weight.detach().to(device)
        out[key] = moved.to(dtype) if moved.is_floating_point() and "lora" not in key else moved
    return out


def _weights(transformer: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
    module = transformer.get_submodule(name)
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _child(transformer: torch.nn.Module, name: str) -> Any:
    return transformer.get_submodule(name)


def _linear(transformer: torch.nn.Module, owner: str) -> Any:
    layer: Any = transformer.get_submodule(f"{owner}.linear")
    return getattr(layer, "base_layer", layer)


# --- instead of the layers ------------------------------------------------------------------------
class _Now:
    """The row that blocks read, at an address that does not change: a recorded step knows addresses only."""

    def __init__(self) -> None:
        self.row: torch.Tensor | None = None
        self._rows: dict[tuple[Any, ...], torch.Tensor] = {}  # none is given back while a recording may know it

    def put(self, row: torch.Tensor) -> None:
        key = (tuple(row.shape), row.dtype, row.device)
        if key not in self._rows:
            self._rows[key] = torch.empty_like(row, memory_format=torch.contiguous_format)
        self.row = self._rows[key]
        self.row.copy_(row)


class _FromRow(torch.nn.Module):
    """Stands where a modulation layer was."""

    def __init__(self, now: _Now, part: Part) -> None:
        super().__init__()
        self._now, self._part = now, part

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        """(B, numbers of this layer), or (1, …) where one row counts for all pictures; what is given is not read."""
        row = self._now.row
        if row is None or len(row) not in (1, len(embedded)):
            have = "none" if row is None else str(len(row))
            raise RuntimeError(f"A step of {len(embedded)} pictures needs modulation for as many, and has {have}.")
        return row[:, self._part.start : self._part.stop]


@dataclass(frozen=True)
class Dropped:
    """A transformer without its modulation layers."""

    transformer: torch.nn.Module
    parts: tuple[Part, ...]
    layers: Mapping[str, torch.nn.Module]  # by name, what stood there
    now: _Now

    def use(self, row: torch.Tensor) -> None:
        """Compute the next passes with ``row``: (B, N) or (1, N), one of the table's, on the transformer's device.

        It is copied, which a CUDA graph can record and repeat with other numbers. To be called before a pass, and not
        again before its gradients are computed: autograd notices and raises RuntimeError.
        """
        if row.dim() != 2 or row.shape[1] != self.parts[-1].stop:
            raise ValueError(f"A row of modulation has {self.parts[-1].stop} numbers, not {tuple(row.shape)}.")
        self.now.put(row)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The layers stand where they stood for the length of a block, to make more rows; their weights stay away."""
        instead = {part: self.transformer.get_submodule(part.name) for part in self.parts}
        try:
            for part in self.parts:
                self._put(part, self.layers[part.name])
            yield
        finally:
            for part, module in instead.items():
                self._put(part, module)

    def _put(self, part: Part, layer: torch.nn.Module) -> None:
        self.transformer.get_submodule(part.owner).register_module("linear", layer)

    def restore(self, read: Read | None = None) -> None:
        """Put the layers back, as they were and where they lay. Those let go of are read by ``read``."""
        for part in self.parts:
            layer = self.layers[part.name]
            _come_back(layer, part.name, read)
            self._put(part, layer)


def drop(transformer: torch.nn.Module, let_go: bool = False) -> Dropped:
    """Take the modulation layers off a transformer, to be computed with rows of a ``table`` from now on.

    ``let_go``: give their memory back too; ``restore`` has to read them again then, which LoRAs on them forbid.
    Otherwise they stay where they are, so have the transformer in main memory.
    """
    parts, now, layers = parts_of(transformer), _Now(), {}
    for part in parts:
        owner, layer = transformer.get_submodule(part.owner), transformer.get_submodule(part.name)
        if let_go:
            if any("lora" in name for name in _weights(transformer, part.name)):
                raise ValueError("Modulation layers with a LoRA on cannot be read again from the model's files.")
            layer.to("meta")
        layers[part.name] = layer
        owner.register_module("linear", _FromRow(now, part))
    return Dropped(transformer, parts, layers, now)


def _come_back(layer: torch.nn.Module, name: str, read: Read | None) -> None:
    for key, weight in list(layer.named_parameters()):
        if not weight.is_meta:
            continue
        if read is None:
            raise ValueError(f"The weights of {name} were let go of, and nothing was given to read them with.")
        owner, _, last = key.rpartition(".")
        again = torch.nn.Parameter(read(f"{name}.{key}").to(weight.dtype), requires_grad=False)
        layer.get_submodule(owner).register_parameter(last, again)
