"""FLUX.1's blocks compiled: once for all of a kind, with the numbers of the ordinary ones, whichever way."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.backends.registry import lookup_backend

from headshot_ui import compiling
from headshot_ui.compiling import compiled
from headshot_ui.families.flux_parts import blocks, eight_bit, lora, modulation, streaming
from headshot_ui.families.flux_parts.denoise import image_ids, one_pass, text_ids
from headshot_ui.families.flux_parts.recomputing import recompute
from headshot_ui.families.lora_parts import in_model, linear
from tests.compiled_here import nothing_known

TRACED = lookup_backend("aot_eager")  # all of torch's compiler but for the code it would generate
GENERATOR = torch.Generator().manual_seed(1)
GIVEN = (
    torch.randn(1, 16, 64, generator=GENERATOR), torch.tensor([0.5]), torch.randn(1, 7, 24, generator=GENERATOR),
    torch.randn(1, 16, generator=GENERATOR), torch.tensor([3.0]), text_ids(7), image_ids(8, 8),
)  # fmt: skip
Gradients = list[torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def only_its_own() -> Iterator[None]:
    with nothing_known():
        yield


def transformer() -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    made = FluxTransformer2DModel(
        in_channels=64, num_layers=3, num_single_layers=4, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    made.requires_grad_(False).eval()
    blocks.put_in(made)
    return made


def learn(model: Any, share: float, seed: int = 0) -> Callable[[], tuple[torch.Tensor, Gradients]]:
    """A LoRA that already does something, and a step of it."""
    in_model.take_off({"": model})
    parameters = lora.add_trainable(model, 4, 4.0, seed)
    with torch.no_grad():
        for parameter in parameters:
            if not parameter.any():
                parameter.normal_(0, 0.02)
    linear.refresh(model)
    recompute(model, share)

    def step() -> tuple[torch.Tensor, Gradients]:
        out = one_pass(model, *GIVEN)
        out.square().mean().backward()
        found = [parameter.grad.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return out.detach(), found

    return step


def compiled_like(model: Any, step: Callable[[], tuple[torch.Tensor, Gradients]], backend: Any = TRACED) -> int:
    """How many graphs were compiled by a step that gives what an ordinary one gives."""
    out, plain = step()
    with compiled(blocks.repeated(model), learning=True, backend=backend) as state:
        first, found = step()
        made = state.compilations
        step()
    assert not state.failed and state.compilations == made
    assert (first - out).norm() <= 1e-5 * out.norm()
    for mine, theirs in zip(found, plain, strict=True):
        assert theirs.norm() > 0 and (mine - theirs).norm() <= 1e-5 * theirs.norm()
    return made


def test_a_training_compiles_each_kind_once_and_the_next_persons_nothing() -> None:
    model = transformer()
    # the first double block is one of its own: nothing before it learns
    assert compiled_like(model, learn(model, 0.0)) == 3
    assert compiled_like(model, learn(model, 1.0, seed=5)) == 0
    other = transformer()
    assert compiled_like(other, learn(other, 0.5, seed=6)) == 0
    known = weakref.ref(model)
    in_model.take_off({"": model})
    del model
    gc.collect()
    assert known() is None  # its weights are not kept by what was compiled


def test_layers_in_8_bit_learn_the_same() -> None:
    model = transformer()
    eight_bit.shrink(model, torch.float32)
    assert compiled_like(model, learn(model, 1.0)) == 3


def test_rows_of_modulation_and_blocks_that_travel_are_not_compiled_for_each_block() -> None:
    model = transformer()
    row = modulation.table(model, [modulation.Condition(GIVEN[1], GIVEN[4], GIVEN[3])], "cpu", torch.float32)[0]
    modulation.drop(model).use(row)
    streaming.stream(model, [*model.transformer_blocks, *model.single_transformer_blocks], "cpu")
    assert compiled_like(model, learn(model, 1.0)) <= 3


def test_drawing_compiles_each_kind_once() -> None:
    model = transformer()
    with torch.no_grad():
        plain = one_pass(model, *GIVEN)
        with compiled(blocks.repeated(model), learning=False, backend=TRACED) as state:
            found = one_pass(model, *GIVEN)
    assert state.compilations == 3 and not state.failed  # the first double block's words are laid out otherwise
    assert (found - plain).norm() <= 1e-5 * plain.norm()


def test_places_are_turned_in_real_numbers_as_in_complex_ones() -> None:
    x = torch.randn(2, 5, 3, 8, generator=GENERATOR)
    angles = torch.randn(5, 1, 4, generator=GENERATOR)
    real = blocks._turned_in_real(x, angles.cos(), angles.sin())
    assert torch.allclose(real, blocks._turned(x, torch.polar(torch.ones_like(angles), angles)), rtol=0, atol=1e-6)


def test_attention_that_learns_is_compiled_without_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU “math” alone leaves no trace of another kind, which shows that what is chosen counts."""
    from torch.nn.attention import SDPBackend

    def named(chosen: Any) -> set[str]:
        monkeypatch.setattr(blocks, "_SAFE_ATTENTION", chosen)
        seen: set[str] = set()

        def look(graph: Any, inputs: Any) -> Any:
            seen.update(str(node.target) for node in graph.graph.nodes)
            return graph.forward

        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def boxed(graph: Any, inputs: Any) -> Any:
            look(graph, inputs)
            return make_boxed_func(graph.forward)

        torch._dynamo.reset()
        compiling._compiled_once.cache_clear()
        model = transformer()
        compiled_like(model, learn(model, 0.0), aot_autograd(fw_compiler=boxed, bw_compiler=boxed))
        return {name for name in seen if "scaled_dot_product" in name}

    assert named([SDPBackend.FLASH_ATTENTION]) and not named([SDPBackend.MATH])
    assert SDPBackend.CUDNN_ATTENTION not in blocks._SAFE_ATTENTION


@pytest.mark.slow
def test_torchs_own_compiler_computes_the_same(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    model = transformer()
    assert compiled_like(model, learn(model, 1.0), compiling.inductor) == 3
