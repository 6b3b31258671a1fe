"""The command ``bench``: how fast the program is beside the usual way of doing the same work.

``works/`` holds what is measured, one file each, found by looking. A work measures the reference way and ours in one
process on the same models and inputs, and yields ``rows.Row``s; the rest is what works share.
"""
