"""Draws a world of cartoon people and trains the demo models from it."""
