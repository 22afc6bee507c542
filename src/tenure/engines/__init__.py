"""From a URL to a connection: pairs of engines, each made when first used."""

from .counting import changes
from .drivers import is_async_url
from .manager import DatabaseManager
from .read_only import begin_reading, end_reading
from .sqlite import begin_late

__all__ = [
    "DatabaseManager",
    "begin_late",
    "begin_reading",
    "changes",
    "end_reading",
    "is_async_url",
]
