"""Videos, GIFs and PNG sequences decode to the frames that went in, and a failure leaves nothing behind."""

import errno
import os
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fusionframes.ff_kernels.errors import InputError, OutputError
from fusionframes.ff_kernels.media import video
from fusionframes.ff_kernels.media.pictures import to_uint8


def smooth_clip(frames: int, height: int, width: int) -> torch.Tensor:
    """``[F, H, W, 3]`` in 0..1: two gradients and a slow pulse, each channel another."""
    t = torch.arange(frames).float()[:, None, None] / max(frames - 1, 1)
    y = torch.linspace(0, 1, height)[None, :, None]
    x = torch.linspace(0, 1, width)[None, None, :]
    channels = [(x + t) / 2, (y + 1 - t) / 2, 0.25 + 0.5 * t]
    return torch.stack([c.expand(frames, height, width) for c in channels], dim=-1)


def decode(path) -> tuple[np.ndarray, Fraction, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), stream.average_rate, container.duration / av.time_base


def psnr(a, b) -> float:
    error = np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-12))


def test_check_output_supported_suffixes_return_path(tmp_path):
    for suffix in (*video.SUFFIXES, ".MP4"):
        assert video.check_output(str(tmp_path / f"a{suffix}")) == tmp_path / f"a{suffix}"


@pytest.mark.parametrize("name", ["clip.avi", "clip", ".mp4", "clip.mp4.txt"])
def test_check_output_unknown_suffix_names_the_supported(tmp_path, name):
    with pytest.raises(InputError, match=r"\.mp4, \.webm, \.gif, \.png, got '.*" + name):
        video.check_output(tmp_path / name)


def test_check_output_missing_folder_asks_to_create_it(tmp_path):
    with pytest.raises(InputError, match=r"expected the folder '.*absent' for 'a.mp4', found none: create it"):
        video.check_output(tmp_path / "absent" / "a.mp4")


@pytest.mark.parametrize(("folder", "asked"), [("a.mp4", "a.mp4"), ("a_0000.png", "a.png")])
def test_check_output_folder_in_the_way_raises(tmp_path, folder, asked):
    (tmp_path / folder).mkdir()
    with pytest.raises(InputError, match=rf"got the folder '.*{folder}'"):
        video.check_output(tmp_path / asked)


def test_check_output_read_only_folder_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="expected a writable folder, got"):
        video.check_output(tmp_path / "a.gif")


def test_check_output_name_too_long_raises(tmp_path):
    with pytest.raises(InputError, match="cannot use the output"):
        video.check_output(tmp_path / ("a" * 300 + ".png"))


@pytest.mark.parametrize(("suffix", "encoder"), [(".mp4", "libx264"), (".webm", "libvpx-vp9")])
def test_check_output_missing_encoder_raises_in_words(tmp_path, monkeypatch, suffix, encoder):
    def no_codec(name, mode):
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av, "Codec", no_codec)
    with pytest.raises(OutputError, match=f"expected the encoder {encoder} for {suffix}"):
        video.check_output(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize(
    ("fps", "rate"),
    [(8, Fraction(8)), (7.5, Fraction(15, 2)), (30000 / 1001, Fraction(30000, 1001))],
    ids=["whole", "half", "broadcast"],
)
def test_write_frames_video_round_trip(tmp_path, suffix, fps, rate):
    clip = smooth_clip(13, 96, 64)
    assert video.write_frames(clip, tmp_path / f"a{suffix}", fps) == [tmp_path / f"a{suffix}"]
    decoded, average_rate, seconds = decode(tmp_path / f"a{suffix}")
    assert decoded.shape == (13, 96, 64, 3)
    assert average_rate == rate
    assert seconds == pytest.approx(13 / fps, abs=2e-3)
    assert psnr(decoded, clip * 255) > 36
    assert os.listdir(tmp_path) == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_write_frames_video_keeps_colours(tmp_path, suffix):
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255] * 3, [0] * 3, [200, 150, 30]])
    clip = colours.to(torch.uint8)[:, None, None].expand(-1, 32, 32, -1)
    video.write_frames(clip, tmp_path / f"a{suffix}", 8)
    decoded, _, _ = decode(tmp_path / f"a{suffix}")
    assert np.abs(decoded[:, 16, 16].astype(int) - colours.numpy()).max() <= 4
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        context = container.streams.video[0].codec_context
        tags = context.colorspace, context.color_primaries, context.color_trc, context.color_range
    assert tags == (1, 1, 1, 1)  # BT.709, limited range


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize(
    ("size", "padded"),
    [((33, 47), (34, 48)), ((32, 47), (32, 48)), ((1, 1), (2, 2))],
    ids=["both_odd", "width_odd", "one_pixel"],
)
def test_write_frames_odd_size_repeats_the_edge(tmp_path, suffix, size, padded):
    clip = smooth_clip(4, *size)
    video.write_frames(clip, tmp_path / f"a{suffix}", 8)
    decoded, _, _ = decode(tmp_path / f"a{suffix}")
    assert decoded.shape[1:3] == padded
    row, column = padded[0] - size[0], padded[1] - size[1]
    expected = np.pad(clip.numpy() * 255, ((0, 0), (0, row), (0, column), (0, 0)), mode="edge")
    assert psnr(decoded, expected) > 30


