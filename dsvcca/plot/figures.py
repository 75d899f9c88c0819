"""Figures that show themselves in notebooks, whoever made them."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from dsvcca.errors import needing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches that belongs to no window: nothing has to be closed.

    Notebooks know such figures only once pyplot has drawn another; this one brings its own picture.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    with needing("figures need", "plot"):
        from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            drawn = BytesIO()
            self.savefig(drawn, format="png", dpi=100)
            return drawn.getvalue()

    figure: Any = Shown(figsize=(width, height), layout="constrained")
    return figure  # type: ignore[no-any-return]
