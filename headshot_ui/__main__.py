"""``python -m headshot_ui`` is the same as ``python app.py`` once everything is set up."""

import sys

from headshot_ui.cli import main

if __name__ == "__main__":
    sys.exit(main())
