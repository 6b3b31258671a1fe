"""SDXL's blocks compiled: once for all that are equal, with the numbers of the ordinary ones and no more memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.backends.registry import lookup_backend

from headshot_ui import compiling, families
from headshot_ui.capture import graphs
from headshot_ui.compiling import compiled
from headshot_ui.families.lora_parts import linear
from headshot_ui.families.requests import DenoiseRequest
from headshot_ui.families.sdxl_parts import lora, trained_blocks
from headshot_ui.families.sdxl_parts.denoise import one_pass
from headshot_ui.families.sdxl_parts.load import SdxlModules
from headshot_ui.prove.random_models import random_part
from headshot_ui.settings import Settings
from tests.compiled_here import nothing_known

TRACED = lookup_backend("aot_eager")
Step = Callable[[], tuple[torch.Tensor, list[torch.Tensor]]]


@pytest.fixture(scope="module", autouse=True)
def only_its_own() -> Iterator[None]:
    with nothing_known():
        yield


@pytest.fixture(scope="module")
def unet() -> Any:
    """Shrunk, with all 87 blocks of the full one."""
    return random_part("base", "unet", "tiny", "cpu", 0).requires_grad_(False).eval().float()


def given(unet: Any) -> tuple[torch.Tensor, ...]:
    generator, config = torch.Generator().manual_seed(1), unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    shapes = (1, 4, 16, 16), (1, 7, config.cross_attention_dim), (1, pooled), (1, 6)
    noisy, *rest = (torch.randn(shape, generator=generator) for shape in shapes)
    return noisy, torch.tensor([500]), *rest


def learn(unet: Any, seed: int = 0) -> Step:
    modules = SdxlModules(unet, None, (), (), {}, True)
    parameters = lora.add_trainable(modules, 4, 4.0, seed)
    with torch.no_grad():
        for parameter in parameters:
            if not parameter.any():
                parameter.normal_(0, 0.02)
    linear.refresh(unet)
    inputs = given(unet)

    def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        out = one_pass(unet, *inputs)
        out.square().mean().backward()
        found = [parameter.grad.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return out.detach(), found

    return step


def kept(unet: Any, step: Step) -> int:
    """Bytes that a step keeps for the way back, beside weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in unet.parameters()}
    held: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def test_each_kind_is_compiled_once_and_keeps_what_the_ordinary_one_keeps(unet: Any) -> None:
    step, made = learn(unet), []
    memory: dict[bool, int] = {}
    for again in (False, True):
        trained_blocks.compute_again(unet, again)
        (out, plain), memory[again] = step(), kept(unet, step)
        with compiled(trained_blocks.repeated(unet), learning=True, backend=TRACED) as state:
            first, found = step()
            made.append(state.compilations)
            assert kept(unet, step) <= 1.01 * memory[again]
        assert not state.failed and state.compilations == made[-1]
        assert (first - out).norm() <= 1e-5 * out.norm()
        for mine, theirs in zip(found, plain, strict=True):
            assert theirs.norm() > 0 and (mine - theirs).norm() <= 1e-4 * theirs.norm()
    assert made == [13, 3]  # of 87 blocks; then only what computes otherwise
    assert memory[True] < 0.7 * memory[False]
    trained_blocks.compute_again(unet, False)
    step = learn(unet, seed=7)
    with compiled(trained_blocks.repeated(unet), learning=True, backend=TRACED) as state:
        step()
    assert state.compilations == 0  # another LoRA of this rank
    lora.remove_all(SdxlModules(unet, None, (), (), {}, True))


def test_drawing_is_compiled_too_and_leaves_nothing_behind(unet: Any) -> None:
    with torch.no_grad():
        plain = one_pass(unet, *given(unet))
        with compiled(trained_blocks.repeated(unet), learning=False, backend=TRACED) as state:
            found = one_pass(unet, *given(unet))
        assert 0 < state.compilations < 16 and not state.failed
        assert (found - plain).norm() <= 1e-5 * plain.norm()
        assert torch.equal(one_pass(unet, *given(unet)), plain)


def test_a_loaded_base_draws_the_same_when_its_recorder_compiles(models_dir: Path) -> None:
    settings = Settings.from_environment(models_dir=models_dir, device="cpu", dtype="float32")
    loaded = families.load_base(families.find_base("tiny-sdxl", settings), settings)
    embeds = loaded.encode_prompts(["portrait of tok person"]), loaded.encode_prompts([""])
    request = DenoiseRequest(*embeds, seeds=[1], steps=2, guidance_scale=2.0, height=64, width=64)
    plain = [step.latents for step in loaded.denoise(request)][-1]
    asked: list[int] = []
    with ExitStack() as stack, graphs("cpu") as recorded:
        record = compiling.when_ready(recorded.record, loaded.repeated, stack, asked.append, TRACED)
        found = [step.latents for step in loaded.denoise(replace(request, recorder=record))][-1]
    assert len(asked) > 1 and (found - plain).norm() <= 1e-5 * plain.norm()
    assert torch.equal([step.latents for step in loaded.denoise(request)][-1], plain)
    loaded.release()
