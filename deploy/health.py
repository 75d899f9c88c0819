"""Whether what a container runs is well: status 0 if it is, 1 and a word of why if it is not.

A scheduler or a worker says in its command line where it serves HTTP (``--dashboard-address :8787``), and answers there
at ``/health``. The command line is that of process 1, under which everything else in a container runs. What says no
such thing, a notebook or a run, has nothing to be asked and is well as long as it is there.
"""

import sys
import urllib.request
from pathlib import Path

OPTION = "--dashboard-address"
PATIENCE = 10


def address_in(arguments):
    """Return where a command line serves HTTP; None if it does not say so."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == OPTION:
            return following
        if argument.startswith(f"{OPTION}="):
            return argument.removeprefix(f"{OPTION}=")
    return None


def main(command_line="/proc/1/cmdline"):
    """Ask, and return the exit status."""
    address = address_in(Path(command_line).read_bytes().decode().split("\0"))
    if address is None:
        return 0
    port = address.rpartition(":")[2]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=PATIENCE) as answer:
            answer.read()
    except OSError as error:  # of which errors of HTTP are a kind
        sys.stderr.write(f"nothing well answers at port {port}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
