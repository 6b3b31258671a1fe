"""Models that the program can fetch by itself: what there is, getting it whole, checking it, removing it.

``catalogue/`` holds one data file per entry; ``records.py`` remembers what was put under ``models/``.
"""
