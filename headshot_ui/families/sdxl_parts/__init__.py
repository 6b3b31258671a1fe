"""The parts of the SDXL family. Imported only when a model is loaded, so torch may be at the top."""
