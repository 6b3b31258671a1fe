"""On a card: recorded steps draw what the steps themselves draw, whatever LoRA was on before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headshot_ui import families
from headshot_ui.capture import Graphs
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase
from headshot_ui.settings import Settings

pytestmark = pytest.mark.gpu
PROMPT = "portrait of tok person, close-up, a gentle smile"
STEPS = 5


@pytest.fixture(scope="module")
def on_card(models_dir: Path) -> LoadedBase:
    settings = Settings.from_environment(models_dir=models_dir, device="cuda", dtype="bfloat16")
    return families.load_base(families.find_base("tiny-sdxl", settings), settings)


@pytest.fixture(scope="module")
def loras(on_card: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two of the same structure."""
    paths = []
    for seed in (1, 2):
        parameters = on_card.add_trainable_lora(4, 4.0, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        paths.append(tmp_path_factory.mktemp("loras") / f"{seed}.safetensors")
        on_card.save_lora(paths[-1], on_card.trainable_lora_state(), {})
    on_card.use_loras(())
    return paths[0], paths[1]


def draw(loaded: LoadedBase, recorded: Graphs | None, guidance: float = 4.0, share: float = 1.0) -> torch.Tensor:
    request = DenoiseRequest(
        loaded.encode_prompts([PROMPT] * 2), loaded.encode_prompts([""] * 2), (3, 4), STEPS, guidance, 64, 64,
        guided_share=share, recorder=None if recorded is None else recorded.record,
    )  # fmt: skip
    return list(loaded.denoise(request))[-1].latents.cpu()


@pytest.mark.parametrize(("guidance", "share"), [(1.0, 1.0), (4.0, 1.0), (4.0, 0.6)])
def test_recorded_and_eager_are_equal_bit_by_bit(on_card: LoadedBase, guidance: float, share: float) -> None:
    on_card.use_loras(())
    recorded = Graphs("cuda")
    for _ in range(2):  # the second time is replayed from the first step on
        assert torch.equal(draw(on_card, recorded, guidance, share), draw(on_card, None, guidance, share))
    assert len(recorded) == (2 if share < 1 else 1)


def test_one_lora_then_another_then_none(on_card: LoadedBase, loras: tuple[Path, Path]) -> None:
    recorded = Graphs("cuda")
    on_card.use_loras(())
    bare = draw(on_card, recorded)
    seen = []
    for chosen in ([(loras[0], 1.0)], [(loras[1], 1.0)], [(loras[1], 0.5)], [(loras[0], 1.0)]):
        on_card.use_loras(chosen)
        seen.append(draw(on_card, recorded))
        assert torch.equal(seen[-1], draw(on_card, None))
        assert len(recorded) == 1
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2]) and torch.equal(seen[0], seen[3])
    on_card.use_loras(())
    assert torch.equal(draw(on_card, recorded), bare)


def test_a_network_that_left_the_card_and_came_back(on_card: LoadedBase) -> None:
    recorded = Graphs("cuda")
    on_card.use_loras(())
    before = draw(on_card, recorded)
    on_card.keep(frozenset({"vae"}))
    other = torch.full((64, 2**20), float("nan"), device="cuda")  # what would lie where the weights were
    assert torch.equal(draw(on_card, recorded), before)
    del other


def test_what_is_forgotten_gives_its_memory_back(on_card: LoadedBase) -> None:
    on_card.use_loras(())
    reserved = []
    for _ in range(3):  # the first one also sets up what libraries keep for good
        recorded = Graphs("cuda")
        draw(on_card, recorded)
        recorded.drop()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[2] <= reserved[0]
