"""Files written by `frames_io` decode to the frames that went in, and a failure leaves nothing behind."""

import errno
import os
import struct
import weakref
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fusionframes.ff_kernels import frames_io
from fusionframes.ff_kernels.errors import InputError, OutputError, ShapeError


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


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


# Output paths


def test_check_output_supported_suffixes_return_path(tmp_path):
    for suffix in (*frames_io.SUFFIXES, ".MP4"):
        assert frames_io.check_output(str(tmp_path / f"a{suffix}")) == tmp_path / f"a{suffix}"


@pytest.mark.parametrize("name", ["clip.avi", "clip", ".mp4", "clip.mp4.txt"])
def test_check_output_unknown_suffix_names_the_supported(tmp_path, name):
    with pytest.raises(InputError, match=r"\.mp4, \.webm, \.gif, \.png, got '.*" + name):
        frames_io.check_output(tmp_path / name)


def test_check_output_missing_folder_asks_to_create_it(tmp_path):
    with pytest.raises(InputError, match=r"expected the folder '.*absent' for 'a.mp4', found none: create it"):
        frames_io.check_output(tmp_path / "absent" / "a.mp4")


@pytest.mark.parametrize(("folder", "asked"), [("a.mp4", "a.mp4"), ("a_0000.png", "a.png")])
def test_check_output_folder_in_the_way_raises(tmp_path, folder, asked):
    (tmp_path / folder).mkdir()
    with pytest.raises(InputError, match=rf"got the folder '.*{folder}'"):
        frames_io.check_output(tmp_path / asked)


def test_check_output_read_only_folder_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="expected a writable folder, got"):
        frames_io.check_output(tmp_path / "a.gif")


def test_check_output_name_too_long_raises(tmp_path):
    with pytest.raises(InputError, match="cannot use the output"):
        frames_io.check_output(tmp_path / ("a" * 300 + ".png"))


@pytest.mark.parametrize(("suffix", "encoder"), [(".mp4", "libx264"), (".webm", "libvpx-vp9")])
def test_check_output_missing_encoder_raises_in_words(tmp_path, monkeypatch, suffix, encoder):
    def no_codec(name, mode):
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av, "Codec", no_codec)
    with pytest.raises(OutputError, match=f"expected the encoder {encoder} for {suffix}"):
        frames_io.check_output(tmp_path / f"a{suffix}")


# Bytes


def test_to_uint8_nearest_and_truncate_differ_by_the_fraction():
    frames = torch.tensor([0.0, 0.25 / 255, 0.75 / 255, 254.6 / 255, 1.0, 1.1]).reshape(1, 1, 2, 3)
    assert frames_io.to_uint8(frames).flatten().tolist() == [0, 0, 1, 255, 255, 255]
    assert frames_io.to_uint8(frames, "truncate").flatten().tolist() == [0, 0, 0, 254, 255, 255]
    assert frames_io.to_uint8(frames - 2).max() == 0


