"""Run the supervisor by the path of its folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    del sys.path[0]  # the folder itself, where relative imports find no package
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    importlib.import_module("supervisor.loop").main(parent=int(sys.argv[1]))
