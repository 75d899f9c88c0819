"""A proxy before an S3 server, in this process, that makes faults on request and counts what passes."""

import http.client
import random
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

CODES = {"InternalError": 500, "SlowDown": 503, "AccessDenied": 403, "InvalidAccessKeyId": 403, "NoSuchKey": 404}
ANYTHING = ("GET", "HEAD", "LIST", "PUT", "COPY", "REMOVE")
OWN = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect", "server", "date")
"""Headers that are not forwarded: of one connection, or said anew."""


@dataclass
class Rule:
    """What happens to some requests.

    Attributes
    ----------
    fault : str
        A code of S3 ("InternalError", ...) answered instead of asking the server; "inside" answers 200 with an error in
        the body; "delay" waits for `seconds`; "drop" closes the connection instead of asking, "deaf" after asking;
        "hang" never answers; "cut" closes it in the middle of the body; "truncate" answers half of the body as if it
        were all; "flip" changes one bit in the middle of it; "spoil" too, but leaves the checksum that the server sent;
        "down" refuses connections from then on, for `seconds` if given.
    kinds : tuple of str
        GET, HEAD, PUT; LIST a prefix, COPY from another place, REMOVE several.
    part : str
        What the path, or the prefix listed, contains.
    skip, times : int
        So many requests pass first, so many then do not.
    every : int
        Of those only every so-manyth.
    """

    fault: str
    kinds: tuple[str, ...] = ANYTHING
    part: str = ""
    skip: int = 0
    times: int = 1 << 30
    every: int = 1
    seconds: float | None = None
    seen: int = 0
    hits: int = 0

    def strikes(self, kind, path):
        """Return whether this request is struck; count it if so."""
        if kind not in self.kinds or self.part not in path or self.hits >= self.times:
            return False
        self.seen += 1
        struck = self.seen > self.skip and self.seen % self.every == 0
        self.hits += struck
        return struck


