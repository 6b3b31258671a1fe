"""Main memory at most while a base is read from one file of Stable Diffusion XL's full size, as people drop it in.

    python benchmarks/checkpoint_memory.py --folder FOLDER --write     # 7 GB are written there, and removed
    python benchmarks/checkpoint_memory.py --folder FOLDER --cases float16 limited

The checkpoint has Stability AI's names and shapes, in float16, with random numbers. Each case is a process of its own
on the CPU, so no graphics card is needed: what is measured is what the reading takes before anything moves to a card.

- ``float16``: in the number format of the file, as for a card that computes in it
- ``bfloat16``: each number changed, as for a card that computes in that
- ``float32``: each number changed, twice as large as the file, as for the CPU
- ``limited``: float16 with ``--ram-limit 12GB``

Where main memory is short beside the weights (more than half of it, or of the limit) the program reads one part after
the other: then a prompt is read, a small picture drawn in one step and decoded, each part at its work in its turn.

The peak is told twice. ``resident`` is what the system shows for the process, with the pages of the file that are
mapped into it, which it takes away whenever others need room; ``own`` is what only the process has. Linux only.
Prints one JSON object; ``ok`` is true when no case takes more than its weights and the pages that are mapped at one
time (those of the largest part where parts take turns), 1 GiB aside, and the limited one keeps to its limit. The exit
code says the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from headshot_ui import families
from headshot_ui.families import weight_places
from headshot_ui.families.protocol import DenoiseRequest
from headshot_ui.families.sdxl_parts.files import published
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.shared_parts.load import quiet
from headshot_ui.families.shared_parts.mapped import AT_A_TIME
from headshot_ui.memory import files_bytes
from headshot_ui.settings import Settings
from tests.families.sgm_writer import checkpoint_from

NAME = "random-checkpoint.safetensors"
#: Number format and limit of main memory of each case.
CASES = {
    "float16": ("float16", None),
    "bfloat16": ("bfloat16", None),
    "float32": ("float32", None),
    "limited": ("float16", "12GB"),
}
SAMPLE_EVERY_S = 0.01
#: What may come beside weights and mapped pages: activations, the tokenizers, what libraries keep.
MARGIN = 2**30
_BLOCK = 2**25  # random numbers that are written over and over


# --- the checkpoint -----------------------------------------------------------------------------------
def shapes() -> dict[str, tuple[int, ...]]:
    """Tensor → shape, as in the file that Stability AI published."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    folder = published("base")

    def config(part: str) -> dict[str, Any]:
        return read_json_file(folder / part / "config.json")

    with quiet(), torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel.from_config(config("unet")),
            "vae": AutoencoderKL.from_config(config("vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(config("text_encoder"))),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig.from_dict(config("text_encoder_2"))),
        }
    # Buffers without numbers of their own are in no file.
    states = {name: dict(module.named_parameters()) for name, module in parts.items()}
    return {name: tuple(tensor.shape) for name, tensor in checkpoint_from(states).items()}


def write_checkpoint(path: Path) -> int:
    """Write it piece by piece, so that it is never in memory. Bytes."""
    header, end = {}, 0
    for name, shape in shapes().items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).half().numpy().tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, end, len(block)):
            file.write(block[: end - begin])
    return path.stat().st_size


# --- one case -----------------------------------------------------------------------------------------
class Peak:
    """Samples what the process has until it is closed."""

    def __init__(self) -> None:
        self.resident = self.own = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def close(self) -> dict[str, int]:
        self._stop.set()
        self._thread.join()
        return {"resident": max(self.resident, kernel_peak()), "own": self.own}

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            now = memory_now()
            self.resident, self.own = max(self.resident, now["resident"]), max(self.own, now["own"])


def memory_now() -> dict[str, int]:
    status = _status()
    return {"resident": status["VmRSS"], "own": status["RssAnon"] + status["RssShmem"]}


def kernel_peak() -> int:
    """The most that the process ever had, by the kernel's own count; nothing passes between two samples."""
    return _status()["VmHWM"]


def _status() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1] == "kB"}


def measure(case: str, checkpoint: Path) -> dict[str, Any]:
    dtype, limit = CASES[case]
    with tempfile.TemporaryDirectory() as outputs:
        settings = Settings.from_environment(
            models_dir=checkpoint.parent, outputs_dir=outputs, device="cpu", dtype=dtype, ram_limit=limit
        )
        info = next(base for base in families.all_bases(settings) if base.checkpoint == checkpoint)
        weights = files_bytes(weight_places(info), dtype)
        import_libraries()
        before, began, peak = memory_now(), time.perf_counter(), Peak()
        loaded = families.load_base(info, settings)
        in_turns = loaded.modules.unet is None
        if in_turns:
            draw(loaded)
        seconds, most, after = time.perf_counter() - began, peak.close(), memory_now()
    total = sum(weights.values())
    may = max(weights.values()) if in_turns else total
    took = most["resident"] - before["resident"]
    within = settings.ram_limit_bytes is None or most["resident"] <= settings.ram_limit_bytes
    return {
        "case": case, "dtype": dtype, "ram_limit_bytes": settings.ram_limit_bytes, "in_turns": in_turns,
        "weights_bytes": total, "largest_part_bytes": max(weights.values()), "file_bytes": checkpoint.stat().st_size,
        "before_bytes": before, "peak_bytes": most, "after_bytes": after,
        "peak_over_weights": {kind: (most[kind] - before[kind]) / total for kind in most},
        "seconds": seconds, "ok": within and took <= may + AT_A_TIME + MARGIN,
    }  # fmt: skip


def import_libraries() -> None:
    """What is there in a program that runs, whichever model it reads."""
    import diffusers.loaders.single_file_utils
    import transformers
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    _ = diffusers, transformers, AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    _ = transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection, transformers.CLIPTokenizer


def draw(loaded: Any) -> None:
    """Each part at its work, small, one after the other, as a job does it."""
    loaded.keep(frozenset({"text"}))
    embeds = loaded.encode_prompts(["portrait of a person"])
    loaded.keep(frozenset({"denoiser"}))
    request = DenoiseRequest(embeds, embeds, (0,), 1, guidance_scale=1.0, height=256, width=256)
    *_, last = loaded.denoise(request)
    loaded.keep(frozenset({"vae"}))
    loaded.decode_latents(torch.nan_to_num(last.latents.float()))


# --- all of them --------------------------------------------------------------------------------------
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, metavar="FOLDER", help="where the checkpoint lies")
    parser.add_argument("--write", action="store_true", help="write the checkpoint first, and remove it at the end")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--one", choices=tuple(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    checkpoint = args.folder.absolute() / NAME
    if args.one:
        print(json.dumps(measure(args.one, checkpoint)))
        return 0
    if args.write:
        args.folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint)
    try:
        results = [in_a_process(case, args.folder) for case in args.cases]
    finally:
        if args.write:
            checkpoint.unlink()
    ok = all(result["ok"] for result in results)
    print(json.dumps({"cases": results, "ok": ok}, indent=1))
    return 0 if ok else 1


def in_a_process(case: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(folder), "--one", case]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        return {"case": case, "ok": False, "error": run.stderr[-2000:] or f"ended with {run.returncode}"}
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    sys.exit(main())
