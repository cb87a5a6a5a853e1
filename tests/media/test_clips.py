import av
import numpy as np
import pytest
import torch

from fusionframes.ff_kernels.errors import InputError
from fusionframes.ff_kernels.media.clips import ClipFiles, find_clips, pair_clips
from fusionframes.ff_kernels.media.video import write_frames


@pytest.fixture
def frames():
    """Smooth colours [11, 32, 48, 3] that change over time."""
    t, y, x = torch.meshgrid(
        torch.linspace(0, 1, 11), torch.linspace(0, 1, 32), torch.linspace(0, 1, 48), indexing="ij"
    )
    return torch.stack([x, (y + t) / 2, 1 - x * t], -1)


@pytest.mark.parametrize(("suffix", "limit"), [(".mp4", 0.012), (".webm", 0.02), (".gif", 0.1), (".png", 0.5 / 255)])
def test_every_written_format_is_read_back(tmp_path, frames, suffix, limit):
    write_frames(frames, tmp_path / f"clip{suffix}", 10)
    (clip,) = find_clips(tmp_path).values()
    assert clip.name == "clip"
    chunks = list(clip.chunks(4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 3]
    read = torch.cat(chunks)
    assert read.dtype == torch.float32
    assert (read - frames.permute(0, 3, 1, 2)).abs().mean() <= limit + 1e-6


def test_folders_of_videos_sequences_and_sub_folders(tmp_path, frames):
    write_frames(frames[:1], tmp_path / "a.gif", 10)
    write_frames(frames[:12], tmp_path / "b.png", 10)
    for name in ("d", "empty", ".hidden"):
        (tmp_path / name).mkdir()
    write_frames(frames[:2], tmp_path / "d" / "x.png", 10)
    write_frames(frames[:2], tmp_path / ".hidden" / "x.png", 10)
    (tmp_path / "notes.txt").write_text("no clip")
    clips = find_clips(tmp_path)
    assert {name: len(clip.files) for name, clip in clips.items()} == {"a": 1, "b": 11, "d": 2}
    write_frames(frames[:2], tmp_path / "d" / "y.png", 10)
    assert list(find_clips(tmp_path)) == ["a", "b", "d/x", "d/y"]
    assert list(find_clips(tmp_path / "a.gif")) == ["a"]


def test_wrong_folders_are_named(tmp_path, frames):
    with pytest.raises(InputError, match="found nothing: check the path"):
        find_clips(tmp_path / "absent")
    with pytest.raises(InputError, match="found none: check the folder"):
        find_clips(tmp_path)
    (tmp_path / "notes.txt").write_text("no clip")
    with pytest.raises(InputError, match=r"got '.*notes\.txt'"):
        find_clips(tmp_path / "notes.txt")
    files = write_frames(frames, tmp_path / "a.png", 10)
    files[4].unlink()
    with pytest.raises(InputError, match=r"every frame of 'a'.*found none of number 4"):
        find_clips(tmp_path)
    files[3].rename(tmp_path / "sheet.png")
    with pytest.raises(InputError, match=r"NAME_0000\.png, got '.*sheet\.png'"):
        find_clips(tmp_path)


def test_clips_of_one_name_and_deeper_videos_are_named(tmp_path, frames):
    write_frames(frames[:2], tmp_path / "a.gif", 10)
    write_frames(frames[:2], tmp_path / "a.png", 10)
    with pytest.raises(InputError, match=r"one clip named 'a'.*'a\.gif' and 'a_0000\.png'"):
        find_clips(tmp_path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write_frames(frames[:2], tmp_path / "deep" / "er" / "a.gif", 10)
    with pytest.raises(InputError, match=r"sub-folder '.*er', found videos"):
        find_clips(tmp_path / "deep")


def test_damaged_and_changing_files_are_named(tmp_path, frames):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"cannot read the video '.*bad\.mp4'"):
        next(find_clips(tmp_path / "bad.mp4")["bad"].chunks())
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="no video stream"):
        next(find_clips(tmp_path / "sound.mkv")["sound"].chunks())
    first = write_frames(frames[:1], tmp_path / "a.png", 10)
    second = write_frames(frames[:1, :20], tmp_path / "b.png", 10)
    with pytest.raises(InputError, match="got 48 x 32 and 48 x 20"):
        list(ClipFiles("a", (*first, *second)).chunks())


def test_pairs_are_made_by_name_but_for_single_clips():
    a, b, c = (ClipFiles(name, ()) for name in "abc")
    assert pair_clips({"a": a, "b": b}, {"b": b, "a": a}) == [(a, a), (b, b)]
    assert pair_clips({"a": a}, {"b": b}) == [(a, b)]
    with pytest.raises(InputError, match=r"'c' \(1 in all\) only in the reference"):
        pair_clips({"a": a, "c": c}, {"a": a, "b": b})
    with pytest.raises(InputError, match=r"'b' \(2 in all\) only in the evaluated"):
        pair_clips({"a": a}, {"a": a, "b": b, "c": c})
