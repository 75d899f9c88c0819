"""A server in a process of its own that speaks S3: moto's."""

import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager


@contextmanager
def s3_server(folder):
    """Start it and give its address; it ends with the context. Its log is in `folder`."""
    with (folder / "log").open("w+") as log:
        line = [sys.executable, "-m", "moto.server", "-p", "0", "-H", "127.0.0.1"]
        process = subprocess.Popen(line, stdout=log, stderr=log)
        try:
            address = None
            for _ in range(300):
                log.seek(0)
                lines = [line for line in log.read().splitlines() if "Running on http" in line]
                if lines:
                    address = lines[-1].split()[-1]
                    break
                time.sleep(0.1)
            assert address, "the server did not start"
            urllib.request.urlopen(address).close()
            yield address
        finally:
            process.terminate()
            process.wait()
