"""Schedulers that are there already, by their address."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from distributed import Client, Security
from distributed.core import rpc

from dsvcca.errors import DsvccaError

TLS = {"--tls-ca": "tls_ca_file", "--tls-cert": "tls_client_cert", "--tls-key": "tls_client_key"}
"""What Dask calls the options of TLS."""


CONNECT = 10
"""Seconds that a scheduler has to answer at first."""


CLOSE = 5
"""Seconds that it has to let a client go."""


@contextmanager
def joined_client(address: str, tls: Sequence[str | os.PathLike[str] | None]) -> Iterator[Client]:
    """Connect to a scheduler; by TLS if its address or a certificate asks for it, and then not otherwise.

    Where the connection is lost an error says so; what Dask's clients say meanwhile, with a traceback, is left out.
    """
    given = {option: str(path) for option, path in zip(TLS, tls, strict=True) if path is not None}
    security = Security(require_encryption=True if given else None, **{TLS[option]: given[option] for option in given})
    try:
        secured = security.get_connection_args("client").get("ssl_context") is not None
    except OSError as error:
        raise DsvccaError(
            f"{', '.join(given.values()) or 'the certificates'} cannot be used ({error}): check the paths"
        ) from error
    if secured != address.startswith("tls://"):
        raise DsvccaError(
            f"{address!r} and what is known of TLS do not fit: a scheduler at tls:// needs {', '.join(TLS)} (or "
            "distributed.comm.tls in Dask's configuration); with them nothing else will do"
        )
    try:
        ask_scheduler(address, security)
    except OSError as error:
        hint = "" if secured else "; if it speaks TLS its address begins with tls://"
        raise DsvccaError(
            f"no Dask scheduler answers at {address!r} ({error}): check the address, start it{hint}"
        ) from error
    said = logging.getLogger("distributed.client")
    quiet = _Quiet()
    said.addFilter(quiet)
    try:
        client = Client(address, timeout=CONNECT, security=security, set_as_default=False)
        try:
            yield client
        finally:
            with suppress(TimeoutError):  # a scheduler that has ended answers no more
                client.close(timeout=CLOSE)
    finally:
        said.removeFilter(quiet)


class _Quiet(logging.Filter):
    """Lets nothing through that is less than critical."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.CRITICAL


def ask_scheduler(address: str, security: Security) -> None:
    """Raise an OSError if no scheduler answers at an address within CONNECT seconds; no client is made for it."""

    async def ask() -> None:
        async with rpc(address, connection_args=security.get_connection_args("client")) as scheduler:
            said = await scheduler.identity()
            if said.get("type") != "Scheduler":
                raise OSError(f"there is a {said.get('type')}")

    async def in_time() -> None:
        await asyncio.wait_for(ask(), CONNECT)

    try:
        with ThreadPoolExecutor(1, "dsvcca-ask") as asking:  # a notebook has an event loop in this thread already
            asking.submit(asyncio.run, in_time()).result()
    except TimeoutError as error:
        raise OSError(f"no answer in {CONNECT} s") from error
    except OSError:
        raise
    except Exception as error:  # whatever comes of speaking to something else
        raise OSError(f"{type(error).__name__}: {error}") from error