def test_to_uint8_every_byte_survives_a_round_trip():
    every = torch.arange(256).repeat_interleave(3).reshape(1, 1, 256, 3).to(torch.uint8)
    assert torch.equal(frames_io.to_uint8(every / 255), every)
    assert frames_io.to_uint8(every) is every


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_uint8_other_float_types_round_in_float32(dtype):
    frames = smooth_clip(2, 4, 5).to(dtype)
    assert torch.equal(frames_io.to_uint8(frames), (frames.float() * 255).round().to(torch.uint8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_to_uint8_not_finite_names_the_frame(value):
    frames = smooth_clip(3, 4, 4)
    frames[2, 1, 1, 0] = value
    with pytest.raises(InputError, match="NaN or infinity in frame 2"):
        frames_io.to_uint8(frames)


def test_to_uint8_wrong_arguments_raise():
    with pytest.raises(ShapeError, match=r"got \[2, 3, 4, 4\]"):
        frames_io.to_uint8(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ShapeError, match=r"got \[0, 4, 4, 3\]"):
        frames_io.to_uint8(torch.zeros(0, 4, 4, 3))
    with pytest.raises(InputError, match=r"got torch.int64"):
        frames_io.to_uint8(torch.zeros(1, 4, 4, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="got 'floor'"):
        frames_io.to_uint8(torch.zeros(1, 4, 4, 3), "floor")


# Video


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize(
    ("fps", "rate"),
    [(8, Fraction(8)), (7.5, Fraction(15, 2)), (30000 / 1001, Fraction(30000, 1001))],
    ids=["whole", "half", "broadcast"],
)
def test_write_frames_video_round_trip(tmp_path, suffix, fps, rate):
    clip = smooth_clip(13, 96, 64)
    assert frames_io.write_frames(clip, tmp_path / f"a{suffix}", fps) == [tmp_path / f"a{suffix}"]
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
    frames_io.write_frames(clip, tmp_path / f"a{suffix}", 8)
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
    frames_io.write_frames(clip, tmp_path / f"a{suffix}", 8)
    decoded, _, _ = decode(tmp_path / f"a{suffix}")
    assert decoded.shape[1:3] == padded
    row, column = padded[0] - size[0], padded[1] - size[1]
    expected = np.pad(clip.numpy() * 255, ((0, 0), (0, row), (0, column), (0, 0)), mode="edge")
    assert psnr(decoded, expected) > 30


def test_write_frames_single_frame_and_strided_input(tmp_path):
    clip = smooth_clip(1, 16, 24).permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    frames_io.write_frames(frames_io.to_uint8(clip), tmp_path / "a.MP4", 8)
    decoded, average_rate, _ = decode(tmp_path / "a.MP4")
    assert average_rate == 8
    assert psnr(decoded, clip * 255) > 30


def test_write_frames_mp4_has_its_index_in_front(tmp_path):
    frames_io.write_frames(smooth_clip(3, 32, 32), tmp_path / "a.mp4", 8)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(("suffix", "fps"), [(".mp4", 0), (".webm", float("nan")), (".mp4", 241), (".gif", 60)])
def test_write_frames_rate_out_of_range_raises(tmp_path, suffix, fps):
    with pytest.raises(InputError, match=f"frames per second for {suffix}, got {fps}"):
        frames_io.write_frames(smooth_clip(2, 8, 8), tmp_path / f"a{suffix}", fps)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_write_frames_side_over_limit_raises(tmp_path, suffix):
    with pytest.raises(InputError, match=rf"up to 16384 pixels for {suffix}, got 16386 x 2: write .png"):
        frames_io.write_frames(torch.zeros(1, 2, 16386, 3), tmp_path / f"a{suffix}", 8)


def test_write_frames_encoder_refusal_is_one_sentence(tmp_path, monkeypatch):
    refused = frames_io._VIDEO_FORMATS[".mp4"]._replace(encoder_options={"profile": "no such profile"})
    monkeypatch.setitem(frames_io._VIDEO_FORMATS, ".mp4", refused)
    with pytest.raises(OutputError, match=r"could not encode 8 x 6 frames as .mp4"):
        frames_io.write_frames(torch.zeros(2, 6, 8, 3), tmp_path / "a.mp4", 8)
    assert os.listdir(tmp_path) == []


# GIF and PNG


@pytest.mark.parametrize("fps", [7, 30, 12.5])
def test_write_frames_gif_count_duration_and_colours(tmp_path, fps):
    clip = smooth_clip(13, 40, 31)
    frames_io.write_frames(clip, tmp_path / "a.gif", fps)
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
    frames_io.write_frames(frame.expand(5, -1, -1, -1), tmp_path / "a.gif", 10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 1
        assert gif.info["duration"] == 500
        assert np.array_equal(np.asarray(gif.convert("RGB")), frame.numpy())


def test_write_frames_gif_palette_samples_every_column(tmp_path, monkeypatch):
    monkeypatch.setattr(frames_io, "_PALETTE_SAMPLES", 64)  # one pixel in 64, the width of the clip
    bars = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]], dtype=torch.uint8)
    clip = bars.repeat_interleave(16, dim=0).expand(1, 64, 64, 3)
    frames_io.write_frames(clip, tmp_path / "a.gif", 10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert np.array_equal(np.asarray(gif.convert("RGB")), clip[0].numpy())


def test_write_frames_png_sequence_is_lossless(tmp_path):
    clip = frames_io.to_uint8(smooth_clip(11, 5, 7))
    paths = frames_io.write_frames(clip, tmp_path / "out.png", 8)
    assert [path.name for path in paths] == [f"out_{i:04}.png" for i in range(11)]
    assert sorted(os.listdir(tmp_path)) == [path.name for path in paths]
    for path, frame in zip(paths, clip, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), frame.numpy())


# Failures


@pytest.mark.parametrize("suffix", frames_io.SUFFIXES)
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
        frames_io.write_frames(smooth_clip(90, 16, 16), tmp_path / f"a{suffix}", 8)
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
        frames_io.write_frames(smooth_clip(6, 4, 4), tmp_path / "a.png", 8)
    assert len(calls) == 4
    assert os.listdir(tmp_path) == []


def test_atomic_path_replaces_only_at_the_end(tmp_path):
    target = tmp_path / "weights.safetensors"
    target.write_bytes(b"old")
    with frames_io.atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".safetensors"
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == [target.name]


def test_atomic_path_block_that_writes_nothing_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"could not write '.*a.png'"), frames_io.atomic_path(target):
        pass
    assert target.read_bytes() == b"old"


