"""Still images: bytes and numbers agree, and what Pillow cannot read is said in one sentence."""

import errno
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fusionframes.ff_kernels.errors import InputError, OutputError, ShapeError
from fusionframes.ff_kernels.media.pictures import (
    fit_as_released,
    fit_covering,
    read_image,
    to_rgb,
    to_uint8,
    write_image,
)
from fusionframes.ff_kernels.media.sheet import contact_sheet


def smooth_clip(frames: int, height: int, width: int) -> torch.Tensor:
    """``[F, H, W, 3]`` in 0..1: two gradients and a slow pulse, each channel another."""
    t = torch.arange(frames).float()[:, None, None] / max(frames - 1, 1)
    y = torch.linspace(0, 1, height)[None, :, None]
    x = torch.linspace(0, 1, width)[None, None, :]
    channels = [(x + t) / 2, (y + 1 - t) / 2, 0.25 + 0.5 * t]
    return torch.stack([c.expand(frames, height, width) for c in channels], dim=-1)


def psnr(a, b) -> float:
    error = np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-12))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


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


def test_to_uint8_nearest_and_truncate_differ_by_the_fraction():
    frames = torch.tensor([0.0, 0.25 / 255, 0.75 / 255, 254.6 / 255, 1.0, 1.1]).reshape(1, 1, 2, 3)
    assert to_uint8(frames).flatten().tolist() == [0, 0, 1, 255, 255, 255]
    assert to_uint8(frames, "truncate").flatten().tolist() == [0, 0, 0, 254, 255, 255]
    assert to_uint8(frames - 2).max() == 0


