"""Parts that were dropped from main memory are read again; numbers that overflowed are told, never drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.lora_parts import in_model
from headshot_ui.families.protocol import LoadedBase, LoadedRefiner
from headshot_ui.families.sdxl_parts import lora
from headshot_ui.families.sdxl_parts.lora_write import lora_bytes
from headshot_ui.families.shared_parts import pictures
from headshot_ui.settings import Settings
from tests.families.lora_maker import PROMPT, bits, draw, drawn_from, place, random_layers, same, usual_layers


@pytest.fixture
def tight(settings: Settings) -> LoadedBase:
    """The tiny base where main memory is short beside it."""
    limited = replace(settings, ram_limit_bytes=1000)
    return families.load_base(families.find_base("tiny-sdxl", limited), limited)


def test_where_memory_is_short_only_the_part_at_work_is_there(tight: LoadedBase, tiny: LoadedBase) -> None:
    parts = lambda: [bool(tight._shelf.modules(part)) for part in ("text", "vae", "denoiser")]  # noqa: E731
    assert parts() == [False, False, False]
    tight.keep(frozenset({"text"}))
    mine, theirs = tight.encode_prompts(["portrait of tok person"]), tiny.encode_prompts(["portrait of tok person"])
    assert parts() == [True, False, False]
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    tight.keep(frozenset({"vae"}))
    image = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    assert torch.equal(tight.encode_images(image), tiny.encode_images(image))
    assert parts() == [False, True, False]


def test_a_unet_with_a_lora_is_never_dropped(tight: LoadedBase) -> None:
    tight.add_trainable_lora(2, 2.0, 0)
    before = tight.trainable_lora_state()
    tight.keep(frozenset({"vae"}))
    tight.shed()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tight.trainable_lora_state().items())
    tight.use_loras(())
    tight.keep(frozenset())
    assert tight.modules.unet is None
    tight.use_loras(())  # nothing to take off, and nothing is read for it
    assert tight.modules.unet is None


@pytest.mark.parametrize("part", ["", "unet", "text_encoder_2"])
def test_where_memory_is_short_a_part_has_its_lora_whenever_it_is_read(
    part: str, tight: LoadedBase, tiny: LoadedBase, tmp_path: Path
) -> None:
    where = place(tiny)
    path = tmp_path / "x.safetensors"
    path.write_bytes(lora_bytes("kohya", random_layers(where, usual_layers(where, part)), where.topology, {}, "x"))
    bare = draw(tiny)
    tiny.use_loras([(path, 0.7)])
    wanted = draw(tiny)
    tiny.use_loras(())
    tight.use_loras([(path, 0.7)])
    assert lora.parts(tight.modules) == {}, "a UNet does not wait in memory while prompts are read"
    for _ in range(2):
        tight.keep(frozenset({"text"}))
        embeds = tight.encode_prompts([PROMPT]), tight.encode_prompts([""])
        assert tight.modules.unet is None
        tight.keep(frozenset({"denoiser"}))
        assert torch.equal(drawn_from(tight, *embeds), wanted)
        assert tight.modules.text_encoders == ()
    tight.use_loras(())  # the UNet is there, the encoders are not
    assert torch.equal(draw(tight), bare)
    assert not torch.equal(wanted, bare) and same(bits(tight), bits(tiny))


def test_a_fresh_lora_takes_the_place_of_those_in_use(tight: LoadedBase, tiny: LoadedBase, tmp_path: Path) -> None:
    where = place(tiny)
    path = tmp_path / "x.safetensors"
    path.write_bytes(lora_bytes("diffusers", random_layers(where, usual_layers(where)), where.topology, {}, "x"))
    tight.use_loras([(path, 1.0)])
    tight.add_trainable_lora(2, 2.0, 0)
    assert set(tight.modules.unet.peft_config) == {in_model.TRAINED}
    assert torch.equal(draw(tight), draw(tiny)), "its B is zero, and the encoders have no other's"
    tight.use_loras(())


def test_a_refiner_drops_its_unet_and_reads_it_again(refiner: LoadedRefiner) -> None:
    refiner.keep(frozenset({"denoiser"}))
    before = {name: tensor.clone() for name, tensor in refiner.unet.state_dict().items()}
    refiner.shed()
    assert refiner.unet is not None, "it is at work"
    refiner.keep(frozenset())
    assert refiner.unet is None
    refiner.keep(frozenset({"denoiser"}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in refiner.unet.state_dict().items())


def test_a_picture_that_is_no_number_is_decoded_again_and_else_told(
    tiny: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ModelError, match="not a number"):
        tiny.decode_latents(latents + float("nan"))
    vae = tiny.modules.vae
    real = pictures._decode
    monkeypatch.setattr(pictures, "_decode", lambda v, x: real(v, x) / (v.dtype == torch.float32))
    vae.bfloat16()
    try:
        (picture,) = tiny.decode_latents(latents)
        assert vae.dtype == torch.bfloat16 and picture.getextrema() != ((0, 0),) * 3
    finally:
        vae.float()


def test_decoding_in_another_number_format_leaves_the_weights_alone(tiny: LoadedBase) -> None:
    vae, latents = tiny.modules.vae, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    places = [parameter.data_ptr() for parameter in vae.parameters()]
    used: list[torch.dtype] = []
    hook = vae.decoder.register_forward_hook(lambda *args: used.append(args[2].dtype))
    try:
        (exact,) = pictures.decode_latents(vae, latents)
        (native,) = pictures.decode_latents(vae, latents, dtype=torch.bfloat16)
    finally:
        hook.remove()
    assert used == [torch.float32, torch.bfloat16] and vae.dtype == torch.float32
    assert [parameter.data_ptr() for parameter in vae.parameters()] == places
    error = np.mean((np.asarray(exact, float) - np.asarray(native, float)) ** 2)
    assert 10 * np.log10(255**2 / error) >= 40  # dB
    assert tiny._decodes_in(vae) == torch.float32, "a processor is slower in half precision"


def test_tiles_are_used_only_without_room(tiny: LoadedBase) -> None:
    vae = tiny.modules.vae
    for room, expected in ((None, False), (10**12, False), (1, True)):
        with pictures._in_tiles(vae, 1000, room):
            assert vae.use_tiling is expected
    assert vae.use_tiling is False
