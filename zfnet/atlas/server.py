"""Serve an atlas to a browser on this machine, with a page for the visitor's own pictures.

The server keeps nothing: the browser sends the picture with every question, and no answer is stored. The server refuses
other hosts and origins, large or slow bodies, files with too many pixels, and more questions at a time than can wait,
before the network sees them. One thread runs the network; requests wait in line.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import io
import ipaddress
import json
import math
import mimetypes
import queue
import re
import socket
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from torch import Tensor

from zfnet.atlas.answers import MAPS, Answers, MapAnswer, UnitAnswer
from zfnet.data.photos import NoImage, TooManyPixels, check_declared
from zfnet.errors import InputError, first_line

try:
    import anyio
    import uvicorn
    from starlette.applications import Starlette
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise InputError(f"serving needs {error.name}: pip install 'zfnet[serve]'") from None

SITE = Path(__file__).parent / "site"
OWN = ("own.js", "own.css")  # what the site has only where it is served
LOCAL = ("localhost", "127.0.0.1", "[::1]")
CONNECTIONS = 64
MOST_MAPS = 512  # of each layer, in an answer
_DRAIN = 4  # times the limit that is read of a body that is too large, so that its sender hears the answer
_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".svg": "image/svg+xml",
}
_POLICY = (  # media-src: the webcam
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
_CLOSE = {"connection": "close"}  # what is left of the body is not read
Result = TypeVar("Result")


class Limits(NamedTuple):
    """The limits of requests."""

    bytes: int = 20 * 2**20  # of a picture's file
    pixels: int = 40_000_000
    seconds: float = 30  # for a body, and for the head of a request
    waiting: int = 8  # requests in line behind the one that is answered
    held: int = 200 * 2**20  # bytes of all bodies that are being read or wait


DEFAULT = Limits()


class Busy(Exception):
    """More requests than can wait."""


class Line:
    """One thread that runs the network, and the line of those who wait for it.

    Args:
        waiting: how many may wait.
    """

    def __init__(self, waiting: int) -> None:
        self.most, self._count, self._lock = waiting + 1, 0, threading.Lock()
        self._work: queue.SimpleQueue[tuple[concurrent.futures.Future[Any], Callable[[], Any]] | None]
        self._work = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread after its current work, which cannot be interrupted, and drop waiting requests."""
        with contextlib.suppress(queue.Empty):
            while waiting := self._work.get_nowait():
                waiting[0].cancel()
        self._work.put(None)
        self._thread.join()

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, run in its turn. Raises Busy. Work that is cancelled while it waits is not done."""
        with self._lock:
            if self._count >= self.most:
                raise Busy
            self._count += 1
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()
        future.add_done_callback(self._done)
        self._work.put((future, work))
        return await asyncio.wrap_future(future)

    def _done(self, _: concurrent.futures.Future[Any]) -> None:
        with self._lock:
            self._count -= 1

    def _serve(self) -> None:
        while (waiting := self._work.get()) is not None:
            future, work = waiting
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            del future, work, waiting  # nothing of a picture is kept while the thread waits


class Guard:
    """Lets through what the atlas' own page asks for, and gives every answer its headers.

    A page of another site could have the visitor's browser ask this server: its origin tells. By a name that it makes
    point to this machine (DNS rebinding) it would be of the same origin: then the host's name tells.

    Args:
        app: what answers.
        hosts: names by which the server may be called, in lower case.
        addresses: whether it may be called by any IP address, which no name can pretend to be.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], addresses: bool) -> None:
        self.app, self.hosts, self.addresses = app, hosts, addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        app = self.app if refusal is None else _error(HTTPStatus.FORBIDDEN, refusal)
        await app(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        """Why a request is refused; None: it is not."""
        host = headers.get("host", "")
        if not self._known(host):
            return f"this server is not called {host[:80]!r}; open it by the address that it printed"
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            return "this server only answers its own page, not a page of another origin"
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
        opened = method == "GET" and mode == "navigate" and headers.get("sec-fetch-dest") == "document"
        if site not in ("none", "same-origin") and not opened:  # a link from elsewhere may be followed
            return "this server only answers its own page, not a page of another site"
        return None

    def _known(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        name = match[1].lower() if match else ""
        return name in self.hosts or (self.addresses and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class Files(StaticFiles):
    """The atlas' files, each with its type, to be asked for again when they may have changed."""

    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        return _typed(response, str(full_path))


def _typed(response: Response, name: str) -> Response:
    suffix = Path(name).suffix.lower()
    kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    response.headers["content-type"] = kind + "; charset=utf-8" * kind.startswith("text/")
    response.headers["cache-control"] = "no-cache"
    return response


def _error(status: HTTPStatus, message: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


def picture(image: Tensor) -> str:
    """A picture (3, H, W) in 0..1 as the address of a PNG that holds it."""
    pixels = (image * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous()
    Image.fromarray(pixels.numpy()).save(file := io.BytesIO(), "PNG", compress_level=3)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


class Pages:
    """The answers to a picture.

    Args:
        answers: of the network, beside its atlas.
        limits: of what is taken.
    """

    def __init__(self, answers: Answers, limits: Limits) -> None:
        self.answers, self.limits, self.line = answers, limits, Line(limits.waiting)
        self.index_html = _with_own(answers)
        self._held = 0

    async def index(self, request: Request) -> Response:
        return _typed(HTMLResponse(self.index_html), "index.html")

    async def served(self, request: Request) -> Response:
        limits = {"bytes": self.limits.bytes, "pixels": self.limits.pixels}
        return _typed(Response(f"window.ZFNET_SERVED = {json.dumps(limits)};\n"), "served.js")

    async def own(self, request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        return _typed(FileResponse(SITE / name), name)

    async def answer(self, request: Request) -> Response:
        """The classes, and each layer's most unusual maps."""
        count = _number(request, "count", 1, MOST_MAPS, MAPS)

        def work(image: Tensor) -> dict[str, Any]:
            found = self.answers.answer(image, count)
            classes = [entry._asdict() for entry in found.classes]
            about = {"image": picture(self.answers.pixels(image)), "size": list(self.answers.size)}
            return about | {"classes": classes, "note": found.note, "layers": [_listed(maps) for maps in found.layers]}

        return await self._worked(request, work)

    async def projection(self, request: Request) -> Response:
        """A unit's projection and crop: of the map's strongest unit, unless row and column are given."""
        layer, map = (_number(request, name, 0, 2**31) for name in ("layer", "map"))
        place = [_number(request, name, 0, 2**31, -1) for name in ("row", "column")]
        row, column = place if min(place) >= 0 else (None, None)

        def work(image: Tensor) -> dict[str, Any]:
            unit: UnitAnswer = self.answers.project(image, layer, map, row, column)
            return unit._asdict() | {"crop": picture(unit.crop), "projection": picture(unit.projection)}

        return await self._worked(request, work)

    async def place(self, request: Request) -> Response:
        """The most unusual units of each layer that see a pixel."""
        row, column = (_number(request, name, 0, 2**31) for name in ("row", "column"))
        count = _number(request, "count", 1, MOST_MAPS, MAPS)

        def work(image: Tensor) -> dict[str, Any]:
            units = self.answers.see(image, row, column, count)
            return {"row": row, "column": column, "layers": [_listed(maps) for maps in units]}

        return await self._worked(request, work)

    async def occlusion(self, request: Request) -> Response:
        """The probability of a class (the most probable one unless it is given) with a square at each place."""
        number = _number(request, "class", 0, 2**31, -1)

        def work(image: Tensor) -> dict[str, Any]:
            maps = self.answers.occlude(image, None if number < 0 else number)
            return {
                "class": maps.target,
                "probability": maps.probability.tolist(),
                "boxes": maps.boxes.tolist(),
                "clean": maps.clean[1],
            }

        return await self._worked(request, work)

    async def _worked(self, request: Request, work: Callable[[Tensor], dict[str, Any]]) -> Response:
        """The result of `work` for the picture in the body of a request, when the network is free."""
        async with self._body(request) as body:

            def prepared() -> bytes:
                check_declared(body, "the picture", self.limits.pixels)
                return bytes(JSONResponse(work(self.answers.prepared(body))).body)

            content = await _unless_gone(request, self.line.run(prepared))
        return Response(content, media_type="application/json")

    @contextlib.asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, which counts as held for as long as it is used."""
        most, parts, read, held = self.limits.bytes, list[bytes](), 0, 0
        try:
            with anyio.fail_after(self.limits.seconds):
                async for part in request.stream():
                    read += len(part)
                    if read > _DRAIN * most:
                        break
                    if read <= most:
                        held += len(part)
                        self._held += len(part)
                        parts.append(part)
                    if self._held > self.limits.held:
                        raise Busy
            if read > most:
                raise HTTPException(413, f"the file is larger than the limit of {_bytes(most)}", _CLOSE)
            yield b"".join(parts)
        except TimeoutError:
            late = f"the picture did not arrive within {self.limits.seconds:g} seconds"
            raise HTTPException(408, late, _CLOSE) from None
        finally:
            self._held -= held


def _bytes(number: int) -> str:
    return f"{number // 2**20} MiB" if number >= 2**20 else f"{number:,} bytes"


def _listed(maps: list[MapAnswer]) -> list[dict[str, Any]]:
    return [entry._asdict() for entry in maps]


def _with_own(answers: Answers) -> str:
    """The first page, with what makes it know that it is served."""
    page = answers.atlas.read("index.html").decode("utf-8", "replace")
    first, last = re.search(r"<script\b", page), page.rfind("</body>")
    start = first.start() if first else len(page)
    end = max(last, start) if last >= 0 else len(page)
    before = '<link rel="stylesheet" href="own.css"><script src="served.js"></script>'
    return f'{page[:start]}{before}{page[start:end]}<script src="own.js"></script>{page[end:]}'


def _number(request: Request, name: str, least: int, most: int, default: int | None = None) -> int:
    """A whole number of a request's address."""
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"\d{1,10}", text, re.ASCII) or not least <= int(text) <= most:
        value = "missing" if text is None else repr(text[:40])
        raise InputError(f"{name} is {value}; give a whole number from {least} to {most:,}")
    return int(text)


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`; it is cancelled if the browser leaves first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    job, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({job, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientDisconnect
        return job.result()
    except asyncio.CancelledError:  # by Ctrl-C
        raise HTTPException(503, "the server ends") from None
    finally:
        job.cancel()
        leaving.cancel()


def application(pages: Pages, host: str = "127.0.0.1") -> ASGIApp:
    """The web application that serves an atlas; `host` is where it listens."""
    asked = {
        "/answers": pages.answer,
        "/projection": pages.projection,
        "/place": pages.place,
        "/occlusion": pages.occlusion,
    }
    routes = [
        *(Route(path, pages.index) for path in ("/", "/index.html")),
        Route("/served.js", pages.served),
        *(Route(f"/{name}", pages.own) for name in OWN),
        *(Route(path, answer, methods=["POST"]) for path, answer in asked.items()),
        *(Route(path, _not_posted) for path in asked),
        Mount("/", Files(directory=pages.answers.atlas.path)),
    ]
    handlers: dict[Any, Any] = {
        HTTPException: _http_error,
        InputError: _input_error,
        Busy: _busy,
        MemoryError: _no_memory,
        ClientDisconnect: _nobody,
        Exception: _fault,
    }
    everywhere = host in ("0.0.0.0", "::", "")
    names = {*LOCAL, f"[{host}]" if ":" in host else host, *([socket.gethostname()] if everywhere else [])}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Guard(app, frozenset(name.lower() for name in names), everywhere)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    message = error.detail
    if message == status.phrase:
        path = request.url.path
        message = {404: f"there is no {path[:200]}", 405: f"{request.method} is not for {path[:200]}"}.get(
            status, message
        )
    return _error(status, message, **(error.headers or {}))


def _not_posted(request: Request) -> Response:
    raise HTTPException(405, headers={"allow": "POST"})


def _input_error(request: Request, error: Exception) -> Response:
    kinds: dict[type[Exception], HTTPStatus] = {
        TooManyPixels: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        NoImage: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    }
    return _error(kinds.get(type(error), HTTPStatus.BAD_REQUEST), str(error))


def _busy(request: Request, error: Exception) -> Response:
    message = "busy: too many questions at a time; ask again in a few seconds"
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, message, **{"retry-after": "3"})


def _no_memory(request: Request, error: Exception) -> Response:
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, "not enough memory for this picture; give a smaller one")


def _nobody(request: Request, error: Exception) -> Response:
    return _error(HTTPStatus.BAD_REQUEST, "the request ended before its picture did")


def _fault(request: Request, error: Exception) -> Response:
    traceback.print_exception(error, file=sys.stderr)
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, f"an error in the server: {first_line(error)}")


class Protocol(H11Protocol):
    """HTTP that also ends connections whose requests do not begin in time."""

    seconds = DEFAULT.seconds

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(self.seconds, self._check, None)

    def _check(self, before: Any) -> None:
        """Close the connection if no request has begun since `before`; where one is answered, wait."""
        if self.transport.is_closing():
            return
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        else:
            self.loop.call_later(self.seconds, self._check, self.cycle)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError if it cannot listen. Port 0 is any free port."""
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(family[4][:2], family=family[0])
    except (OSError, OverflowError, UnicodeError) as error:
        advice = f"give another port, port={port + 1 if port < 65535 else 8000}, or host="
        raise InputError(f"cannot listen on {host}, port {port}: {first_line(error)}; {advice}") from None


class Server(uvicorn.Server):
    """A server at a socket; at its end it waits for the network's current work.

    Args:
        answers: of the network, beside its atlas.
        host: where the socket listens.
        limits: of what is taken.
    """

    def __init__(self, answers: Answers, host: str = "127.0.0.1", limits: Limits = DEFAULT) -> None:
        pages = Pages(answers, limits)
        self.line = pages.line
        super().__init__(_configured(application(pages, host), limits))

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            self.line.close()


def _configured(app: ASGIApp, limits: Limits) -> uvicorn.Config:
    """It logs nothing: our own faults are said where they are caught."""
    return uvicorn.Config(
        app,
        http=type("LimitedProtocol", (Protocol,), {"seconds": limits.seconds}),
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=math.ceil(min(limits.seconds, 5)),
        timeout_graceful_shutdown=1,
    )


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def serve(
    answers: Answers,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits = DEFAULT,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve an atlas until Ctrl-C, which is raised as KeyboardInterrupt once all connections are closed.

    Args:
        answers: of the network, beside its atlas.
        host: where it listens.
        port: 0: any that is free.
        limits: of requests.
        ready: is called with the site's address once it listens.
    Raises InputError if it cannot listen.
    """
    with listen(host, port) as listening:
        answers.warm_up()
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{listening.getsockname()[1]}/")
        Server(answers, host, limits).run(sockets=[listening])
