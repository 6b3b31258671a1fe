"""What the layers of a FLUX.1 transformer are called in Black Forest Labs' files, which single files follow.

diffusers has the same numbers under other names: what is one matrix there (query, key and value; in single blocks the
feed-forward layer too) is several here, one below the other, and the last modulation has shift before scale. The
tests compare with ``convert_flux_transformer_checkpoint_to_diffusers`` of diffusers, which is made for a whole state
in memory and for one width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from headshot_ui.families.flux_parts.sizes import Shape

#: Only in files of this layout, or of diffusers', and in every one: what the first block is known by.
FIRST = "double_blocks.0.img_attn.qkv.weight"
FIRST_HERE = "transformer_blocks.0.attn.to_q.weight"
_TIME = 256  # numbers that a timestep is turned into before it is embedded


@dataclass(frozen=True)
class Piece:
    """Where one of diffusers' tensors is in a file."""

    name: str  # of the tensor there
    start: int  # rows of it
    stop: int
    rows: int  # that it has in all
    swapped: bool = False  # its halves change places

    @property
    def whole(self) -> bool:
        return (self.start, self.stop) == (0, self.rows)


@dataclass(frozen=True)
class Layout:
    """A layout of weight files for a transformer of a certain shape."""

    pieces: Mapping[str, Piece]  # by diffusers' names
    sizes: Mapping[str, tuple[int, ...]]  # by the names in the file: the shape that each tensor has


@dataclass(frozen=True)
class _Layer:
    """A linear layer there and what diffusers makes of it: (name, outputs), from top to bottom."""

    name: str
    inputs: int
    parts: tuple[tuple[str, int], ...]
    swapped: bool = False


def original_layout(shape: Shape) -> Layout:
    """Black Forest Labs' own."""
    pieces: dict[str, Piece] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for layer in _layers(shape):
        rows, start = sum(outputs for _, outputs in layer.parts), 0
        for name, outputs in layer.parts:
            for kind in ("weight", "bias"):
                pieces[f"{name}.{kind}"] = Piece(
                    f"{layer.name}.{kind}", start, start + outputs, rows, layer.swapped
                )  # fmt: skip
            start += outputs
        sizes |= {f"{layer.name}.weight": (rows, layer.inputs), f"{layer.name}.bias": (rows,)}
    for name, here in _norms(shape):
        pieces[here] = Piece(name, 0, shape.head, shape.head)
        sizes[name] = (shape.head,)
    return Layout(pieces, sizes)


def diffusers_layout(shape: Shape) -> Layout:
    """diffusers' own: every tensor is what it is here."""
    sizes: dict[str, tuple[int, ...]] = {}
    for layer in _layers(shape):
        for name, outputs in layer.parts:
            sizes |= {f"{name}.weight": (outputs, layer.inputs), f"{name}.bias": (outputs,)}
    sizes |= {here: (shape.head,) for _, here in _norms(shape)}
    return Layout({name: Piece(name, 0, size[0], size[0]) for name, size in sizes.items()}, sizes)


def _layers(shape: Shape) -> Iterator[_Layer]:
    d = shape.width
    embeddings = [("time_in", "timestep_embedder", _TIME), ("vector_in", "text_embedder", shape.pooled)]
    embeddings += [("guidance_in", "guidance_embedder", _TIME)] if shape.guidance else []
    for name, here, inputs in embeddings:
        yield _Layer(f"{name}.in_layer", inputs, ((f"time_text_embed.{here}.linear_1", d),))
        yield _Layer(f"{name}.out_layer", d, ((f"time_text_embed.{here}.linear_2", d),))
    yield _Layer("txt_in", shape.joint, (("context_embedder", d),))
    yield _Layer("img_in", shape.channels, (("x_embedder", d),))
    for index in range(shape.double):
        yield from _double(f"double_blocks.{index}", f"transformer_blocks.{index}", d)
    for index in range(shape.single):
        yield from _single(f"single_blocks.{index}", f"single_transformer_blocks.{index}", d)
    yield _Layer("final_layer.linear", d, (("proj_out", shape.channels),))
    yield _Layer("final_layer.adaLN_modulation.1", d, (("norm_out.linear", 2 * d),), swapped=True)


def _double(name: str, here: str, d: int) -> Iterator[_Layer]:
    for side, norm, qkv, out, feed in (
        ("img", "norm1", ("to_q", "to_k", "to_v"), "to_out.0", "ff"),
        ("txt", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
    ):
        yield _Layer(f"{name}.{side}_mod.lin", d, ((f"{here}.{norm}.linear", 6 * d),))
        yield _Layer(f"{name}.{side}_attn.qkv", d, tuple((f"{here}.attn.{part}", d) for part in qkv))
        yield _Layer(f"{name}.{side}_attn.proj", d, ((f"{here}.attn.{out}", d),))
        yield _Layer(f"{name}.{side}_mlp.0", d, ((f"{here}.{feed}.net.0.proj", 4 * d),))
        yield _Layer(f"{name}.{side}_mlp.2", 4 * d, ((f"{here}.{feed}.net.2", d),))


def _single(name: str, here: str, d: int) -> Iterator[_Layer]:
    attention = tuple((f"{here}.attn.{part}", d) for part in ("to_q", "to_k", "to_v"))
    yield _Layer(f"{name}.modulation.lin", d, ((f"{here}.norm.linear", 3 * d),))
    yield _Layer(f"{name}.linear1", d, (*attention, (f"{here}.proj_mlp", 4 * d)))
    yield _Layer(f"{name}.linear2", 5 * d, ((f"{here}.proj_out", d),))


def _norms(shape: Shape) -> Iterator[tuple[str, str]]:
    """Names there and here of what scales queries and keys."""
    for index in range(shape.double):
        for side, query, key in (("img", "norm_q", "norm_k"), ("txt", "norm_added_q", "norm_added_k")):
            for part, here in (("query", query), ("key", key)):
                yield (
                    f"double_blocks.{index}.{side}_attn.norm.{part}_norm.scale",
                    f"transformer_blocks.{index}.attn.{here}.weight",
                )
    for index in range(shape.single):
        for part, here in (("query", "norm_q"), ("key", "norm_k")):
            yield (
                f"single_blocks.{index}.norm.{part}_norm.scale",
                f"single_transformer_blocks.{index}.attn.{here}.weight",
            )
