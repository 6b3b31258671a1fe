"""LoRA, as far as it is the same for every family. Imported only when one is read, so torch may be at the top."""