def test_to_uint8_every_byte_survives_a_round_trip():
    every = torch.arange(256).repeat_interleave(3).reshape(1, 1, 256, 3).to(torch.uint8)
    assert torch.equal(to_uint8(every / 255), every)
    assert to_uint8(every) is every


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_uint8_other_float_types_round_in_float32(dtype):
    frames = smooth_clip(2, 4, 5).to(dtype)
    assert torch.equal(to_uint8(frames), (frames.float() * 255).round().to(torch.uint8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_to_uint8_not_finite_names_the_frame(value):
    frames = smooth_clip(3, 4, 4)
    frames[2, 1, 1, 0] = value
    with pytest.raises(InputError, match="NaN or infinity in frame 2"):
        to_uint8(frames)


def test_to_uint8_wrong_arguments_raise():
    with pytest.raises(ShapeError, match=r"got \[2, 3, 4, 4\]"):
        to_uint8(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ShapeError, match=r"got \[0, 4, 4, 3\]"):
        to_uint8(torch.zeros(0, 4, 4, 3))
    with pytest.raises(InputError, match=r"got torch.int64"):
        to_uint8(torch.zeros(1, 4, 4, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="got 'floor'"):
        to_uint8(torch.zeros(1, 4, 4, 3), "floor")


def test_contact_sheet_places_tiles_and_labels():
    clip = to_uint8(smooth_clip(4, 16, 32))
    pixels = np.asarray(contact_sheet(clip, 2, [0.0, 0.125, 12.5, 1234.56], label_px=16))
    step_x, step_y = 128 + 4, 64 + 16 + 4
    for index, frame in enumerate(clip.numpy()):
        top, left = 4 + index // 2 * step_y, 4 + index % 2 * step_x
        tile = pixels[top : top + 64, left : left + 128]
        assert np.array_equal(tile, frame.repeat(4, axis=0).repeat(4, axis=1))
        label = pixels[top + 64 : top + 80, left : left + 128]
        assert label.min() < 64
    gaps = [pixels[:4], pixels[:, :4], pixels[:, 132:136], pixels[84:88], pixels[-4:], pixels[:, -4:]]
    assert all((gap == 255).all() for gap in gaps)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".webp"])
def test_write_image_read_image_round_trip(tmp_path, suffix):
    frame = to_uint8(smooth_clip(1, 24, 40))[0]
    write_image(Image.fromarray(frame.numpy()), tmp_path / f"a{suffix}")
    read = read_image(str(tmp_path / f"a{suffix}"))
    assert read.dtype == torch.float32
    assert psnr(read * 255, frame) > 33
    assert os.listdir(tmp_path) == [f"a{suffix}"]


def test_write_image_unknown_suffix_raises(tmp_path):
    with pytest.raises(InputError, match=r"got '.*a.xyz'"):
        write_image(Image.new("RGB", (2, 2)), tmp_path / "a.xyz")


@pytest.mark.parametrize("name", ["a.jpg", "absent/a.png"], ids=["mode", "folder"])
def test_write_image_failure_leaves_nothing(tmp_path, name):
    with pytest.raises(OutputError, match=r"could not write '.*'"):
        write_image(Image.new("RGBA", (2, 2)), tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", IMAGES)
def test_read_image_mode_becomes_rgb(tmp_path, name):
    image, expected = IMAGES[name]
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.shape == (1, len(expected), 3)
    assert torch.allclose(read[0] * 255, torch.tensor(expected).float(), atol=1e-3)


def test_read_image_palette_with_transparent_entry(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([255, 0, 0, 0, 51, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=2)
    read = read_image(tmp_path / "a.png") * 255
    assert read.round().tolist() == [[[255, 0, 0], [0, 51, 0], [255, 255, 255]]]


def test_read_image_cmyk_is_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert torch.allclose(read_image(tmp_path / "a.jpg")[0, 0], torch.tensor([1.0, 0, 0]), atol=0.02)


@pytest.mark.parametrize(("tag", "corner"), [(1, (0, 0)), (3, (1, 2)), (6, (0, 1)), (8, (2, 0))])
def test_read_image_exif_rotation_is_applied(tmp_path, tag, corner):
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = tag
    image.save(tmp_path / "a.png", exif=exif)
    read = read_image(tmp_path / "a.png")
    assert read.shape == ((3, 2, 3) if tag in (6, 8) else (2, 3, 3))
    assert read.sum(-1).nonzero().tolist() == [list(corner)]


@pytest.mark.parametrize(
    ("mode", "value"), [("F", 0.5), ("I", 70000), ("I", -1)], ids=["floats", "over_16_bit", "negative"]
)
def test_read_image_32_bit_raises(tmp_path, mode, value):
    Image.new(mode, (2, 2), value).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"8 or 16 bits per channel in '.*a.tiff', got 32"):
        read_image(tmp_path / "a.tiff")


def test_read_image_not_an_image_raises(tmp_path):
    (tmp_path / "text.png").write_text("not an image\n")
    (tmp_path / "empty.png").touch()
    smooth = to_uint8(smooth_clip(1, 64, 64))[0]
    Image.fromarray(smooth.numpy()).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name in ("text.png", "empty.png", "cut.png"):
        with pytest.raises(InputError, match=rf"at '.*{name}', found a damaged or other file"):
            read_image(tmp_path / name)


def test_read_image_missing_folder_and_unreadable_raise(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"'.*absent.png', found no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(InputError, match="found a folder"):
        read_image(tmp_path)

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(InputError, match=r"cannot read the image '.*a.png': permission denied"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("side", [8_193, 60_000], ids=["over_our_limit", "over_pillow_limit"])
def test_read_image_decompression_bomb_raises_before_decoding(tmp_path, side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 9)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(bomb)
    with pytest.raises(InputError, match=r"expected up to 67108864 pixels in '.*a.png', got more"):
        read_image(tmp_path / "a.png")


def gradient(height: int, width: int) -> torch.Tensor:
    rows, columns = torch.linspace(0, 1, height), torch.linspace(0, 1, width)
    return torch.stack([rows[:, None].expand(height, width), columns.expand(height, width),
                        torch.full((height, width), 0.5)], dim=-1)  # fmt: skip


@pytest.mark.parametrize("size", [(64, 96), (200, 60), (60, 200), (65, 97)])
def test_both_ways_give_the_size_asked_for(size):
    for fit in (fit_as_released, fit_covering):
        out = fit(gradient(*size), 32, 48)
        assert out.shape == (48, 32, 3)
        assert out.min() >= 0
        assert out.max() <= 1


def test_small_picture_lies_on_black_as_released_and_covers_when_mended():
    picture = torch.ones(20, 20, 3)
    released = fit_as_released(picture, 40, 40)
    assert released[0].sum() == 0
    assert released[20, 20].min() == 1
    assert fit_covering(picture, 40, 40).min() > 0.99


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (700, 2)])
def test_extreme_pictures_are_taken(size):
    for fit in (fit_as_released, fit_covering):
        assert fit(torch.full((*size, 3), 0.25), 16, 16).isfinite().all()


def test_released_way_is_pillow_on_truncated_bytes():
    picture = gradient(100, 80)
    image = Image.fromarray((picture * 255).byte().numpy()).resize((40, 50)).crop((0, 5, 40, 45))
    expected = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(40, 40, 3).float() / 255
    assert torch.equal(fit_as_released(picture, 40, 40), expected)


def test_fitting_picture_passes_through_unchanged_when_mended():
    picture = gradient(24, 32)
    assert torch.equal(fit_covering(picture, 32, 24), picture)


def test_to_rgb_lays_what_is_transparent_over_white():
    picture = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.5], [0.2, 0.4, 0.6, 1.0]]])
    expected = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.5, 0.5], [0.2, 0.4, 0.6]]])
    assert torch.equal(to_rgb(picture), expected)
    assert torch.equal(to_rgb(torch.tensor([[[0.0, 0.25]]])), torch.full((1, 1, 3), 0.75))
    assert torch.equal(to_rgb(picture[..., :3]), picture[..., :3])


def test_first_frame_with_transparency_is_one_picture_for_both_doors(tmp_path):
    Image.fromarray(np.array([[[200, 100, 0, 51], [0, 0, 0, 255]]], dtype=np.uint8), "RGBA").save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        rgba = torch.from_numpy(np.asarray(image).astype(np.float32) / 255)
    assert (read_image(tmp_path / "a.png") - to_rgb(rgba)).abs().max() < 1e-6
