"""Draw the gallery: run the code of gallery.md in a folder of `dsvcca demo`, and write the figure of each block.

python docs/gallery.py DEMO_FOLDER [OUT] [--dark]
"""

from __future__ import annotations

import argparse
import os
import re
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot

PAGE = Path(__file__).parent / "gallery.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=PAGE.parent)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    mpl.use("Agg")
    if options.dark:
        pyplot.style.use("dark_background")
    out = options.out.absolute()
    os.chdir(options.folder)
    warnings.simplefilter("ignore")
    names: dict[str, object] = {}
    for code, picture in re.findall(r"```python\n(.*?)```(?:\n\n!\[[^]]*\]\(([^)]*)\))?", PAGE.read_text(), re.DOTALL):
        exec(code, names)
        if picture:
            axes = np.atleast_1d(np.asarray(names["axes"], dtype=object)).flat[0]
            (out / picture).parent.mkdir(parents=True, exist_ok=True)
            axes.figure.savefig(out / picture, dpi=100)
            pyplot.close("all")


if __name__ == "__main__":
    main()
