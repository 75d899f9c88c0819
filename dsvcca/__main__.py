"""`dsvcca` and `python -m dsvcca` are the command line."""

import gc

from dsvcca.cli import app


def main() -> None:
    """Run the command line."""
    gc.freeze()  # what was imported stays to the end; to look for garbage in it took a sixth of a short command
    app(prog_name="dsvcca")


if __name__ == "__main__":
    main()
