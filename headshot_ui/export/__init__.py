"""Finished pictures → files for a purpose: cropped, without hidden notes, marked as AI-generated if wanted, zipped.

``layouts`` says what there is, ``framing`` where to cut, ``render`` cuts, ``files`` writes, ``runner`` does it all.
Nothing here loads a model: the face detector is handed in.
"""

from __future__ import annotations

from headshot_ui.export.layouts import LAYOUTS, Layout, find_layout
from headshot_ui.export.render import preview
from headshot_ui.export.runner import ExportedFile, ExportResult, export_pictures

__all__ = ["LAYOUTS", "ExportResult", "ExportedFile", "Layout", "export_pictures", "find_layout", "preview"]