@dataclass
class Answer:
    """What the server answered."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    length: int | None = None


class Proxy:
    """Forwards to `server` ("http://host:port") whatever no rule strikes.

    Attributes
    ----------
    rules : list of Rule
    requests : list of (kind, path)
        Since the last reset.
    """

    def __init__(self, server):
        self.server = urlsplit(server).netloc
        self.rules: list[Rule] = []
        self.requests: list[tuple[str, str]] = []
        self.only_key = ""
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._connections: set[socket.socket] = set()
        self._timers: list[threading.Timer] = []
        self._port = 0
        self._http = None
        self.up()

    @property
    def url(self):
        """Where clients find it."""
        return f"http://127.0.0.1:{self._port}"

    def rule(self, fault, kinds=ANYTHING, part="", **more):
        """Add a rule; return it."""
        made = Rule(fault, (kinds,) if isinstance(kinds, str) else kinds, part, **more)
        with self._lock:
            self.rules.append(made)
        return made

    def reset(self):
        """Take all faults away, and forget what was counted."""
        for timer in self._timers:
            timer.cancel()
        self.up()
        with self._lock:
            self.rules, self.requests, self.only_key, self._timers = [], [], "", []
            self._released.set()
            self._released = threading.Event()

    def count(self, kinds=ANYTHING, part=""):
        """Return the number of requests since the last reset."""
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        with self._lock:
            return sum(kind in kinds and part in path for kind, path in self.requests)

    def up(self):
        """Listen, at the same port as before."""
        with self._lock:
            if self._http is not None:
                return
            handler = type("Handler", (_Handler,), {"proxy": self})
            # Below what the system hands out by itself, so that nobody takes the port while it is down.
            for port in [self._port] if self._port else random.sample(range(20_000, 30_000), 100):
                with suppress(OSError):
                    self._http = _Server(("127.0.0.1", port), handler)
                    self._port = port
                    break
            assert self._http is not None, "no port is free"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def down(self, seconds=None):
        """Close every connection and refuse new ones, for so long or until `up`."""
        with self._lock:
            server, self._http = self._http, None
            connections, self._connections = self._connections, set()
        if server is None:
            return
        server.shutdown()
        server.server_close()
        for one in connections:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        if seconds is not None:
            self._timers.append(threading.Timer(seconds, self.up))
            self._timers[-1].daemon = True
            self._timers[-1].start()

    def _struck(self, kind, path, key):
        with self._lock:
            self.requests.append((kind, path))
            if self.only_key and f"Credential={self.only_key}/" not in key:
                return Rule("InvalidAccessKeyId")
            return next((one for one in self.rules if one.strikes(kind, path)), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Say nothing: connections are closed on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy

    def setup(self):
        super().setup()
        self.upstream = http.client.HTTPConnection(self.proxy.server, timeout=60)
        with self.proxy._lock:
            self.proxy._connections.add(self.connection)

    def finish(self):
        with self.proxy._lock:
            self.proxy._connections.discard(self.connection)
        self.upstream.close()
        with suppress(OSError):
            super().finish()

    def log_message(self, *args):
        """Say nothing."""

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        where = urlsplit(self.path)
        query = parse_qs(where.query, keep_blank_values=True)
        kind, path = self.command, unquote(where.path)
        if kind == "GET" and "list-type" in query:
            kind, path = "LIST", f"{path}/{query.get('prefix', [''])[0]}"
        elif kind == "PUT" and "x-amz-copy-source" in self.headers:
            kind = "COPY"
        elif kind == "POST" and "delete" in query:
            kind = "REMOVE"
            path += " " + unquote(body.decode(errors="replace"))
        rule = self.proxy._struck(kind, path, self.headers.get("Authorization", ""))
        released = self.proxy._released
        if rule is None:
            self._send(self._forward(body))
        elif rule.fault in CODES:
            self._send(_refusal(rule.fault, CODES[rule.fault]))
        elif rule.fault == "inside":
            self._send(_refusal("InternalError", 200))
        elif rule.fault == "delay":
            released.wait(rule.seconds)
            self._send(self._forward(body))
        elif rule.fault == "hang":
            released.wait(60)
            self._close()
        elif rule.fault == "drop":
            self._close()
        elif rule.fault == "deaf":
            self._forward(body)
            self._close()
        elif rule.fault == "down":
            self.proxy.down(rule.seconds)
            self._close()
        else:
            answer = self._forward(body)
            half = len(answer.body) // 2
            if rule.fault != "spoil":
                answer.headers = [one for one in answer.headers if "checksum" not in one[0].lower()]
            if rule.fault == "cut":
                answer.length, answer.body = len(answer.body), answer.body[:half]
            elif rule.fault == "truncate":
                answer.body = answer.body[:half]
            elif rule.fault in ("flip", "spoil"):
                spoiled = bytearray(answer.body)
                spoiled[half] ^= 1
                answer.body = bytes(spoiled)
            else:
                raise AssertionError(rule.fault)
            self._send(answer)
            if rule.fault == "cut":
                self._close()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _forward(self, body):
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OWN}
        for again in (False, True):
            try:
                self.upstream.request(self.command, self.path, body=body, headers=headers)
                found = self.upstream.getresponse()
                content = found.read()
                break
            except (http.client.HTTPException, OSError):
                self.upstream.close()
                if again:
                    raise
        kept = [(name, value) for name, value in found.getheaders() if name.lower() not in OWN]
        length = int(found.getheader("Content-Length") or 0) if self.command == "HEAD" else None
        return Answer(found.status, kept, content, length)

    def _send(self, answer):
        lines = [f"HTTP/1.1 {answer.status} {http.client.responses.get(answer.status, '')}"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        lines.append(f"Content-Length: {len(answer.body) if answer.length is None else answer.length}")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        self.wfile.write(head + (b"" if self.command == "HEAD" else answer.body))

    def _close(self):
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _refusal(code, status):
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} by the proxy</Message></Error>"
    return Answer(status, [("Content-Type", "application/xml")], text.encode())
