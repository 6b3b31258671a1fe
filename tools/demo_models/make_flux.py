"""Make the demo FLUX, all of it: draw, train the VAE and encode, train the transformer, measure.

    python -m tools.demo_models.make_flux --out /tmp/demo --work /tmp/flux_work            # 20 minutes on one H200
    python -m tools.demo_models.make_flux --out /tmp/demo --work /tmp/flux_work --smoke --device cpu

Started again with the same folders it goes on where it ended: a stage that is done is passed over, and VAE and
transformer go on from their checkpoints, which are written every half minute and every minute. ``--until`` ends after a
stage, for machines that are lent for a few minutes at a time. On another machine ``--out`` and the ``.pt`` files of
``--work`` are enough: pictures are drawn and encoded again, the same ones.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.demo_models import flux_pipeline
from tools.demo_models.common import say

STAGES = ("draw", "vae", "train", "check")
#: The VAE that was made by these scripts (140 s of training); another one needs another transformer.
MADE_VAE = Path(__file__).with_name("flux_vae")


@dataclass(frozen=True)
class Stage:
    """One script; ``done`` is what it leaves at its very end."""

    name: str
    module: str
    arguments: tuple[str, ...]
    done: Path


def stages(options: argparse.Namespace) -> tuple[Stage, ...]:
    """All stages in order."""
    work, out, data = options.work, options.out, options.data or options.work / "drawn"
    common = ["--device", options.device] if options.device else []
    common += ["--smoke"] if options.smoke else []
    seconds = (3, 6) if options.smoke else (options.vae_seconds, options.seconds)
    people = () if options.smoke else ("--people", str(options.people), "--each", "12")
    checkpoint = work / "flux.pt"
    done = work / "train.done"
    return (
        Stage("draw", "dataset", ("--out", str(data), *people, *common), data / "facts.json"),
        Stage(
            "vae",
            "train_flux_vae",
            (
                "--data",
                str(data),
                "--out",
                str(out),
                "--seconds",
                str(seconds[0]),
                "--checkpoint",
                str(work / "flux_vae.pt"),
                *common,
            ),
            data / "flux_latents.safetensors",
        ),
        Stage(
            "train",
            "train_flux",
            (
                "--data",
                str(data),
                "--out",
                str(out),
                "--seconds",
                str(seconds[1]),
                "--checkpoint",
                str(checkpoint),
                *common,
            ),
            done,
        ),
        Stage(
            "check", "check_flux", ("--models", str(out), "--out", str(work / "check"), *common), work / "check.done"
        ),
    )


def take_vae(folder: Path) -> None:
    """Put the VAE that is kept here into ``folder`` unless there is one; then the stage of that name only encodes."""
    if not (folder / "config.json").exists():
        shutil.copytree(MADE_VAE, folder, dirs_exist_ok=True)


def run(stage: Stage, environment: dict[str, str]) -> None:
    """Carry a stage out and mark it as done. Raises SystemExit where it fails."""
    started = time.monotonic()
    command = [sys.executable, "-m", f"tools.demo_models.{stage.module}", *stage.arguments]
    if subprocess.run(command, env=environment, check=False).returncode:
        raise SystemExit(f"[make] {stage.name} failed; started again, this goes on from there.")
    if not stage.done.exists():
        stage.done.touch()
    say(f"[make] {stage.name} took {time.monotonic() - started:.0f} s")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="models folder to write into")
    parser.add_argument("--work", type=Path, required=True, help="for what is needed until the end; 22 GB")
    parser.add_argument("--data", type=Path, help="drawn pictures, if elsewhere than in --work (e.g. /dev/shm/drawn)")
    parser.add_argument("--people", type=int, default=9_000, help="with twelve pictures each")
    parser.add_argument("--vae-seconds", type=float, default=140)
    parser.add_argument("--new-vae", action="store_true", help="train the VAE too, instead of taking the one kept here")
    parser.add_argument("--seconds", type=float, default=900, help="for the transformer")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1])
    parser.add_argument("--device", default="")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, to see in seconds that everything runs")
    return parser.parse_args(words)


def main() -> None:
    """Carry out what is not done yet."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.new_vae or options.smoke):
        take_vae(options.out / flux_pipeline.FOLDER / "vae")
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(options.work / "inductor"))
    for stage in stages(options):
        if stage.done.exists():
            say(f"[make] {stage.name} is done already")
        else:
            run(stage, environment)
        if stage.name == options.until:
            break
    folder = options.out / flux_pipeline.FOLDER
    if (folder / "model_index.json").is_file():
        say(f"[make] {folder}: {flux_pipeline.folder_bytes(folder) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
