"""LoHa, LoKr, a third matrix and DoRA: every layer against the formula, on and off without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file

from headshot_ui.errors import ModelError
from headshot_ui.families import lora_facts, lora_in_layout
from headshot_ui.families.lora_parts import in_model
from headshot_ui.families.lora_parts.layers import LoraLayer
from headshot_ui.families.lora_parts.relatives import Change, RelatedLayer, related_layer
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.families.sdxl_parts.lora import parts
from headshot_ui.families.sdxl_parts.lora_file import read_lora_file
from headshot_ui.families.sdxl_parts.lora_names import kohya_stem
from headshot_ui.families.sdxl_parts.lora_write import kohya_tensors
from tests.families.lora_maker import PROMPT, bits, delta, draw, place, random_layers, same

Tensors = dict[str, torch.Tensor]
RANK, ALPHA = 3, 1.5


class Made:
    """The tensors of a layer, and what they add by the formula in float64."""

    def __init__(self, kind: str, weight: torch.Tensor, seed: int, small: float = 1.0) -> None:
        self.small = small  # by which everything is smaller
        self.kind, self.weight, self.shape = kind, weight.double(), tuple(weight.shape)
        self._generator = torch.Generator().manual_seed(seed)
        self.tensors: Tensors = {"alpha": torch.tensor(ALPHA)}
        base, _, self.lengths = kind.partition(" by ")
        self.change = getattr(self, f"_{base.replace(' ', '_')}")()

    def _new(self, name: str, *shape: int, size: float = 0.3) -> torch.Tensor:
        self.tensors[name] = torch.randn(*shape, generator=self._generator) * size * self.small
        return self.tensors[name].double()

    @property
    def _flat(self) -> tuple[int, int]:
        return self.shape[0], int(np.prod(self.shape[1:]))

    def _loha(self) -> torch.Tensor:
        out, inside = self._flat
        products = [self._new(f"hada_w{n}_a", out, RANK) @ self._new(f"hada_w{n}_b", RANK, inside) for n in (1, 2)]
        return self._longer((products[0] * products[1] * ALPHA / RANK).reshape(self.shape))

    def _loha_core(self) -> torch.Tensor:
        out, inside, *kernel = self.shape
        made = torch.ones(self.shape, dtype=torch.float64)
        for n in (1, 2):
            core = self._new(f"hada_t{n}", RANK, RANK, *kernel, size=0.8)
            a, b = self._new(f"hada_w{n}_a", RANK, out, size=0.8), self._new(f"hada_w{n}_b", RANK, inside, size=0.8)
            made *= self._summed(core, a, b)
        return self._longer(made * ALPHA / RANK)

    def _three(self) -> torch.Tensor:
        out, inside, *kernel = self.shape
        down, mid = self._new("lora_down.weight", RANK, inside, 1, 1), self._new("lora_mid.weight", RANK, RANK, *kernel)
        up = self._new("lora_up.weight", out, RANK, 1, 1)
        return self._summed(mid, up[:, :, 0, 0].T, down[:, :, 0, 0]) * ALPHA / RANK

    def _lora(self) -> torch.Tensor:
        ones = [1 for _ in self.shape[2:]]
        down = self._new("lora_down.weight", RANK, *self.shape[1:])
        up = self._new("lora_up.weight", self.shape[0], RANK, *ones)
        return self._longer((up.flatten(1) @ down.flatten(1)).reshape(self.shape) * ALPHA / RANK)

    def _lokr(self) -> torch.Tensor:
        return self._kron(whole=(True, False))

    def _lokr_whole(self) -> torch.Tensor:
        self.tensors["alpha"] = torch.tensor(99.0)  # says nothing, because nothing is split
        return self._kron(whole=(True, True))

    def _lokr_split(self) -> torch.Tensor:
        return self._kron(whole=(False, False))

    def _lokr_core(self) -> torch.Tensor:
        return self._kron(whole=(True, False), core=True)

    def _kron(self, whole: tuple[bool, bool], core: bool = False) -> torch.Tensor:
        out, inside, *kernel = self.shape
        small, large = (2, 4), (out // 2, inside // 4)
        one = self._new("lokr_w1", *small) if whole[0] else \
            self._new("lokr_w1_a", small[0], RANK) @ self._new("lokr_w1_b", RANK, small[1])  # fmt: skip
        if whole[1]:
            other = self._new("lokr_w2", *large, *kernel)
        elif core:
            other = self._summed(self._new("lokr_t2", RANK, RANK, *kernel), self._new("lokr_w2_a", RANK, large[0]),
                                 self._new("lokr_w2_b", RANK, large[1]))  # fmt: skip
        else:
            flat = large[1] * int(np.prod(kernel))
            split = self._new("lokr_w2_a", large[0], RANK) @ self._new("lokr_w2_b", RANK, flat)
            other = split.reshape(*large, *kernel)
        # Entry (p, q) of a Kronecker product, by its definition.
        p, q = torch.arange(out)[:, None], torch.arange(inside)[None]
        left = one[p // large[0], q // large[1]].reshape(out, inside, *(1 for _ in kernel))
        made = left * other[p % large[0], q % large[1]]
        return self._longer(made if all(whole) else made * ALPHA / RANK)

    @staticmethod
    def _summed(core: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        rank = core.shape[0]
        terms = (core[i, j][None, None] * a[i][:, None, None, None] * b[j][None, :, None, None]
                 for i in range(rank) for j in range(rank))  # fmt: skip
        return torch.stack(list(terms)).sum(0)

    def _longer(self, change: torch.Tensor) -> torch.Tensor:
        if not self.lengths:
            return change
        summed = self.weight + change
        axis = 0 if self.lengths in ("output", "magnitude") else 1
        shape = [size if each == axis else 1 for each, size in enumerate(self.shape)]
        length = summed.transpose(0, axis).flatten(1).norm(dim=1).reshape(shape)
        wanted = (length * (1 + 0.2 * self.small * torch.randn(shape, generator=self._generator))).float()
        if self.lengths == "magnitude":  # peft's, (out,) or for convolutions (1, out, 1, 1)
            self.tensors["lora_magnitude_vector"] = wanted.reshape([1, -1, 1, 1] if len(shape) == 4 else [-1])
        else:
            self.tensors["dora_scale"] = wanted
        return wanted.double() * summed / length - self.weight


LINEAR = ("loha", "lokr", "lokr whole", "lokr split", "lora by output", "lora by input", "lora by magnitude",
          "loha by input", "lokr by output")  # fmt: skip
CONVOLUTION = (*LINEAR, "loha core", "lokr core", "three", "loha core by output")


def weights(loaded: LoadedBase) -> dict[str, torch.Tensor]:
    """Layer → its weight, named as in files."""
    found = {}
    for part, module in parts(loaded.modules).items():
        for path, inner in module.named_modules():
            if isinstance(inner, (torch.nn.Linear, torch.nn.Conv2d)):
                name = path if part == "unet" or path.startswith("text") else f"text_model.{path}"
                found[f"{part}.{name}"] = inner.weight
    return found


def a_file(loaded: LoadedBase, path: Path, only: Callable[[str], bool] = lambda kind: True) -> dict[str, Made]:
    """A file whose layers are of all kinds, one after the other; layer → what was made for it."""
    where, there, made, tensors = place(loaded), weights(loaded), {}, {}
    for number, (layer, shape) in enumerate(where.shapes.items()):
        kinds = [kind for kind in (CONVOLUTION if shape[2:] == (3, 3) else LINEAR) if only(kind)]
        kind = kinds[number % len(kinds)]
        stem = kohya_stem(layer, where.topology)
        if stem is None or "lokr" in kind and (shape[0] % 2 or shape[1] % 4):
            continue
        made[layer] = Made(kind, there[layer], number)
        tensors |= {f"{stem}.{role}": tensor for role, tensor in made[layer].tensors.items()}
    save_file(tensors, path)
    return made


# --- tensor by tensor ---------------------------------------------------------------------------------
def test_every_layer_adds_what_the_formula_says(tiny: LoadedBase, tmp_path: Path) -> None:
    made = a_file(tiny, tmp_path / "x.safetensors")
    assert {one.kind for one in made.values()} == set(CONVOLUTION)
    read = read_lora_file(tmp_path / "x.safetensors", place(tiny), "sdxl").layers
    assert read.keys() == made.keys()
    tiny.use_loras([(tmp_path / "x.safetensors", 0.5)])
    for layer, one in made.items():
        part, _, path = layer.partition(".")
        module = parts(tiny.modules)[part]
        inner = module.get_submodule(path if hasattr(module, "text_model") else path.removeprefix("text_model."))
        change = inner.lora_A["lora_0"]
        assert isinstance(change, Change) and isinstance(inner.lora_B["lora_0"], torch.nn.Identity), one.kind
        assert inner.scaling["lora_0"] == 0.5
        wanted = one.change
        assert (change.change().double() - wanted).abs().max() < 2e-5 * wanted.abs().max(), one.kind


@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_prompts_and_pictures_are_as_with_the_changes_added_by_hand(
    strength: float, tiny: LoadedBase, tmp_path: Path
) -> None:
    """With a plain LoRA beside it; and off again without a trace."""
    where = place(tiny)
    made = a_file(tiny, tmp_path / "x.safetensors")
    plain = random_layers(where, list(where.shapes)[::3], alpha=2.0)
    save_file(kohya_tensors(plain, where.topology), tmp_path / "y.safetensors")
    before, read_before, untouched = draw(tiny), tiny.encode_prompts([PROMPT]), bits(tiny)
    tiny.use_loras([(tmp_path / "x.safetensors", strength), (tmp_path / "y.safetensors", 0.3)])
    drawn, read = draw(tiny), tiny.encode_prompts([PROMPT])
    tiny.use_loras(())
    assert torch.equal(draw(tiny), before) and same(bits(tiny), untouched)
    for layer, weight in weights(tiny).items():
        change = torch.zeros_like(weight, dtype=torch.float64)
        if layer in made:
            change += strength * made[layer].change
        if layer in plain:
            change += 0.3 * delta(plain[layer])
        weight.data += change.to(weight.dtype)
    try:
        for name, tensor in tiny.encode_prompts([PROMPT]).items():
            assert torch.allclose(tensor, read[name], atol=2e-3)
            assert not torch.allclose(tensor, read_before[name], atol=0.1)
        assert torch.allclose(draw(tiny), drawn, atol=1e-3 * float(drawn.abs().max()))
        assert not torch.allclose(drawn, before, atol=0.1)
    finally:
        for part, module in parts(tiny.modules).items():
            module.load_state_dict({name.removeprefix(f"{part}."): tensor for name, tensor in untouched.items()
                                    if name.startswith(f"{part}.")})  # fmt: skip


def test_weight_zero_is_no_lora_for_a_dora_too(tiny: LoadedBase, tmp_path: Path) -> None:
    before = draw(tiny)
    a_file(tiny, tmp_path / "x.safetensors", only=lambda kind: " by " in kind)
    tiny.use_loras([(tmp_path / "x.safetensors", 0.0)])
    assert torch.equal(draw(tiny), before)
    tiny.use_loras([(tmp_path / "x.safetensors", 1.0)])
    assert not torch.equal(draw(tiny), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora by output", "lokr by input", "loha"])
def test_in_sixteen_bits_the_change_is_rounded_and_no_more(kind: str, dtype: torch.dtype) -> None:
    """A DoRA's lengths, whose own rounding would be as large as a whole change, among them."""
    base = torch.nn.Linear(32, 24).to(dtype)
    made = Made(kind, base.weight.data, 5, small=0.01)
    layer = related_layer({role.removeprefix("lora_").removesuffix(".weight"): one
                           for role, one in made.tensors.items()}, (24, 32))  # fmt: skip
    assert layer is not None
    found, eps = Change(base, layer).change().double(), torch.finfo(dtype).eps
    # The factors are stored in the dtype of the base, as those of plain LoRAs are.
    assert (found - made.change).norm() < 3 * eps * made.change.norm()


