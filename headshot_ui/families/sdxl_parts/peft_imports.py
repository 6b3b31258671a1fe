"""What peft would import for nothing."""

from __future__ import annotations


def spare_bitsandbytes() -> None:
    """Keep peft from importing bitsandbytes for every LoRA, only to see that no layer here is one of its own.

    That took 1.8 s and 51 MB, writes warnings over what a person reads, and would tie every LoRA to a library that
    only an optimizer needs. peft has no setting for it.
    """
    from peft.tuners.lora import model

    model.is_bnb_available = model.is_bnb_4bit_available = lambda: False
