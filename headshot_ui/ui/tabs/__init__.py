"""One file per tab, each with ``build(shell) -> Tab``; ``headshot_ui/ui/tab.py`` says what they are given."""
