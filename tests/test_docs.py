"""The code of the README and of the documentation runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text("utf-8")]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    """All the Python of a page, typed in its order into one file, runs."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    for module in re.findall(r"^from (sqlmodel)", "\n".join(blocks), re.MULTILINE):
        pytest.importorskip(module)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), "utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert "" == done.stderr
    assert 0 == done.returncode
    assert done.stdout or page.name == "README.md"


def test_readme_says_what_its_first_example_prints() -> None:
    """The comment behind the first example is what it really prints."""
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    promised = re.findall(r"# > (.*)", block)

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        check=True,
        capture_output=True,
        text=True,
    )

    assert promised == done.stdout.splitlines()