def test_atomic_path_own_errors_pass_unchanged(tmp_path):
    def write_half():
        with frames_io.atomic_path(tmp_path / "a") as temporary:
            temporary.write_bytes(b"half")
            raise InputError("a value")

    with pytest.raises(InputError, match=r"^a value$"):
        write_half()
    assert os.listdir(tmp_path) == []


# Contact sheet


@pytest.mark.parametrize(
    ("shape", "columns", "labels", "size"),
    [
        ((7, 32, 32), 3, True, (4 + 3 * 132, 4 + 3 * (128 + 20 + 4))),
        ((7, 32, 32), None, False, (4 + 3 * 132, 4 + 3 * 132)),
        ((2, 10, 200), 5, True, (4 + 2 * 204, 4 + 10 + 20 + 4)),
        ((1, 3, 1), 1, False, (4 + 132, 4 + 3 * 128 + 4)),
        ((1, 100, 100), 1, False, (4 + 204, 4 + 204)),
    ],
    ids=["last_row_short", "square", "fewer_frames_than_columns", "one_pixel_wide", "whole_factor"],
)
def test_contact_sheet_size(shape, columns, labels, size):
    times = [i / 8 for i in range(shape[0])] if labels else None
    sheet = frames_io.contact_sheet(smooth_clip(*shape), columns, times)
    assert sheet.mode == "RGB"
    assert sheet.size == size


def test_contact_sheet_places_tiles_and_labels():
    clip = frames_io.to_uint8(smooth_clip(4, 16, 32))
    pixels = np.asarray(frames_io.contact_sheet(clip, 2, [0.0, 0.125, 12.5, 1234.56], label_px=16))
    step_x, step_y = 128 + 4, 64 + 16 + 4
    for index, frame in enumerate(clip.numpy()):
        top, left = 4 + index // 2 * step_y, 4 + index % 2 * step_x
        tile = pixels[top : top + 64, left : left + 128]
        assert np.array_equal(tile, frame.repeat(4, axis=0).repeat(4, axis=1))
        label = pixels[top + 64 : top + 80, left : left + 128]
        assert label.min() < 64
    gaps = [pixels[:4], pixels[:, :4], pixels[:, 132:136], pixels[84:88], pixels[-4:], pixels[:, -4:]]
    assert all((gap == 255).all() for gap in gaps)