# --- other programs -------------------------------------------------------------------------------------
def of_peft(layer: peft.tuners.tuners_utils.BaseTunerLayer, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return layer(x) - layer.base_layer(x)


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora"])
def test_peft_s_own_layers_add_the_same(kind: str) -> None:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(16, 24))
    base = model[0]
    config = {
        "loha": peft.LoHaConfig(r=2, alpha=5, target_modules=["0"]),
        "lokr": peft.LoKrConfig(r=2, alpha=5, target_modules=["0"], decompose_factor=4),
        "dora": peft.LoraConfig(r=2, lora_alpha=5, target_modules=["0"], use_dora=True),
    }[kind]
    theirs = peft.get_peft_model(model, config)
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.abs() + 1 if "magnitude" in name else torch.randn_like(parameter) * 0.3
    state = peft.get_peft_model_state_dict(theirs)
    names = {"lora_A.weight": "down", "lora_B.weight": "up"}
    tensors = {names.get(role := name.split(".0.")[-1], role): tensor.detach() for name, tensor in state.items()}
    layer = related_layer(tensors | {"alpha": torch.tensor(5.0)}, (24, 16))
    assert layer is not None
    x = torch.randn(7, 16)
    assert torch.allclose(Change(base, layer)(x), of_peft(theirs.base_model.model[0], x), atol=1e-5)


