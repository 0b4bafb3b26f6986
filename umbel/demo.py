"""``make demo``: the media service, whole, on this machine.

    python -m umbel.demo [--once] [FILE …]

Starts the embedded broker, a worker for each queue, the web service and Flower; sends files through
HTTP, shows how far they are, checks what comes back and says where it is.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import aconnect_sse
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from umbel.config.sources import project_directory

WIDTHS = [1280, 640, 320, 150]
HOST = "127.0.0.1"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15
FILE_TIMEOUT_S = 600

console = Console()
PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True}  # an address is not to be cut


@dataclass
class Output:
    """One result that was checked.

    Attributes:
        source: the file that was sent.
        what: what came of it.
        size_bytes: its size.
        seconds: from the upload to the checked result.
        address: where it is.
    """

    source: Path
    what: str
    size_bytes: int
    seconds: float
    address: str


@dataclass
class Child:
    """A process that was started, and where it writes."""

    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


class DemoFailed(Exception):
    """Something did not come out as it must."""


@contextmanager
def service() -> Iterator[tuple[str, str]]:
    """Everything that runs, for as long as the block: gives the web's and Flower's addresses."""
    logs = project_directory() / ".umbel" / "demo"
    logs.mkdir(parents=True, exist_ok=True)
    celery = [sys.executable, "-m", "celery", "-A", "umbel.media"]
    worker = [*celery, "worker", "--loglevel=INFO"]
    uvicorn = [sys.executable, "-m", "uvicorn", "--factory", "umbel.media:create_web"]
    children = Children(logs)
    try:
        workers = [
            children.start(f"worker-{queue}", *worker, f"-Q{queue}", f"-c{places}", f"-n{queue}@%h")
            for queue, places in [("classification", 1), ("images", 2), ("videos", 1)]
        ]
        web = children.serve("web", 8000, "/readyz", *uvicorn, f"--host={HOST}")
        for child in workers:  # Flower asks them for their queues when it starts
            wait_until_ready(child)
        command = [*celery, "flower", f"--address={HOST}"]
        yield web, children.serve("flower", 5555, "/healthcheck", *command)
    finally:
        console.print("\nStopping …")
        children.stop()


class Children:
    """What was started.

    Args:
        logs: the directory where each writes.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._all: dict[str, Child] = {}

    def start(self, name: str, *command: str) -> Child:
        """A process in a session of its own, so that Ctrl-C reaches only this program."""
        log = self._logs / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        console.print(f"  started {name:22} log: {shown(log)}", highlight=False)
        self._all[name] = child = Child(process, log)
        return child

    def serve(self, name: str, port: int, health: str, *command: str) -> str:
        """Start what listens at `port` or, if somebody has that, at a later one. Returns where."""
        while True:
            port = free_port(port)
            child = self.start(name, *command, f"--port={port}")
            address = f"http://{HOST}:{port}"
            try:
                wait_for(address + health, child)
            except DemoFailed:
                if "already in use" not in child.tail():
                    raise
                port += 1  # somebody took it since we looked
            else:
                return address

    def stop(self) -> None:
        """End them all, kindly at first."""
        for child in self._all.values():
            child.process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for name, child in self._all.items():
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                console.print(f"  {name} did not end in {STOP_TIMEOUT_S} s; killed")
                os.killpg(child.process.pid, signal.SIGKILL)
                child.process.wait()


def free_port(wanted: int) -> int:
    """`wanted`, or the next one that nobody has."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            if port != wanted:
                console.print(f"  port {wanted} is taken, using {port}")
            return port
    raise DemoFailed(f"no free port from {wanted} to {wanted + 99}")


def wait_for(address: str, child: Child) -> None:
    """Until it answers."""

    def answers() -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(address, timeout=2).is_success
        return False

    wait_until(answers, child)


def wait_until_ready(child: Child) -> None:
    """Until a worker's log says so."""
    wait_until(lambda: "ready." in child.log.read_text(errors="replace"), child)


def wait_until(ready: Callable[[], bool], child: Child) -> None:
    """Until it is so, or fail with the end of the child's log."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while child.process.poll() is None and time.monotonic() < deadline:
        if ready():
            return
        time.sleep(0.1)
    raise DemoFailed(f"the end of {shown(child.log)}, which is not ready:\n{child.tail()}")


def shown(path: Path) -> str:
    """A path as short as it can be said."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


