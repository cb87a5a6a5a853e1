"""What a run needs beside its weights."""

# Live values per latent position and model channel at the peak of a step. The recorder counts 9 at 512x512 and
# 640x384 for both U-Nets of release 1.0 and 11 where nothing is large enough to be run in parts.
PEAK_VALUES = 12
# Live bytes per pixel, byte of a number and frame at the peak of MoVQ as released, 256 channels wide; the recorder
# counts 1,340, 1,610 and 1,070 MB for a frame of 512x512 in float32.
IMAGE_DECODE, VIDEO_DECODE, ENCODE = 1280, 1540, 1020
MOVQ_WIDTH = 256
# Live values per token and width of the gated layers at the peak of a block of the text encoder.
TEXT_VALUES = 4
# What the vendor's libraries take as workspace, and the fragments that an allocator cannot use: assumed.
RESERVE_BYTES = 512 << 20
RESERVE_SHARE = 0.1


def step_bytes(samples: int, size: tuple[int, int], model_channels: int, element_size: int) -> int:
    """Return about the most bytes alive at one time in a step of a U-Net, without its weights.

    Args:
        samples: samples that run together: branches times clips times frames (or gaps).
        size: latent height and width.
        model_channels: width that the levels are multiples of.
        element_size: bytes of a number.
    """
    return PEAK_VALUES * samples * size[0] * size[1] * model_channels * element_size


def text_bytes(rows: int, tokens: int, widths: tuple[int, int, int], element_size: int) -> int:
    """Return about the most bytes alive at one time in a block of a text encoder, without its weights.

    Args:
        rows: prompts.
        tokens: of the longest one.
        widths: of the stream, of the gated layers, and how many heads.
        element_size: bytes of a number.
    """
    stream, gated, heads = widths
    values = TEXT_VALUES * (stream + gated) + 3 * heads * tokens
    return rows * tokens * values * element_size


def movq_bytes(per_pixel: int, frames: int, size: tuple[int, int], channels: int, element_size: int) -> int:
    """Return about the most bytes alive at one time in MoVQ, without its weights.

    Args:
        per_pixel: ``IMAGE_DECODE``, ``VIDEO_DECODE`` or ``ENCODE``.
        frames: that run together.
        size: height and width in pixels.
        channels: width that the levels are multiples of.
        element_size: bytes of a number.
    """
    return per_pixel * frames * size[0] * size[1] * element_size * channels // MOVQ_WIDTH


def without_reserve(vram: int) -> int:
    """Return what weights and intermediate results may take of a budget."""
    return vram - min(RESERVE_BYTES, int(vram * RESERVE_SHARE))


def with_reserve(room: int) -> int:
    """Return the smallest budget of which ``without_reserve`` leaves so much."""
    # The share is the smaller one up to here.
    if room <= RESERVE_BYTES / RESERVE_SHARE - RESERVE_BYTES:
        budget = int(room / (1 - RESERVE_SHARE))
        while without_reserve(budget) < room:
            budget += 1
        return budget
    return room + RESERVE_BYTES
