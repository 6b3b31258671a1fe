"""Networks with random weights as files: whole, in shards that are made one after the other, or their headers alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.memory import give_back
from headshot_ui.store import write_json_atomic

if TYPE_CHECKING:
    import torch

#: In the place of a device: nothing but the headers of the weights is written, in a second or two.
OUTLINE = "meta"
#: Of one file; twice as much is in main memory while it is written.
SHARD_BYTES = 2 * 10**9


@contextmanager
def building(device: str, seed: int, dtype: str) -> Iterator[None]:
    """Modules made in the block begin on ``device`` and in ``dtype``, so that none is there twice in float32."""
    import torch

    before = torch.get_default_dtype()
    devices = [0] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def write_outline(path: Path, module: torch.nn.Module) -> None:
    """The header of a weight file alone: what a plan is made of."""
    names = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
    header, end = {}, 0
    for name, tensor in stored(module).items():
        begin, end = end, end + tensor.nbytes
        kind = names.get(str(tensor.dtype).removeprefix("torch."), "F32")
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def stored(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a file of ``module`` has: without those that are another one's second name."""
    second: Any = getattr(module, "_tied_weights_keys", None) or ()
    return {name: tensor for name, tensor in module.state_dict().items() if name not in second}


def write_shards(
    folder: Path, stem: str, module: torch.nn.Module, device: str, seed: int, shard_bytes: int = SHARD_BYTES
) -> None:
    """Weights of a ``module`` that is on "meta" to several files and their index, as ``save_pretrained`` names them.

    Every layer begins as torch begins it; it is made on ``device`` and gone when its file is written, so main memory
    never holds more than two files. ``module`` is on "meta" again afterwards. The same arguments give the same files.
    Raises RuntimeError for a module with tensors that belong to no layer, before anything is written.
    """
    from safetensors.torch import save_file

    wanted = stored(module)
    owners = [(name, layer) for name, layer in module.named_modules() if _own(name, layer).keys() & wanted.keys()]
    if unknown := wanted.keys() - {key for name, layer in owners for key in _own(name, layer)}:
        raise RuntimeError(f"These tensors cannot be made in shards: {sorted(unknown)[:3]}")
    shards = _shards(owners, wanted, shard_bytes)
    places: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with building(device, seed, "float32"):
        for number, layers in enumerate(shards, start=1):
            file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {key: tensor for name, layer in layers for key, tensor in _made(name, layer, device).items()}
            tensors = {key: tensor for key, tensor in tensors.items() if key in wanted}
            save_file(tensors, folder / file, {"format": "pt"})
            places |= dict.fromkeys(tensors, file)
            del tensors
            give_back()
    total = sum(tensor.nbytes for tensor in wanted.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_json_atomic(folder / f"{stem}.safetensors.index.json", index)


def _own(name: str, layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The layer's tensors that are not a layer's below it, by their names in the whole."""
    below = layer.named_parameters(recurse=False)
    return {f"{name}.{key}" if name else key: tensor for key, tensor in below}


def _shards(
    owners: list[tuple[str, torch.nn.Module]], wanted: dict[str, torch.Tensor], most: int
) -> list[list[tuple[str, torch.nn.Module]]]:
    shards: list[list[tuple[str, torch.nn.Module]]] = [[]]
    size = 0
    for name, layer in owners:
        more = sum(wanted[key].nbytes for key in _own(name, layer) if key in wanted)
        if shards[-1] and size + more > most:
            shards.append([])
            size = 0
        shards[-1].append((name, layer))
        size += more
    return shards


def _made(name: str, layer: torch.nn.Module, device: str) -> dict[str, torch.Tensor]:
    """Its tensors with numbers, in main memory; the layer has none again."""
    import torch

    layer.to_empty(device=device, recurse=False)
    begin: Any = getattr(layer, "reset_parameters", None)
    with torch.no_grad():
        if begin is not None:
            begin()
        else:  # norms of transformers
            for tensor in layer.parameters(recurse=False):
                tensor.fill_(1)
    found = {key: tensor.detach().to("cpu", copy=True) for key, tensor in _own(name, layer).items()}
    layer.to_empty(device="meta", recurse=False)
    return found