def test_lycoris_s_own_names_are_those_of_the_unet(tiny: LoadedBase, tmp_path: Path) -> None:
    """As LyCORIS writes them outside of kohya's scripts."""
    (layer,) = [layer for layer in place(tiny).shapes if layer == "unet.mid_block.attentions.0.proj_in"]
    made = Made("loha", weights(tiny)[layer], 1)
    path = tmp_path / "x.safetensors"
    save_file({f"lycoris_mid_block_attentions_0_proj_in.{role}": one for role, one in made.tensors.items()}, path)
    assert set(read_lora_file(path, place(tiny), "sdxl").layers) == {layer}
    assert lora_facts(path).modules == {"UNet": 1}


def test_a_dora_in_diffusers_layout_takes_alpha_from_the_header(tiny: LoadedBase, tmp_path: Path) -> None:
    layer = "unet.mid_block.attentions.0.proj_in"
    made = Made("lora by magnitude", weights(tiny)[layer], 1).tensors
    tensors = {f"{layer}.lora_A.weight": made["lora_down.weight"], f"{layer}.lora_B.weight": made["lora_up.weight"],
               f"{layer}.lora_magnitude_vector": made["lora_magnitude_vector"]}  # fmt: skip
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"lora_adapter_metadata": f'{{"unet.lora_alpha": {ALPHA}}}'})
    found = read_lora_file(path, place(tiny), "sdxl").layers[layer]
    assert isinstance(found, RelatedLayer) and found.scale == ALPHA / RANK
    assert Change(tiny.modules.unet.get_submodule("mid_block.attentions.0.proj_in"), found).change().isfinite().all()


