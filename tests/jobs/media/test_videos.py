"""Videos: what comes out was checked, no other file is read, and nothing outlives its job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from support.process import alive, eventually

from umbel.config.errors import JobCancelled
from umbel.jobs.media.errors import MediaError
from umbel.jobs.media.ffmpeg import FORMATS, PROTOCOLS, Limits, ToolFailed, find_ffmpeg, run
from umbel.jobs.media.videos import check_output, probe, transcode

# The newest, and that of the system if there is one (Debian 12 has 5.1).
PROGRAMS = sorted({get_ffmpeg_exe(), shutil.which("ffmpeg") or get_ffmpeg_exe()})


@pytest.fixture(params=PROGRAMS, ids=lambda path: Path(path).name)
def program(request: pytest.FixtureRequest) -> Path:
    """Each FFmpeg that is here."""
    return Path(request.param)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where the result goes, alone in its directory."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "made.mp4"


def test_plays_everywhere(clip: Path, target: Path, program: Path) -> None:
    """H.264 and AAC, every picture, the index in front; nothing is left beside it."""
    calls: list[tuple[float, float | None, str]] = []
    facts = transcode(clip, target, ffmpeg=program, progress=lambda *call: calls.append(call))
    assert (facts.video_codec, facts.audio_codec) == ("h264", "aac")
    assert (facts.width, facts.height, facts.frames) == (320, 240, 60)
    assert facts.duration_s == pytest.approx(2, abs=0.1)
    data = target.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert b"at home" not in data  # the source's metadata
    assert list(target.parent.iterdir()) == [target]
    assert probe(target) == facts
    done = [call[0] for call in calls]
    assert {call[1] for call in calls} == {60}
    assert done == sorted(done)
    assert all(0 <= count < 60 for count in done[:-1])
    assert calls[-1] == (60, 60, "checked")


def test_smaller_never_larger(clip: Path, target: Path) -> None:
    """The height is a limit; sides stay even."""
    smaller = transcode(clip, target, height=100)
    assert (smaller.width, smaller.height) == (134, 100)
    same = transcode(clip, target, height=1080)
    assert (same.width, same.height) == (320, 240)


def test_odd_sides_become_even(make_video: Any, target: Path) -> None:
    """4:2:0 colour needs pairs; never one pixel more."""
    picture = "testsrc2=size=321x241:rate=10:duration=1"
    odd = make_video("odd.mkv", "-f", "lavfi", "-i", picture, "-c:v", "ffv1")
    facts = transcode(odd, target)
    assert (facts.width, facts.height, facts.audio_codec) == (320, 240, None)


def test_upright(make_video: Any, clip: Path, target: Path, program: Path) -> None:
    """A rotation that players may ignore becomes pixels."""
    lying = make_video("lying.mp4", "-display_rotation", "90", "-i", clip, "-c", "copy")
    assert (probe(lying).width, probe(lying).height) == (240, 320)
    facts = transcode(lying, target, ffmpeg=program)
    assert (facts.width, facts.height) == (240, 320)


def test_surround_becomes_stereo(make_video: Any, clip: Path, target: Path) -> None:
    """Six channels in, two out."""
    surround = make_video("surround.mp4", "-i", clip, "-c:v", "copy", "-ac", "6")
    assert probe(surround).audio_channels == 6
    assert transcode(surround, target).audio_channels == 2


def test_a_variable_rate_keeps_every_picture(make_video: Any, target: Path, program: Path) -> None:
    """And its length: pictures are neither doubled nor dropped to make the rate even."""
    picture = "testsrc2=size=160x120:rate=60:duration=4"
    uneven = "select='not(mod(n,3))+lt(mod(n,60),20)'"
    filters = ("-vf", uneven, "-fps_mode", "vfr")
    source = make_video("vfr.mkv", "-f", "lavfi", "-i", picture, *filters)
    facts = transcode(source, target, ffmpeg=program)
    assert facts.frames == 132
    assert facts.duration_s == pytest.approx(3.95, abs=0.1)  # the last picture starts at 3.95 s


def test_a_rate_that_rises_keeps_every_picture(
    make_video: Any, target: Path, program: Path
) -> None:
    """FFmpeg guesses the rate at the beginning; a phone is slow in the dark, and fast in light."""
    picture = "testsrc2=size=160x120:rate=60:duration=16"
    uneven = ("-vf", "select='if(lt(t,12),not(mod(n,6)),1)'", "-fps_mode", "passthrough")
    clock = ("-enc_time_base", "1:1000", "-preset", "ultrafast")
    source = make_video("rising.mp4", "-f", "lavfi", "-i", picture, *uneven, *clock)
    assert transcode(source, target, ffmpeg=program).frames == 360


def test_a_trimmed_source_is_whole(make_video: Any, clip: Path, target: Path) -> None:
    """Cut without encoding, it still holds what is before the cut; that is not missing."""
    trimmed = make_video("trimmed.mp4", "-ss", "1.5", "-i", clip, "-c", "copy")
    calls: list[tuple[float, float | None, str]] = []
    facts = transcode(trimmed, target, progress=lambda *call: calls.append(call))
    assert facts.frames == 15
    assert calls[-1] == (15, 15, "checked")


@contextmanager
def nobody_opens(fifo: Path) -> Iterator[None]:
    """Fails when someone opens the pipe for reading: only then can it be opened for writing."""
    os.mkfifo(fifo)
    opened, done = Event(), Event()

    def watch() -> None:
        while not done.is_set():
            with suppress(OSError):
                os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
                opened.set()
            done.wait(0.005)

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    assert not opened.is_set(), f"{fifo.name} was opened"


FFCONCAT = "ffconcat version 1.0\nfile neighbour.mp4\n"
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nneighbour.mp4\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="1" bandwidth="1"><BaseURL>neighbour.mp4</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>"
)


@pytest.mark.parametrize("text", [FFCONCAT, HLS, DASH], ids=["ffconcat", "hls", "dash"])
def test_a_neighbours_file_is_never_read(
    tmp_path: Path, target: Path, program: Path, text: str
) -> None:
    """A "video" that is a list of other files is refused by the probe, and by FFmpeg itself."""
    (tmp_path / "video.mp4").write_text(text)
    with nobody_opens(tmp_path / "neighbour.mp4"):
        with pytest.raises(MediaError, match=r"^video\.unreadable: not a video"):
            transcode(tmp_path / "video.mp4", target, ffmpeg=program)
        confined = ["-protocol_whitelist", PROTOCOLS, "-format_whitelist", FORMATS]
        command = [program, "-nostdin", *confined, "-i", "file:video.mp4", "-f", "null", "-"]
        status, errors = run(command, directory=tmp_path, limits=replace(Limits(), timeout_s=5))
    assert status > 0, errors
    assert not target.exists()


@pytest.mark.parametrize("name", ["empty", "text.jpg", "truncated", "svg"])
def test_no_video(pictures: Path, target: Path, name: str) -> None:
    """Is refused within seconds, with the reason."""
    started = time.monotonic()
    with pytest.raises(MediaError, match=r"^video\."):
        transcode(pictures / name, target)
    assert time.monotonic() - started < 5
    assert list(target.parent.iterdir()) == []


def test_a_song_with_a_cover_is_no_video(make_video: Any, pictures: Path, target: Path) -> None:
    """A picture attached to sound does not make it a video."""
    tone = ("-f", "lavfi", "-i", "sine=duration=1", "-i", pictures / "png")
    cover = ("-map", "0", "-map", "1", "-c:v", "png", "-disposition:v", "attached_pic")
    song = make_video("song.mp3", *tone, *cover)
    with pytest.raises(MediaError, match=r"^video\.none: "):
        transcode(song, target)


def test_a_giant_duration(make_video: Any, target: Path) -> None:
    """A tiny file that claims twenty hours makes no million pictures."""
    gaps = ("-vf", "setpts=N*36000/TB", "-fps_mode", "passthrough", "-enc_time_base", "1:1000")
    picture = ("-f", "lavfi", "-i", "color=size=64x64:rate=1:duration=3")
    source = make_video("giant.mp4", *picture, *gaps)
    assert source.stat().st_size < 10_000
    with pytest.raises(MediaError, match=r"^video\.too_long: \d{5,} s; the limit is 14400 s"):
        transcode(source, target)


def test_too_many_pixels(clip: Path, target: Path) -> None:
    """By the probe."""
    with pytest.raises(MediaError, match=r"^video\.bomb: 320 x 240"):
        transcode(clip, target, limits=Limits(pixels=50_000))


def test_a_result_that_grows_too_large(long_clip: Path, target: Path) -> None:
    """The limit of the system ends it."""
    with pytest.raises(MediaError, match=r"^video\.too_large: "):
        transcode(long_clip, target, preset="ultrafast", limits=Limits(output_bytes=200_000))
    assert list(target.parent.iterdir()) == []


def test_a_source_that_was_cut_off(make_video: Any, long_clip: Path, target: Path) -> None:
    """FFmpeg ends with 0 on what is left of it; the check does not."""
    whole = make_video("whole.mp4", "-i", long_clip, "-c", "copy", "-movflags", "+faststart")
    cut = target.parent / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 4])
    with pytest.raises(MediaError, match=r"^video\.truncated: the source says 60\.0 s and 1800 "):
        transcode(cut, target, preset="ultrafast")
    assert not target.exists()


def test_a_source_without_its_index(clip: Path, target: Path) -> None:
    """An upload that broke off before the moov at the end of the file."""
    cut = target.parent / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with pytest.raises(MediaError, match=r"^video\.unreadable: not a video"):
        transcode(cut, target)


def test_a_source_that_is_damaged(make_video: Any, long_clip: Path, target: Path) -> None:
    """Its length is whole, but a tenth of its pictures cannot be decoded."""
    whole = make_video("keyed.mp4", "-t", "10", "-i", long_clip, "-g", "30", "-an")
    data = bytearray(whole.read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + len(data) // 5] = bytes(len(data) // 5)
    damaged = target.parent / "damaged.mp4"
    damaged.write_bytes(data)
    with pytest.raises(MediaError, match=r"^video\.truncated: the source says 10\.0 s and 300 "):
        transcode(damaged, target, preset="ultrafast")
    assert not target.exists()


def test_fields_count_twice(make_video: Any, clip: Path) -> None:
    """An interlaced source may say twice as many pictures as there are; no other may."""
    made = make_video("made.mp4", "-i", clip, "-c", "copy", "-movflags", "+faststart")
    facts = probe(made)
    fields = replace(facts, interlaced=True, frames=120)
    check_output(made, facts, fields, (320, 240), 60)
    with pytest.raises(MediaError, match=r"^video\.truncated: "):
        check_output(made, facts, replace(fields, interlaced=False), (320, 240), 60)


@pytest.mark.parametrize(("codec", "what"), [(b"avc1", "pictures"), (b"sowt", "sound")])
def test_an_unknown_codec(
    make_video: Any, clip: Path, target: Path, codec: bytes, what: str
) -> None:
    """Is named in plain words; a video without its sound would be no success."""
    known = make_video("known.mov", "-i", clip, "-c:v", "copy", "-c:a", "pcm_s16le")
    unknown = target.parent / "unknown.mov"
    unknown.write_bytes(known.read_bytes().replace(codec, b"zzzz"))
    with pytest.raises(MediaError, match=f"the codec of its {what} is unknown$"):
        transcode(unknown, target)


def test_a_result_that_is_wrong(make_video: Any, clip: Path) -> None:
    """Other sides, other counts, or an index at the end: an exit status of 0 says too little."""
    facts = probe(clip)
    with pytest.raises(MediaError, match=r"^video\.wrong: expected"):
        check_output(clip, facts, facts, (320, 238), 60)
    with pytest.raises(MediaError, match=r"^video\.wrong: expected"):
        check_output(clip, facts, facts, (320, 240), 61)
    with pytest.raises(MediaError, match="not in front of the data"):
        check_output(clip, facts, facts, (320, 240), 60)


def test_the_time_is_up(long_clip: Path, target: Path) -> None:
    """A limit of wall time, too."""
    with pytest.raises(MediaError, match=r"^media\.timeout: not done within 1 s"):
        transcode(long_clip, target, preset="slow", limits=Limits(timeout_s=1, threads=1))


def running_ffmpeg(parent: int) -> list[psutil.Process]:
    """Its descendants that are FFmpeg, after the launcher."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(parent).children(recursive=True)
        return [child for child in children if "libx264" in child.cmdline()[:99] and _is_it(child)]
    return []


