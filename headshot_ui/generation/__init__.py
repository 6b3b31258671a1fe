"""Presets × seeds → pictures, scored and ranked."""
