"""FFmpeg as a confined subprocess: a stranger's file may crash it or hang it, and no more.

It has limits on memory, time and output, reads no other file, and dies with its worker.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import monotonic
from typing import IO

from umbel.config.errors import JobCancelled, UmbelError
from umbel.jobs.media.errors import MediaError

POLL_S = 0.2
_TAIL_BYTES = 8192
_OLDEST = (5, 1)  # the first with -fps_mode

# The protocols alone are not enough: "ffconcat" text under the name of a video makes FFmpeg read
# the files that it lists. Formats that name other files (concat, hls, dash, image2) stay out.
PROTOCOLS = "file,pipe"
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,ogg,wav,mp3,aac,flac,asf,mxf"

# Sets the limits and becomes the command. A program of its own and no `preexec_fn`, which is unsafe
# beside threads. The death signal comes when the *thread* that started the process ends: `run`
# starts and waits in one thread, so that in a pool of threads too this is the end of the job.
_LAUNCHER = """
import ctypes, os, resource, signal, sys
parent, limits, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
for limit in limits.split(","):
    name, _, value = limit.partition("=")
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    value = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (OSError, ValueError):
        pass  # macOS has no limit of the address space
for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored_by_python, signal.SIG_DFL)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before the line above
        sys.exit(1)
os.execv(command[0], command)
"""


class ToolFailed(UmbelError):
    """FFmpeg failed, and not because of the file: it is missing, was killed, the disk is full.

    Unlike after a `MediaError` another try may help.
    """


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    Attributes:
        pixels: of one picture of the video, width x height.
        duration_s: of the source, and of the result.
        output_bytes: size of the result.
        address_space_bytes: under 1 GB even 720 lines fail.
        timeout_s: wall clock, for all of the run.
        threads: of the decoder, the filters and the encoder each; memory grows with them.
    """

    pixels: int = 36_000_000
    duration_s: float = 4 * 3600
    output_bytes: int = 8 * 2**30
    address_space_bytes: int = 4 * 2**30
    timeout_s: float = 5 * 3600
    threads: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))

    def of_the_system(self) -> str:
        """For the launcher: names of `resource`, and values."""
        limits = {
            "RLIMIT_CPU": int(self.timeout_s * self.threads) + 1,
            "RLIMIT_AS": self.address_space_bytes,
            "RLIMIT_FSIZE": self.output_bytes,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        }
        return ",".join(f"{name}={value}" for name, value in limits.items())


def find_ffmpeg(explicit: Path | None = None) -> Path:
    """The program: the one given, else ``UMBEL_FFMPEG``, else by ``PATH``, else imageio-ffmpeg's.

    One by ``PATH`` that is older than 5.1 or lacks H.264 is passed over; one that was named is not.

    Raises:
        ToolFailed: there is none; says what was found.
    """
    named = explicit or os.environ.get("UMBEL_FFMPEG")
    found = [Path(named).absolute()] if named else [*_on_path(), *_in_the_wheel()]
    problems = {path: _problem(path) for path in found}
    for path, problem in problems.items():
        if problem is None:
            return path
    seen = "; ".join(f"{path}: {problem}" for path, problem in problems.items())
    raise ToolFailed(f"no usable FFmpeg ({seen or 'none found'}): pip install 'umbel[media]'")


def run(
    command: Sequence[str | Path],
    *,
    directory: Path,
    limits: Limits,
    on_line: Callable[[str], None] = lambda line: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[int, str]:
    """Run a command under limits, in a process group of its own, and leave nothing of it.

    Args:
        command: an absolute path, and arguments.
        directory: its working directory; private to the job.
        limits: what it may cost.
        on_line: called with each line of its standard output; may raise.
        cancelled: asked several times a second.

    Returns:
        The exit status (negative: the signal), and the end of its standard error.

    Raises:
        JobCancelled: `cancelled` said so; the process is gone.
        MediaError: the time is up (``media.timeout``); the process is gone.
    """
    process = _start(command, directory, limits)
    errors = bytearray()
    try:
        _pump(process, _Lines(on_line), _Tail(errors), _Watch(limits.timeout_s, cancelled))
    finally:
        _end(process)
    return process.returncode, errors.decode(errors="replace").strip()


def _start(
    command: Sequence[str | Path], directory: Path, limits: Limits
) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
    return subprocess.Popen(
        [*launcher, str(os.getpid()), limits.of_the_system(), *map(str, command)],
        cwd=directory,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )


def _environment() -> dict[str, str]:
    """What programs need to be found: no secret of the worker gets beside a stranger's file."""
    passed = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR")
    return {name: os.environ[name] for name in passed if name in os.environ} | {"LC_ALL": "C"}


def _pump(
    process: subprocess.Popen[bytes],
    output: Callable[[bytes], None],
    errors: Callable[[bytes], None],
    watch: Callable[[], None],
) -> None:
    """Hand on what it writes, until it has closed both streams and ended."""
    with selectors.DefaultSelector() as selector:
        selector.register(_stream(process.stdout), selectors.EVENT_READ, output)
        selector.register(_stream(process.stderr), selectors.EVENT_READ, errors)
        while selector.get_map():
            for key, _ in selector.select(POLL_S):
                if chunk := os.read(key.fd, 65536):
                    key.data(chunk)
                else:
                    selector.unregister(key.fileobj)
            watch()
    while process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)
        watch()


def _stream(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe
    return pipe


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the group: SIGTERM took FFmpeg two seconds, and it has nothing to tidy up."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with process:  # closes the pipes, and waits
        pass


class _Watch:
    """Ends the run when it is cancelled or its time is up."""

    def __init__(self, timeout_s: float, cancelled: Callable[[], bool]) -> None:
        self._timeout_s, self._cancelled = timeout_s, cancelled
        self._started = monotonic()
        self._next_poll = self._started

    def __call__(self) -> None:
        now = monotonic()
        if now - self._started > self._timeout_s:
            raise MediaError("media.timeout", f"not done within {self._timeout_s:g} s")
        if now >= self._next_poll:
            self._next_poll = now + POLL_S
            if self._cancelled():
                raise JobCancelled


class _Lines:
    """Cuts a stream into lines; what is beyond 64 KiB of one line is dropped."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line, self._rest = on_line, b""

    def __call__(self, chunk: bytes) -> None:
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest[:65536]
        for line in lines:
            self._on_line(line.decode(errors="replace"))


class _Tail:
    """Keeps the end of a stream."""

    def __init__(self, kept: bytearray) -> None:
        self._kept = kept

    def __call__(self, chunk: bytes) -> None:
        self._kept += chunk
        del self._kept[:-_TAIL_BYTES]


def _on_path() -> list[Path]:
    found = shutil.which("ffmpeg")
    return [Path(found)] if found else []


def _in_the_wheel() -> list[Path]:
    try:
        # It has no types.
        from imageio_ffmpeg import get_ffmpeg_exe  # type: ignore[import-untyped]  # noqa: PLC0415

        return [Path(get_ffmpeg_exe())]
    except (ImportError, RuntimeError):  # not installed; no binary for this platform
        return []


@cache
def _problem(program: Path) -> str | None:
    """Why it cannot be used; builds without a version number are taken to be new."""
    try:
        banner = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    version = re.match(r"ffmpeg version n?(\d+)\.(\d+)", banner)
    if version and (int(version[1]), int(version[2])) < _OLDEST:
        return f"version {version[1]}.{version[2]}, but 5.1 is needed"
    return None if "--enable-libx264" in banner else "has no libx264"
