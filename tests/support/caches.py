"""What a cache holds, as none of its processes can change it meanwhile."""

from __future__ import annotations

from qray.storage.cache import COUNT, Cache


def held_bytes(cache: Cache) -> int:
    """Bytes of data in a cache. Files come and go one at a time, under its lock: a look without it sees one by both of
    its names, or what has made way for another and the other too."""
    with cache._counted():
        return sum(path.stat().st_size for path in cache.folder.glob("*") if path.name != COUNT)