def _is_it(process: psutil.Process) -> bool:
    return "ffmpeg" in Path(process.cmdline()[0]).name


def test_cancel_ends_it_within_a_second(long_clip: Path, target: Path) -> None:
    """FFmpeg is gone when the error arrives, and so is what it wrote."""
    asked_at: list[float] = []
    seen: list[psutil.Process] = []

    def cancelled() -> bool:
        seen.extend(running_ffmpeg(os.getpid()))
        if seen and not asked_at:
            asked_at.append(time.monotonic())
        return bool(asked_at)

    with pytest.raises(JobCancelled):
        transcode(long_clip, target, preset="slow", cancelled=cancelled)
    assert time.monotonic() - asked_at[0] < 1
    assert not any(alive(process) for process in seen)
    assert list(target.parent.iterdir()) == []


def test_ffmpeg_dies_with_its_worker(long_clip: Path, target: Path) -> None:
    """`kill -9` of the process that started it, which can tidy up nothing."""
    code = (
        "import sys; from pathlib import Path; from umbel.jobs.media.videos import transcode;"
        "transcode(Path(sys.argv[1]), Path(sys.argv[2]), preset='slow')"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, long_clip, target])
    try:
        (ffmpeg,) = eventually(lambda: running_ffmpeg(worker.pid), 20)
        worker.kill()
        killed_at = time.monotonic()
        eventually(lambda: not alive(ffmpeg), 2)
        assert time.monotonic() - killed_at < 1
    finally:
        worker.kill()
        worker.wait()