def test_contact_sheet_wrong_arguments_raise():
    clip = smooth_clip(3, 8, 8)
    with pytest.raises(InputError, match="1 or more columns on the sheet, got 0"):
        frames_io.contact_sheet(clip, 0)
    with pytest.raises(InputError, match="expected 3 times for 3 frames, got 2"):
        frames_io.contact_sheet(clip, None, [0.0, 1.0])
    with pytest.raises(InputError, match=r"12\.\.40 pixels, got 8"):
        frames_io.contact_sheet(clip, label_px=8)


# Still images


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".webp"])
def test_write_image_read_image_round_trip(tmp_path, suffix):
    frame = frames_io.to_uint8(smooth_clip(1, 24, 40))[0]
    frames_io.write_image(Image.fromarray(frame.numpy()), tmp_path / f"a{suffix}")
    read = frames_io.read_image(str(tmp_path / f"a{suffix}"))
    assert read.dtype == torch.float32
    assert psnr(read * 255, frame) > 33
    assert os.listdir(tmp_path) == [f"a{suffix}"]


def test_write_image_unknown_suffix_raises(tmp_path):
    with pytest.raises(InputError, match=r"got '.*a.xyz'"):
        frames_io.write_image(Image.new("RGB", (2, 2)), tmp_path / "a.xyz")


@pytest.mark.parametrize("name", ["a.jpg", "absent/a.png"], ids=["mode", "folder"])
def test_write_image_failure_leaves_nothing(tmp_path, name):
    with pytest.raises(OutputError, match=r"could not write '.*'"):
        frames_io.write_image(Image.new("RGBA", (2, 2)), tmp_path / name)
    assert os.listdir(tmp_path) == []


