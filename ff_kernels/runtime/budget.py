"""What a sampling step needs beside its weights."""

# Live values per latent position and model channel at the peak of a step. The recorder counts 9 at 512x512 and
# 640x384 for both U-Nets of release 1.0 and 11 where nothing is large enough to be run in parts.
PEAK_VALUES = 12
# What the vendor's libraries take as workspace, and the fragments that an allocator cannot use: assumed.
RESERVE_BYTES = 512 << 20


def step_bytes(samples: int, size: tuple[int, int], model_channels: int, element_size: int) -> int:
    """Return about the most bytes alive at one time in a step of a U-Net, without its weights.

    Args:
        samples: samples that run together: branches times clips times frames (or gaps).
        size: latent height and width.
        model_channels: width that the levels are multiples of.
        element_size: bytes of a number.
    """
    return PEAK_VALUES * samples * size[0] * size[1] * model_channels * element_size


def fits(needed: int, free: int | None) -> bool:
    """Return whether a step of ``needed`` bytes fits into ``free`` bytes; where nobody knows, it is tried."""
    return free is None or needed + RESERVE_BYTES <= free
