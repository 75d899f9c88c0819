"""Run in an image by tests/image.sh: the command lines of deploy/compose.yaml, as the user of the image.

Root is read-only but for /tmp and /data, as on Kubernetes. Services find each other by the loopback address, at ports
that nobody has.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml

import dsvcca

ENTRYPOINT = ["tini", "-g", "--"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def commands():
    """Return the command line of each service, with what the environment says where it says nothing."""
    services = yaml.safe_load(Path("/compose.yaml").read_text())["services"]
    ports = {port: str(free_port()) for port in ("8786", "8787", "8788", "8888")}
    found = {}
    for name, service in services.items():
        words = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(word)) for word in service["command"]]
        for port, here in ports.items():
            words = [word.replace(port, here) for word in words]
        found[name] = [word.replace("tcp://scheduler:", "tcp://127.0.0.1:") for word in words]
    return found, ports


def well(process):
    """Return whether the image takes what runs for well."""
    check = [sys.executable, "/opt/dsvcca/health.py", f"/proc/{process.pid}/cmdline"]
    return subprocess.run(check, check=False, capture_output=True).returncode == 0


def until(what, condition):
    """Wait for something, a minute at most."""
    for _ in range(120):
        if condition():
            print(f"{what}: so", flush=True)
            return
        time.sleep(0.5)
    raise SystemExit(f"{what}: not so after a minute")


def listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", int(port))) == 0


def main():
    try:
        Path("/opt/dsvcca/there").touch()
    except OSError as error:
        print(f"user {os.getuid()}, {error}")
    else:
        raise SystemExit("the root of the image can be written to")
    store = dsvcca.create_store("/data/activations.zarr", datapoints=2000)
    for seed in range(6):
        activations = np.random.default_rng(seed).standard_normal((2000, 32))
        store.write(activations.astype("float32"), layer="a", seed=seed)
    lines, ports = commands()
    log = os.open("/tmp/log", os.O_WRONLY | os.O_CREAT)
    started = {}
    for name in ("scheduler", "worker", "notebook"):
        started[name] = subprocess.Popen([*ENTRYPOINT, *lines[name]], stdout=log, stderr=log)
        if name != "notebook":
            until(f"{name} is well", lambda process=started[name]: well(process))
    until("the notebook answers", lambda: listens(ports["8888"]))
    assert well(started["notebook"])
    driven = subprocess.run([*ENTRYPOINT, *lines["driver"]], check=False)
    print(f"the driver ended with {driven.returncode}")
    if driven.returncode or not np.isfinite(dsvcca.open_results("/data/results.zarr").svcca.values).all():
        raise SystemExit(Path("/tmp/log").read_text())
    for name, process in reversed(started.items()):
        process.send_signal(signal.SIGTERM)
        print(f"{name} ended with {process.wait(30)}")


if __name__ == "__main__":
    main()
