"""The checks, one file for each part of the program they try. ``ALL`` is their order."""

from __future__ import annotations

from headshot_ui.prove.checks.drawing import (
    check_bare_pictures,
    check_likeness,
    check_lora_off,
    check_lora_pictures,
    check_repeats,
    check_strength_zero,
)
from headshot_ui.prove.checks.finishing import check_ensemble, check_img2img, check_restoration
from headshot_ui.prove.checks.learning import check_loss, check_photos, check_training
from headshot_ui.prove.checks.machine import check_device, check_files, check_memory, check_swap
from headshot_ui.prove.checks.reading_back import check_other_programs, check_read_back
from headshot_ui.prove.findings import Check

ALL: tuple[Check, ...] = (
    Check("files", "the weights are whole", check_files),
    Check("device", "the device computes right", check_device),
    Check("photos", "faces are found and photos prepared", check_photos),
    Check("repeats", "the same request draws the same", check_repeats, ("device",)),
    Check("pictures", "the base draws pictures", check_bare_pictures, ("photos",)),
    Check("training", "a short training runs to its end", check_training, ("photos",)),
    Check("loss", "training brings the loss down", check_loss, ("training",)),
    Check("lora", "the LoRA changes the pictures", check_lora_pictures, ("pictures", "training")),
    Check("lora-off", "without the LoRA the base is bit-equal to before", check_lora_off,
          ("repeats", "pictures", "training")),
    Check("strength-0", "strength 0 is no LoRA", check_strength_zero, ("repeats", "pictures", "training")),
    Check("swap", "leaving the graphics card changes nothing", check_swap, ("repeats",)),
    Check("refiner-ensemble", "the refiner takes over", check_ensemble, ("pictures", "training")),
    Check("refiner-img2img", "the refiner draws over", check_img2img, ("pictures", "training")),
    Check("restoration", "a face is restored", check_restoration),
    Check("likeness", "likeness is measured", check_likeness, ("pictures", "training")),
    Check("other-programs", "the LoRA for other programs is the same", check_other_programs, ("repeats", "training")),
    Check("read-back", "diffusers reads the LoRA with the same effect", check_read_back, ("repeats", "training")),
    Check("memory", "memory is given back", check_memory, ("device",)),
)  # fmt: skip
