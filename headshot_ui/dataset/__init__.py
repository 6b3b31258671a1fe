"""Photos of a person → checked, cropped, captioned training material.

``prepare`` runs the stage, ``intake`` and ``decode`` read, ``detector`` finds faces, ``checks`` and ``compare`` judge,
``crop`` and ``caption`` make the material, ``saved`` keeps it and takes a person's changes.
"""
