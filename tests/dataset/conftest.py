import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real photographs and real detector weights."""
    named = os.environ.get("HEADSHOT_UI_TESTDATA", "")
    if not named or not (Path(named) / "models").is_dir():
        pytest.skip("needs real photographs: set HEADSHOT_UI_TESTDATA to the folder that holds them")
    return Path(named)
