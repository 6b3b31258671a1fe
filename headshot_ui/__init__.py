"""headshot_ui: photos of one person in, a trained LoRA and ranked headshots out."""

__version__ = "0.1.0"