def test_write_frames_single_frame_and_strided_input(tmp_path):
    clip = smooth_clip(1, 16, 24).permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    video.write_frames(to_uint8(clip), tmp_path / "a.MP4", 8)
    decoded, average_rate, _ = decode(tmp_path / "a.MP4")
    assert average_rate == 8
    assert psnr(decoded, clip * 255) > 30


def test_write_frames_mp4_has_its_index_in_front(tmp_path):
    video.write_frames(smooth_clip(3, 32, 32), tmp_path / "a.mp4", 8)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(("suffix", "fps"), [(".mp4", 0), (".webm", float("nan")), (".mp4", 241), (".gif", 60)])
def test_write_frames_rate_out_of_range_raises(tmp_path, suffix, fps):
    with pytest.raises(InputError, match=f"frames per second for {suffix}, got {fps}"):
        video.write_frames(smooth_clip(2, 8, 8), tmp_path / f"a{suffix}", fps)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_write_frames_side_over_limit_raises(tmp_path, suffix):
    with pytest.raises(InputError, match=rf"up to 16384 pixels for {suffix}, got 16386 x 2: write .png"):
        video.write_frames(torch.zeros(1, 2, 16386, 3), tmp_path / f"a{suffix}", 8)


def test_write_frames_encoder_refusal_is_one_sentence(tmp_path, monkeypatch):
    refused = video._VIDEO_FORMATS[".mp4"]._replace(encoder_options={"profile": "no such profile"})
    monkeypatch.setitem(video._VIDEO_FORMATS, ".mp4", refused)
    with pytest.raises(OutputError, match=r"could not encode 8 x 6 frames as .mp4"):
        video.write_frames(torch.zeros(2, 6, 8, 3), tmp_path / "a.mp4", 8)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fps", [7, 30, 12.5])
def test_write_frames_gif_count_duration_and_colours(tmp_path, fps):
    clip = smooth_clip(13, 40, 31)
    video.write_frames(clip, tmp_path / "a.gif", fps)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 13
        assert gif.size == (31, 40)
        assert gif.info["loop"] == 0
        durations, frames = [], []
        for index in range(13):
            gif.seek(index)
            durations.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB")))
    assert sum(durations) == pytest.approx(13 / fps * 1000, abs=5)
    assert max(durations) - min(durations) <= 10
    assert psnr(frames, clip * 255) > 30


def test_write_frames_gif_flat_colours_are_exact_and_still_frames_keep_their_time(tmp_path):
    frame = torch.zeros(24, 24, 3, dtype=torch.uint8)
    frame[:, :9] = torch.tensor([200, 30, 10], dtype=torch.uint8)
    frame[:5] = torch.tensor([10, 130, 250], dtype=torch.uint8)
    video.write_frames(frame.expand(5, -1, -1, -1), tmp_path / "a.gif", 10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 1
        assert gif.info["duration"] == 500
        assert np.array_equal(np.asarray(gif.convert("RGB")), frame.numpy())


def test_write_frames_gif_palette_samples_every_column(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_PALETTE_SAMPLES", 64)  # one pixel in 64, the width of the clip
    bars = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]], dtype=torch.uint8)
    clip = bars.repeat_interleave(16, dim=0).expand(1, 64, 64, 3)
    video.write_frames(clip, tmp_path / "a.gif", 10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert np.array_equal(np.asarray(gif.convert("RGB")), clip[0].numpy())


def test_write_frames_png_sequence_is_lossless(tmp_path):
    clip = to_uint8(smooth_clip(11, 5, 7))
    paths = video.write_frames(clip, tmp_path / "out.png", 8)
    assert [path.name for path in paths] == [f"out_{i:04}.png" for i in range(11)]
    assert sorted(os.listdir(tmp_path)) == [path.name for path in paths]
    for path, frame in zip(paths, clip, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), frame.numpy())