# --- what a file is, and what is refused ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "told"),
    [("lokr", "LoKr"), ("lokr whole", "LoKr"), ("loha", "LoHa"), ("lora by input", "DoRA"),
     ("loha by input", "LoHa with DoRA"), ("lora", "LoRA")],
)  # fmt: skip
def test_a_file_says_what_it_is(kind: str, told: str, tiny: LoadedBase, tmp_path: Path) -> None:
    layer = "unet.mid_block.attentions.0.proj_in"
    stem, made = kohya_stem(layer, place(tiny).topology), Made(kind, weights(tiny)[layer], 1)
    path = tmp_path / "x.safetensors"
    save_file({f"{stem}.{role}": one for role, one in made.tensors.items()}, path)
    facts = lora_facts(path)
    assert (facts.kind, facts.layout, facts.rank) == (told, "kohya", 0 if kind == "lokr whole" else RANK)
    if kind == "lora":
        assert isinstance(read_lora_file(path, place(tiny), "sdxl").layers[layer], LoraLayer)
    else:
        with pytest.raises(ModelError, match="give away the file itself"):
            lora_in_layout("kohya", path, tiny.info, {}, "x", None)


@pytest.mark.parametrize(
    ("kind", "spoil", "said"),
    [("loha", lambda t: t.pop("hada_w2_b"), "incomplete"), ("lokr", lambda t: t.pop("lokr_w1"), "incomplete"),
     ("lora by input", lambda t: t.pop("lora_up.weight"), "incomplete"),
     ("lokr", lambda t: t.update(lokr_w1_a=torch.ones(2, 2)), "incomplete"),
     ("loha", lambda t: t.update(hada_w1_a=t["hada_w1_b"].T, hada_w1_b=t["hada_w1_a"].T), "does not fit"),
     ("loha", lambda t: t.update(hada_w1_b=torch.ones(RANK, 7)), "does not fit"),
     ("lokr whole", lambda t: t.update(lokr_w2=t["lokr_w2"].T), "does not fit"),
     ("lora by input", lambda t: t.update(dora_scale=torch.ones(1, 5)), "does not fit"),
     ("lora by input", lambda t: t.update(dora_scale=t["dora_scale"] * float("nan")), "not finite"),
     ("lora", lambda t: t.update(scalar=torch.ones(1)), "does not fit")],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused_and_nothing_left_on(
    kind: str, spoil: Callable[[Tensors], object], said: str, tiny: LoadedBase, tmp_path: Path
) -> None:
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"  # not square
    stem, tensors = kohya_stem(layer, place(tiny).topology), Made(kind, weights(tiny)[layer], 1).tensors
    spoil(tensors)
    save_file({f"{stem}.{role}": one.contiguous() for role, one in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=said):
        tiny.use_loras([(tmp_path / "x.safetensors", 1.0)])
    assert not in_model._has_lora(tiny.modules.unet)