IMAGES = {
    "rgb": (Image.new("RGB", (1, 1), (51, 102, 204)), [[51, 102, 204]]),
    "alpha_over_white": (Image.new("RGBA", (1, 1), (0, 255, 0, 51)), [[204, 255, 204]]),
    "grey": (Image.new("L", (1, 1), 77), [[77, 77, 77]]),
    "grey_alpha": (Image.new("LA", (1, 1), (100, 0)), [[255, 255, 255]]),
    "black_and_white": (Image.new("1", (1, 1), 1), [[255, 255, 255]]),
    "sixteen_bit": (
        Image.fromarray(np.array([[0, 257 * 40, 65535]], np.uint16)),
        [[0] * 3, [40] * 3, [255] * 3],
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_read_image_mode_becomes_rgb(tmp_path, name):
    image, expected = IMAGES[name]
    image.save(tmp_path / "a.png")
    read = frames_io.read_image(tmp_path / "a.png")
    assert read.shape == (1, len(expected), 3)
    assert torch.allclose(read[0] * 255, torch.tensor(expected).float(), atol=1e-3)


def test_read_image_palette_with_transparent_entry(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([255, 0, 0, 0, 51, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=2)
    read = frames_io.read_image(tmp_path / "a.png") * 255
    assert read.round().tolist() == [[[255, 0, 0], [0, 51, 0], [255, 255, 255]]]


def test_read_image_cmyk_is_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert torch.allclose(frames_io.read_image(tmp_path / "a.jpg")[0, 0], torch.tensor([1.0, 0, 0]), atol=0.02)


@pytest.mark.parametrize(("tag", "corner"), [(1, (0, 0)), (3, (1, 2)), (6, (0, 1)), (8, (2, 0))])
def test_read_image_exif_rotation_is_applied(tmp_path, tag, corner):
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = tag
    image.save(tmp_path / "a.png", exif=exif)
    read = frames_io.read_image(tmp_path / "a.png")
    assert read.shape == ((3, 2, 3) if tag in (6, 8) else (2, 3, 3))
    assert read.sum(-1).nonzero().tolist() == [list(corner)]


@pytest.mark.parametrize(
    ("mode", "value"), [("F", 0.5), ("I", 70000), ("I", -1)], ids=["floats", "over_16_bit", "negative"]
)
def test_read_image_32_bit_raises(tmp_path, mode, value):
    Image.new(mode, (2, 2), value).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"8 or 16 bits per channel in '.*a.tiff', got 32"):
        frames_io.read_image(tmp_path / "a.tiff")


def test_read_image_not_an_image_raises(tmp_path):
    (tmp_path / "text.png").write_text("not an image\n")
    (tmp_path / "empty.png").touch()
    smooth = frames_io.to_uint8(smooth_clip(1, 64, 64))[0]
    Image.fromarray(smooth.numpy()).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name in ("text.png", "empty.png", "cut.png"):
        with pytest.raises(InputError, match=rf"at '.*{name}', found a damaged or other file"):
            frames_io.read_image(tmp_path / name)


def test_read_image_missing_folder_and_unreadable_raise(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"'.*absent.png', found no such file"):
        frames_io.read_image(tmp_path / "absent.png")
    with pytest.raises(InputError, match="found a folder"):
        frames_io.read_image(tmp_path)

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(InputError, match=r"cannot read the image '.*a.png': permission denied"):
        frames_io.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("side", [8_193, 60_000], ids=["over_our_limit", "over_pillow_limit"])
def test_read_image_decompression_bomb_raises_before_decoding(tmp_path, side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 9)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(bomb)
    with pytest.raises(InputError, match=r"expected up to 67108864 pixels in '.*a.png', got more"):
        frames_io.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".png"])
def test_write_frames_in_chunks_gives_the_files_of_the_whole_clip(tmp_path, suffix):
    clip, written = smooth_clip(11, 24, 32), {}
    for name, frames, count in (("whole", clip, None), ("chunks", iter(clip.split(4)), len(clip))):
        (tmp_path / name).mkdir()
        files = frames_io.write_frames(frames, tmp_path / name / f"a{suffix}", 8, count=count)
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

    frames_io.write_frames(chunks(), tmp_path / f"a{suffix}", 8, count=12)
    assert len(alive) == 6
    assert max(alive) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
@pytest.mark.parametrize(("count", "chunks"), [(5, 2), (3, 2), (2, 0)])
def test_write_frames_of_another_count_leaves_nothing(tmp_path, suffix, count, chunks):
    with pytest.raises(InputError, match=f"expected {count} frames to write, got"):
        frames_io.write_frames(smooth_clip(4, 16, 16).split(2)[:chunks], tmp_path / f"a{suffix}", 8, count=count)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_write_frames_of_a_source_that_fails_leaves_only_the_old_file(tmp_path, suffix):
    old = tmp_path / ("a_0001.png" if suffix == ".png" else f"a{suffix}")
    old.write_bytes(b"old")

    def failing():
        yield smooth_clip(2, 16, 16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frames_io.write_frames(failing(), tmp_path / f"a{suffix}", 8, count=4)
    assert os.listdir(tmp_path) == [old.name]
    assert old.read_bytes() == b"old"


def test_write_frames_not_finite_in_a_later_chunk_names_the_frame_of_the_clip(tmp_path):
    clip = smooth_clip(8, 16, 16)
    clip[6, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinity in frame 6"):
        frames_io.write_frames(iter(clip.split(3)), tmp_path / "a.mp4", 8, count=8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_write_frames_in_chunks_without_their_count_says_so(tmp_path, suffix):
    with pytest.raises(InputError, match="expected the count of frames that come in chunks"):
        frames_io.write_frames(iter(smooth_clip(4, 16, 16).split(2)), tmp_path / f"a{suffix}", 8)
    assert os.listdir(tmp_path) == []


def test_mp4_of_the_same_frames_has_the_same_bytes_every_time(tmp_path):
    clip = smooth_clip(11, 64, 96)
    files = [frames_io.write_frames(clip, tmp_path / f"{i}.mp4", 8)[0] for i in range(10)]
    assert len({file.read_bytes() for file in files}) == 1