def test_its_limits_and_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a confined program finds: no secrets of the worker, little memory, no core file."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    lines: list[str] = []
    limits = Limits(address_space_bytes=2**30)
    code = (
        "import os, resource as r; print('AWS_SECRET_ACCESS_KEY' in os.environ);"
        "print(r.getrlimit(r.RLIMIT_AS)[0], r.getrlimit(r.RLIMIT_CORE)[0]);"
        "print(os.getpgid(0) == os.getpid())"
    )
    status, errors = run(
        [sys.executable, "-c", code], directory=tmp_path, limits=limits, on_line=lines.append
    )
    assert (status, errors) == (0, "")
    assert lines == ["False", f"{2**30} 0", "True"]


def test_a_full_stream_of_errors_is_cut(tmp_path: Path) -> None:
    """Only the end is kept, however much is written."""
    code = "import sys; sys.stderr.write('x' * 5_000_000 + 'the end'); sys.exit(3)"
    status, errors = run([sys.executable, "-c", code], directory=tmp_path, limits=Limits())
    assert status == 3
    assert errors.endswith("the end")
    assert len(errors) <= 8192


def test_the_program_that_is_named(
    clip: Path, target: Path, tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``UMBEL_FFMPEG`` goes before the PATH, and one that cannot be used is never passed over."""
    monkeypatch.setenv("UMBEL_FFMPEG", str(program))
    assert find_ffmpeg() == program
    monkeypatch.setenv("UMBEL_FFMPEG", str(tmp_path / "nothing"))
    with pytest.raises(ToolFailed, match="nothing: "):
        transcode(clip, target)


def test_no_ffmpeg(tmp_path: Path) -> None:
    """Says what was found and what to do; it is not the file's fault."""
    with pytest.raises(ToolFailed, match="pip install"):
        find_ffmpeg(tmp_path / "nothing")