class Client:
    """Sends one file after another through the web service.

    Args:
        http: to the service.
        bars: where progress is shown.
    """

    def __init__(self, http: httpx.AsyncClient, bars: Progress) -> None:
        self._http = http
        self._bars = bars

    async def handle(self, path: Path) -> list[Output]:
        """Upload, classify, then resize or transcode, then fetch and check the results."""
        began = time.monotonic()
        blob = await self._upload(path)
        found = await self._run("content.classify", {"source": blob}, f"{path.name}: classify")
        kind = found["result"]["kind"]
        if kind == "image":
            message: dict[str, Any] = {
                "source": blob,
                "widths": WIDTHS,
                "formats": ["jpeg", "webp"],
            }
            done = await self._run("image.resize", message, f"{path.name}: resize")
        elif kind == "video":
            message = {"source": blob, "height": 480}
            done = await self._run("video.transcode", message, f"{path.name}: transcode")
        else:
            raise DemoFailed(f"{path.name} is {found['result']['media_type']}: nothing to do here")
        return await self._check(path, done, began)

    async def _upload(self, path: Path) -> dict[str, Any]:
        async def chunks() -> AsyncIterator[bytes]:
            with path.open("rb") as file:
                while chunk := await asyncio.to_thread(file.read, 1 << 20):
                    yield chunk

        response = await self._http.post("/v1/uploads", content=chunks())
        return dict(checked(response).json())

    async def _run(self, job: str, message: dict[str, Any], label: str) -> dict[str, Any]:
        """Ask for a job and follow its events to the end."""
        bar = self._bars.add_task(label, total=100, state="sending")
        accepted = checked(await self._http.post(f"/v1/jobs/{job}", json=message)).json()
        events, record = accepted["links"]["events"], accepted
        async with aconnect_sse(self._http, "GET", events, timeout=FILE_TIMEOUT_S) as stream:
            async for event in stream.aiter_sse():
                record = json.loads(event.data)
                self._show(bar, record)
        if record["state"] != "succeeded":
            raise DemoFailed(f"{label}: {record['state']}: {record['error']}")
        return dict(record)

    def _show(self, bar: TaskID, record: dict[str, Any]) -> None:
        progress = record.get("progress") or {}
        ended = record["state"] == "succeeded"
        percent = 100 if ended else progress.get("percent") or 0
        note = escape(progress.get("note") or "")
        self._bars.update(bar, completed=percent, state=f"{record['state']} {note}".strip())

    async def _check(self, path: Path, record: dict[str, Any], began: float) -> list[Output]:
        """Fetch each result and hold it against what its reference says."""
        outputs = []
        for what, blob, address in results(record):
            digest, size = hashlib.sha256(), 0
            async with self._http.stream("GET", address) as response:
                checked(response)
                async for chunk in response.aiter_bytes():
                    digest.update(chunk)
                    size += len(chunk)
            if (digest.hexdigest(), size) != (blob["sha256"], blob["size_bytes"]):
                raise DemoFailed(f"{path.name}: {address} is not what its reference says")
            seconds = time.monotonic() - began
            url = str(self._http.base_url.join(address))
            outputs.append(Output(path, what, size, seconds, url))
        if not outputs:
            raise DemoFailed(f"{path.name}: the job succeeded without a result")
        return outputs


def results(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """What a job made: a name, the reference, the address."""
    result = record["result"]
    addresses = {link["sha256"]: link["href"] for link in record["links"]["files"]}
    for made in result.get("files", [result]):
        blob = made["file"]
        kind = made.get("format") or f"{made['video_codec']}, {made['duration_s']:.1f} s"
        yield f"{made['width']} x {made['height']} {kind}", blob, addresses[blob["sha256"]]


def checked(response: httpx.Response) -> httpx.Response:
    """The response, or its problem as an error."""
    if response.is_error:
        problem = response.json() if response.is_closed else {}
        raise DemoFailed(
            f"{response.request.method} {response.request.url.path}: {response.status_code} "
            f"{problem.get('detail') or problem.get('title') or ''}"
        )
    return response


async def send(web: str, files: list[Path]) -> tuple[list[Output], list[str]]:
    """All files at once. Returns what came back and what went wrong."""
    columns = (
        TextColumn("  {task.description:33}"),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console) as bars:
        async with httpx.AsyncClient(base_url=web, timeout=60) as http:
            client = Client(http, bars)
            ends = await asyncio.gather(
                *(client.handle(path) for path in files), return_exceptions=True
            )
    outputs, failures = [], []
    for path, end in zip(files, ends, strict=True):
        if isinstance(end, BaseException):
            failures.append(
                f"{path.name}: {end!r}" if not isinstance(end, DemoFailed) else str(end)
            )
        else:
            outputs += end
    return outputs, failures


def table(outputs: list[Output]) -> Table:
    """What came back."""
    result = Table("input", "output", "size", "time", title="Results")
    for source, made in by_source(outputs).items():
        names = [f"{source.name}, {kilobytes(source.stat().st_size)}"] + [""] * len(made)
        for name, output in zip(names, made, strict=False):
            time_taken = f"{output.seconds:.1f} s" if name else ""
            result.add_row(name, output.what, kilobytes(output.size_bytes), time_taken)
        result.add_section()
    return result


def by_source(outputs: list[Output]) -> dict[Path, list[Output]]:
    """The outputs of each input."""
    grouped: dict[Path, list[Output]] = {}
    for output in outputs:
        grouped.setdefault(output.source, []).append(output)
    return grouped


def kilobytes(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / 1000:,.0f} kB"


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 only if every result was checked."""
    parser = argparse.ArgumentParser(prog="python -m umbel.demo", description=main.__doc__)
    parser.add_argument("--once", action="store_true", help="end when the results are there")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="pictures or videos")
    options = parser.parse_args(arguments)
    if missing := [str(path) for path in options.files if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console.print("[bold]Umbel's media service[/bold] on an embedded broker, in one minute\n")
    try:
        with service() as (web, flower):
            return run(web, flower, options.files, once=options.once)
    except DemoFailed as error:
        console.print(f"[red]{escape(str(error))}[/red]")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130


def run(web: str, flower: str, files: list[Path], *, once: bool) -> int:
    """Send the files, show what came, and stay if asked to."""
    console.print(f"\nSending {len(files)} files through {web}\n", highlight=False)
    outputs, failures = asyncio.run(send(web, files))
    console.print()
    console.print(table(outputs))
    for failure in failures:
        console.print(f"[red]failed:[/red] {escape(failure)}")
    console.print(f"\n{len(outputs)} results, each fetched and its hash checked. One of each:\n")
    for source, made in by_source(outputs).items():
        console.print(f"  {source.name:24} {made[0].address}", **PLAIN)
    console.print(f"\n  {'API documentation':24} {web}/docs", **PLAIN)
    console.print(f"  {'Flower':24} {flower}/tasks", **PLAIN)
    if not once:
        console.print("\nPress Ctrl-C to stop.")
        with suppress(KeyboardInterrupt):
            signal.pause()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
