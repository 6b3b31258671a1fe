"""One file per command. Each offers ``add(subparsers, parents)`` and ``run(args) -> int`` (the exit code)."""
