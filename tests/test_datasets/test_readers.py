"""Every reader against a plain decode from the start, on files of every kind.

A frame shows its number as eight bright or dark blocks, so that a failure says which
frame came instead.
"""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from mmaction_mbcd.datasets.transforms import OpenVideo
from mmaction_mbcd.datasets.transforms.readers import (
    PyAVReader,
    index_packets,
    open_reader,
    read_frames,
)

COUNT, HEIGHT, WIDTH = 48, 64, 128
H264 = {"bf": "2", "g": "12", "crf": "10"}
MPEG4 = {"bf": "2", "g": "12", "b": "2000000"}
HUNDREDTH, TENTH = Fraction(1, 100), Fraction(1, 10)


def coded(number):
    frame = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    for bit in range(8):
        value = 230 if number >> bit & 1 else 20
        frame[8:-8, 16 * bit + 2 : 16 * bit + 14] = value
    return frame


def number_of(frame):
    row = np.asarray(frame)[HEIGHT // 2]
    return sum(int(row[16 * bit + 8].mean() > 128) << bit for bit in range(8))


def write(path, codec, options, times=None, base=TENTH, sound=False, **kwargs):
    """``times``: frame number -> presentation time in units of ``base``."""
    with av.open(str(path), "w", **kwargs) as container:
        if sound:  # as stream 0
            name = "mp2" if path.suffix == ".avi" else "aac"
            track = container.add_stream(name, rate=16000, layout="mono")
        video = container.add_stream(codec, rate=10, options=options)
        video.height, video.width, video.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        if times:
            video.codec_context.time_base = base
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(coded(number), format="rgb24")
            if times:
                frame.pts, frame.time_base = times(number), base
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound:
            samples = np.zeros((1, COUNT * 1600), np.float32)
            heard = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            heard.sample_rate = 16000
            context = track.codec_context
            resampler = av.AudioResampler(
                context.format.name, "mono", 16000, context.frame_size or 1152
            )
            for part in [*resampler.resample(heard), *resampler.resample(None)]:
                if part is not None:
                    container.mux(track.encode(part))
            container.mux(track.encode())


def later(number):
    return number + 30


def early(number):  # the edit list of an mp4 hides what is before 0
    return number - 5


def uneven(number):
    return number * number // 4 + number


X265 = {"x265-params": "log-level=none:keyint=12"}
OPEN = {"x264-params": "open-gop=1:keyint=12:bframes=3"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
PACKABLE = MPEG4 | {"bf": "1", "sc_threshold": "1000000000"}
# Name: codec and its options, and the access that is expected.
FILES = {
    "plain.mp4": ("libx264", H264, {}, "decord"),
    "plain.mkv": ("libx264", H264, {}, "decord"),
    "plain.mov": ("libx264", H264, {}, "decord"),
    "vp9.webm": ("libvpx-vp9", {"g": "12", "b": "2000000"}, {}, "decord"),
    "fragments.mp4": ("libx264", H264, dict(container_options=FRAGMENTS), "decord"),
    "sound.mp4": ("libx264", H264, dict(sound=True), "decord"),
    "sound.mkv": ("libx264", H264, dict(sound=True), "decord"),
    "uneven.mp4": ("libx264", H264, dict(times=uneven, base=HUNDREDTH), "decord"),
    "uneven.mkv": ("libx264", H264, dict(times=uneven, base=HUNDREDTH), "decord"),
    "later.mp4": ("libx264", H264, dict(times=later), "decord"),
    "later.mkv": ("libx264", H264, dict(times=later), "decord"),
    "later.mov": ("libx264", H264, dict(times=later), "decord"),
    "closed_hevc.mp4": (
        "libx265",
        {"x265-params": "log-level=none:keyint=12:open-gop=0"},
        {},
        "decord",
    ),
    "hidden.mp4": ("libx264", H264, dict(times=early), "seek"),
    "open.mp4": ("libx264", OPEN, {}, "decord"),
    "open_hevc.mp4": ("libx265", X265, {}, "seek"),
    "av1.webm": ("libsvtav1", {"g": "12"}, {}, "seek"),
    "b_frames.avi": ("mpeg4", MPEG4, {}, "decode"),
    "no_b_frames.avi": ("mpeg4", MPEG4 | {"bf": "0"}, {}, "decode"),
    "sound.avi": ("mpeg4", MPEG4, dict(sound=True), "decode"),
    "h264.avi": ("libx264", H264, {}, "decode"),
    "mpeg4.mp4": ("mpeg4", MPEG4, {}, "decode"),
    "stream.ts": ("libx264", H264, dict(format="mpegts"), "decode"),
    "program.mpg": ("mpeg2video", MPEG4, dict(format="mpeg"), "decode"),
    "wmv.wmv": ("wmv2", {"g": "12"}, dict(format="asf"), "decode"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("files"), {}

    def get(name):
        if name not in made:
            codec, options, kwargs, _ = FILES[name]
            if codec not in av.codecs_available:
                pytest.skip(f"this PyAV cannot write {codec}")
            write(folder / name, codec, options, **kwargs)
            made[name] = (folder / name).read_bytes()
        return made[name]

    return get


def plain_decode(data):
    with av.open(io.BytesIO(data)) as container:
        return [number_of(f.to_ndarray("rgb24")) for f in container.decode(video=0)]


@pytest.mark.parametrize("name", FILES)
def test_access(files, name):
    assert index_packets(files(name)).access == FILES[name][3]


@pytest.mark.parametrize("kind", ["decord", "pyav"])
@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_of_a_plain_decode(files, name, kind):
    """Alone in a random order, together, in order and not, and some twice."""
    data = files(name)
    expected = plain_decode(data)
    assert len(expected) == (COUNT - 5 if name.startswith("hidden") else COUNT)
    reader = open_reader(data, kind)
    assert len(reader) == len(expected) and reader.get_avg_fps() > 0
    random = np.random.default_rng(0)
    for i in random.permutation(len(expected)):
        (frame,) = read_frames(reader, np.array([i]))
        assert number_of(frame) == expected[i], (i, number_of(frame))
    picks = [np.arange(len(expected)), random.integers(0, len(expected), 12)]
    picks += [np.arange(first, first + 16, 2) for first in (0, 3, 11, 20, 25)]
    for indices in picks:
        fresh = open_reader(data, kind)
        for reading in (reader, fresh):
            frames = read_frames(reading, indices)
            found = [number_of(frame) for frame in frames]
            assert found == [expected[i] for i in indices], indices


def test_packed_b_frames(tmp_path):
    """Two pictures in one packet and an empty one behind it, as DivX wrote them.

    Built by hand from ``I P B P B ...``, the order of coding: P and B share a packet,
    and the place of B holds a picture that says "nothing coded".
    """
    write(tmp_path / "a.avi", "mpeg4", PACKABLE)
    with av.open(str(tmp_path / "a.avi")) as source:
        stream = source.streams.video[0]
        packets = [bytes(packet) for packet in source.demux(stream) if packet.size]
        with av.open(str(tmp_path / "packed.avi"), "w") as target:
            copy = target.add_stream_from_template(stream)
            for number, content in enumerate(packed(packets)):
                packet = av.Packet(content)
                packet.stream, packet.time_base = copy, TENTH
                packet.pts = packet.dts = number
                packet.is_keyframe = content.startswith(packets[0][:4])
                target.mux(packet)
    data = (tmp_path / "packed.avi").read_bytes()
    expected = plain_decode(data)
    assert expected[:20] == list(range(20))
    for kind in ("decord", "pyav"):
        reader = open_reader(data, kind)
        assert len(reader) == len(expected)
        for i in range(len(expected)):
            assert number_of(read_frames(reader, np.array([i]))[0]) == expected[i]


PICTURE = b"\x00\x00\x01\xb6"


def packed(packets):
    said, empty = b"\x00\x00\x01\xb2DivX503b1393p", PICTURE + b"\x51\x00"
    start = packets[0].index(PICTURE)
    yield packets[0][:start] + said + packets[0][start:]
    rest = iter(packets[1:])
    for packet in rest:
        following = next(rest, None)
        if following is None or not is_b(following):
            yield from filter(None, (packet, following))
        else:
            yield packet + following
            yield empty


def is_b(packet):
    """The coding type is the two bits behind the start code of a picture."""
    return packet[packet.index(PICTURE) + 4] >> 6 == 2


def test_errors(files):
    reader = PyAVReader(files("plain.mp4"))
    for wrong in (-1, COUNT):
        with pytest.raises(IndexError, match=f"of {COUNT}"):
            reader.get_batch(np.array([0, wrong]))


def test_without_the_check_decord_is_trusted(files, tmp_path):
    (tmp_path / "a.avi").write_bytes(files("b_frames.avi"))
    row = dict(filename=str(tmp_path / "a.avi"), start_index=0, modality="RGB")
    reader = OpenVideo(check=False)(dict(row))["video_reader"]
    assert not isinstance(reader, PyAVReader)
    assert isinstance(OpenVideo()(dict(row))["video_reader"], PyAVReader)
