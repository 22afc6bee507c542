"""The ways through the house stay short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_limits() -> None:
    """No journey passes more modules than tools/journeys.py allows."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.journeys", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
