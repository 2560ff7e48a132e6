"""A real object store over HTTP (moto's S3, or another), behind a proxy that fails where a test says."""

import hashlib
import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Not written here, for tests look for them in copies of the project too.
KEY, SECRET = (hashlib.sha256(name).hexdigest() for name in (b"key", b"secret"))
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Answer:
    """What the server answered, and how much of it the proxy sends, after how many seconds."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    sent: int | None = None
    seconds: float = 0.0


Fault = Callable[[Answer], None]


def unavailable(answer: Answer) -> None:
    _refuse(answer, 503, "ServiceUnavailable", "try later")


def forbidden(answer: Answer) -> None:
    _refuse(answer, 403, "AccessDenied", "not for you")


def _refuse(answer: Answer, status: int, code: str, message: str) -> None:
    answer.status, answer.headers = status, [("Content-Type", "application/xml")]
    answer.body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def cut(answer: Answer) -> None:
    """The connection ends in the middle of the body."""
    answer.sent = len(answer.body) // 2


def slow(answer: Answer) -> None:
    answer.seconds = 0.5


def ends_early(answer: Answer) -> None:
    """A page of a listing that says that it is the last one, and is not."""
    answer.body = answer.body.replace(b"<IsTruncated>true<", b"<IsTruncated>false<")
    answer.body = re.sub(rb"<NextContinuationToken>.*?</NextContinuationToken>", b"", answer.body)


def loses_a_key(answer: Answer) -> None:
    """A page without one of its objects."""
    answer.body = re.sub(rb"<Contents>.*?</Contents>", b"", answer.body, count=1, flags=re.DOTALL)


@dataclass
class Store:
    """The server behind its proxy at `url`; `fail` makes it fail, `requests` are those it got, as `GET /bucket/key bytes=0-99`."""

    url: str
    behind: str
    requests: list[str] = field(default_factory=list)
    gate: threading.Lock = field(default_factory=threading.Lock)  # while it is held, requests are taken and not answered
    _faults: list[list] = field(default_factory=list)

    def fail(self, pattern: str, fault: Fault, times: int = 1) -> None:
        """Apply a fault to the next answers to requests that match."""
        self._faults.append([re.compile(pattern), fault, times])

    def failures_left(self) -> int:
        return sum(times for _, _, times in self._faults)

    def forget(self) -> None:
        self._faults.clear()
        self.requests.clear()

    @cached_property
    def client(self):
        import boto3

        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=f"http://{self.behind}", **keys)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=content)

    def keys(self, bucket: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def upload(self, folder: Path, bucket: str, prefix: str = "") -> str:
        """A new bucket with the files of a folder below a prefix; returns its URL."""
        client = self.client
        client.create_bucket(Bucket=bucket)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            key = f"{prefix}/{path.relative_to(folder).as_posix()}" if prefix else path.relative_to(folder).as_posix()
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
        return f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"

    def applied(self, request: str, answer: Answer) -> Answer:
        self.requests.append(request)
        for fault in self._faults:
            if fault[2] and fault[0].search(request):
                fault[2] -= 1
                fault[1](answer)
        return answer


@contextmanager
def running() -> Iterator[Store]:
    """Moto's server behind the proxy, on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        with behind_proxy("{}:{}".format(*server.get_host_and_port())) as store:
            yield store
    finally:
        server.stop()


@contextmanager
def behind_proxy(server: str) -> Iterator[Store]:
    """A proxy before the server at `HOST:PORT`."""
    store = Store("", server)

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with store.gate:
                pass
            upstream = http.client.HTTPConnection(store.behind)
            upstream.request(self.command, self.path, body, dict(self.headers))
            response = upstream.getresponse()
            headers = [
                (name, value)
                for name, value in response.getheaders()
                if name.lower() not in ("connection", "date", "server", "transfer-encoding")
            ]
            answer = Answer(response.status, headers, response.read())
            upstream.close()
            answer = store.applied(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip(), answer)
            if self.command != "HEAD":
                answer.headers = [pair for pair in answer.headers if pair[0].lower() != "content-length"]
                answer.headers.append(("Content-Length", str(len(answer.body))))
            time.sleep(answer.seconds)
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(answer.body if answer.sent is None else answer.body[: answer.sent])
            if answer.sent is not None:
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

        def log_message(self, *arguments: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    store.url = f"http://127.0.0.1:{proxy.server_address[1]}"
    try:
        yield store
    finally:
        proxy.shutdown()
        proxy.server_close()
