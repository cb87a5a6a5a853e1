"""Every shipped workflow in the real server, from a clean base directory, to a video file."""

import os
import time

import av
import pytest
from support import workflows
from support.core_server import CoreServer

# Frames, side or (width, height), frames per second of every video a workflow saves, with the small weights.
EXPECTED = {
    "advanced_sampling": [(12, 64, 2), (12, 64, 2)],
    "compare_videos": [(65, (780, 384), 32)],
    "image_to_video": [(45, 64, 8)],
    "interpolate_frames": [(17, 64, 8)],
    "long_video": [(45, 64, 2)],
    "masked_inbetweening": [(8, 64, 8)],
    "text_to_video": [(57, 64, 8)],
    "text_to_video_demo": [(65, 512, 32)],
    "text_to_video_fast": [(57, 64, 8)],
    "text_to_video_upscaled": [(15, 80, 2), (15, 256, 2)],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("server")
    with CoreServer(os.environ["COMFYUI_PATH"], base) as running:
        workflows.write_models(base)
        yield running


def measure(path):
    """Frames, width, height and rate of a video file, by decoding it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return len(frames), stream.width, stream.height, float(stream.average_rate), frames


def test_expected_table_names_every_workflow():
    assert sorted(EXPECTED) == workflows.NAMES


@pytest.mark.parametrize("name", workflows.NAMES)
def test_api_workflow_runs_to_a_video(server, name):
    files = server.files(server.run(workflows.small(name), timeout=600))
    videos = [path for path in files if path.suffix == ".mp4"]
    assert len(videos) == len(EXPECTED[name])
    for path, (count, side, fps) in zip(videos, EXPECTED[name], strict=True):
        frames, width, height, rate, pixels = measure(path)
        size = side if isinstance(side, tuple) else (side, side)
        assert (frames, (width, height), rate) == (count, size, fps)
        assert max(frame.std() for frame in pixels) > 1


def test_wrong_connection_is_one_sentence_and_the_server_goes_on(server):
    prompt = workflows.small("text_to_video_demo", steps=1)
    samplers = [node for node in prompt.values() if node["class_type"] == "FusionFramesKeyframeSampler"]
    loaders = [key for key, node in prompt.items() if "interpolation" in str(node["inputs"].get("model_name"))]
    samplers[0]["inputs"]["model"] = [loaders[0], 0]
    with pytest.raises(RuntimeError, match="model expected the keyframe U-Net, got the interpolation U-Net"):
        server.run(prompt)
    server.run(workflows.small("masked_inbetweening", steps=1))


def test_interrupt_returns_soon_and_the_next_run_works(server):
    prompt = workflows.small("text_to_video_demo", steps=500)
    prompt_id = server.queue(prompt)
    time.sleep(4)
    begin = time.monotonic()
    server.post("/interrupt", {})
    result = server.wait(prompt_id, timeout=60)
    assert [kind for kind, _ in result["status"]["messages"]][-1] == "execution_interrupted"
    # Two steps of the demo model take well under a second; the rest is polling and a busy machine.
    assert time.monotonic() - begin < 15
    server.run(workflows.small("masked_inbetweening", steps=2))


def test_ten_runs_give_identical_files_and_flat_memory(tmp_path):
    # Freed memory goes back to the system at once, so that what is measured is what the server holds.
    allocator = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    with CoreServer(os.environ["COMFYUI_PATH"], tmp_path, "--cache-none", **allocator) as server:
        prompt = workflows.small("text_to_video_demo", steps=2)
        contents, memory = [], []
        for _ in range(10):
            files = [path for path in server.files(server.run(prompt)) if path.suffix == ".mp4"]
            contents.append(measure(files[0])[4])
            memory.append(server.memory_bytes())
        assert all((a == b).all() for other in contents[1:] for a, b in zip(contents[0], other, strict=True))
        assert memory[9] < 1.02 * memory[1], [round(m / 2**20) for m in memory]
