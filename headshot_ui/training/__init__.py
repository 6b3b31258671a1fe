"""Training: a prepared dataset in, a LoRA out. ``runner.train`` is the way in."""