@pytest.mark.parametrize("suffix", video.SUFFIXES)
@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (OSError(errno.ENOSPC, "No space"), OutputError, "could not write '.*': no space left"),
        (PermissionError(errno.EACCES, "Permission denied"), OutputError, "permission denied; change"),
        (OSError(errno.EIO, "Input/output error"), OutputError, "input/output error; check"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (RuntimeError("lost"), RuntimeError, "lost"),
    ],
    ids=["disk_full", "permission", "io_error", "interrupt", "bug"],
)
def test_write_frames_failure_leaves_only_the_old_file(tmp_path, monkeypatch, suffix, error, expected, text):
    half_written = 4 if suffix == ".png" else 2  # files: the old one and temporaries

    def fail_late(real):
        def call(*args, **kwargs):
            result = real(*args, **kwargs)
            if len(os.listdir(tmp_path)) == half_written:
                raise error
            return result

        return call

    old = tmp_path / ("a_0001.png" if suffix == ".png" else f"a{suffix}")
    old.write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", fail_late(Image.Image.save))
    monkeypatch.setattr(np, "pad", fail_late(np.pad))
    with pytest.raises(expected, match=text):
        # The encoders hold back up to 60 frames before they write the first.
        video.write_frames(smooth_clip(90, 16, 16), tmp_path / f"a{suffix}", 8)
    assert os.listdir(tmp_path) == [old.name]
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full", "interrupt"])
@pytest.mark.parametrize("after", [False, True], ids=["before_rename", "after_rename"])
def test_write_frames_png_failed_rename_removes_the_renamed(tmp_path, monkeypatch, error, after):
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) < 4 or after:
            real(source, target)
        if len(calls) == 4:
            raise error

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        video.write_frames(smooth_clip(6, 4, 4), tmp_path / "a.png", 8)
    assert len(calls) == 4
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".png"])
def test_write_frames_in_chunks_gives_the_files_of_the_whole_clip(tmp_path, suffix):
    clip, written = smooth_clip(11, 24, 32), {}
    for name, frames, count in (("whole", clip, None), ("chunks", iter(clip.split(4)), len(clip))):
        (tmp_path / name).mkdir()
        files = video.write_frames(frames, tmp_path / name / f"a{suffix}", 8, count=count)
        written[name] = {file.name: file.read_bytes() for file in files}
    assert len(written["whole"]) == (11 if suffix == ".png" else 1)
    if suffix == ".webm":
        # The container carries a random number of its own; the pictures are the same.
        whole, chunks = (decode(tmp_path / name / "a.webm")[0] for name in written)
        assert np.array_equal(whole, chunks)
        return
    assert written["whole"] == written["chunks"]


@pytest.mark.parametrize("suffix", [".mp4", ".png"])
def test_write_frames_asks_for_a_chunk_when_the_one_before_is_written(tmp_path, suffix):
    made, alive = [], []

    def chunks():
        for i in range(6):
            frames = smooth_clip(2, 16, 16) * i / 6
            made.append(weakref.ref(frames))
            alive.append(sum(ref() is not None for ref in made))
            yield frames
            del frames

    video.write_frames(chunks(), tmp_path / f"a{suffix}", 8, count=12)
    assert len(alive) == 6
    assert max(alive) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
@pytest.mark.parametrize(("count", "chunks"), [(5, 2), (3, 2), (2, 0)])
def test_write_frames_of_another_count_leaves_nothing(tmp_path, suffix, count, chunks):
    with pytest.raises(InputError, match=f"expected {count} frames to write, got"):
        video.write_frames(smooth_clip(4, 16, 16).split(2)[:chunks], tmp_path / f"a{suffix}", 8, count=count)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_write_frames_of_a_source_that_fails_leaves_only_the_old_file(tmp_path, suffix):
    old = tmp_path / ("a_0001.png" if suffix == ".png" else f"a{suffix}")
    old.write_bytes(b"old")

    def failing():
        yield smooth_clip(2, 16, 16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.write_frames(failing(), tmp_path / f"a{suffix}", 8, count=4)
    assert os.listdir(tmp_path) == [old.name]
    assert old.read_bytes() == b"old"


def test_write_frames_not_finite_in_a_later_chunk_names_the_frame_of_the_clip(tmp_path):
    clip = smooth_clip(8, 16, 16)
    clip[6, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinity in frame 6"):
        video.write_frames(iter(clip.split(3)), tmp_path / "a.mp4", 8, count=8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_write_frames_in_chunks_without_their_count_says_so(tmp_path, suffix):
    with pytest.raises(InputError, match="expected the count of frames that come in chunks"):
        video.write_frames(iter(smooth_clip(4, 16, 16).split(2)), tmp_path / f"a{suffix}", 8)
    assert os.listdir(tmp_path) == []


def test_mp4_of_the_same_frames_has_the_same_bytes_every_time(tmp_path):
    clip = smooth_clip(11, 64, 96)
    files = [video.write_frames(clip, tmp_path / f"{i}.mp4", 8)[0] for i in range(10)]
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_link_as_output_is_followed_or_refused_before_any_work(tmp_path):
    link = tmp_path / "latest.gif"
    link.symlink_to(tmp_path / "far" / "clip.gif")
    with pytest.raises(InputError, match=r"expected the folder '.*far' for 'latest.gif'"):
        video.check_output(link)
    (tmp_path / "far").mkdir()
    assert video.write_frames(torch.zeros(2, 4, 4, 3), link, 10) == [link]
    assert link.is_symlink()
    assert os.listdir(tmp_path / "far") == ["clip.gif"]
