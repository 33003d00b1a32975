"""Run the supervisor by the path of this folder: ``python runner/fleet PLAN``.

By path, because importing the package `runner` would make the supervisor four times as large.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

NAME = "runner_fleet"

if __name__ == "__main__":
    folder = Path(__file__).resolve().parent
    del sys.path[0]  # the folder itself: its modules are not to be found by their short names
    spec = importlib.util.spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    sys.exit(importlib.import_module(f"{NAME}.start").main(sys.argv[1]))
