"""A person's first minute: a clean installation, Templates, "text_to_video_demo", Run, a video in the graph."""

import os
from pathlib import Path

import av
import pytest
from support import stand_in
from support.core_server import PACK, CoreServer

TEMPLATE = "text_to_video_demo"
OPEN_TEMPLATE = """async ([pack, name]) => {
    const answer = await fetch(`/api/workflow_templates/${pack}/${name}.json`);
    await app.loadGraphData(await answer.json(), true, false, name);
    await app.extensionManager.command.execute("Comfy.Canvas.FitView");
}"""
HAS_VIDEO = """() => app.graph.nodes.some(node => node.type === "SaveVideo"
    && (node.videoContainer || node.images?.length || node.widgets?.some(w => w.name?.includes("video-preview"))))"""


@pytest.fixture
def artefacts(tmp_path):
    folder = Path(os.environ.get("FUSIONFRAMES_ARTEFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_demo_template_runs_from_the_browser(tmp_path, artefacts):
    browser = stand_in.chromium()
    if browser is None:
        pytest.skip("needs Chromium: install it or set CHROMIUM to its path")
    from playwright.sync_api import sync_playwright

    with CoreServer(os.environ["COMFYUI_PATH"], tmp_path) as server, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 2400, "height": 1000})
        page.route("**/*", lambda route: route.continue_() if server.url in route.request.url else route.abort())
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        page.wait_for_function(
            stand_in.READY, arg=[name for name in server.info if name.startswith("FusionFrames")], timeout=90_000
        )
        page.evaluate(OPEN_TEMPLATE, [PACK, TEMPLATE])
        page.wait_for_timeout(1000)
        with page.expect_response(
            lambda answer: answer.url.endswith("/prompt") and answer.request.method == "POST"
        ) as sent:
            page.get_by_role("button", name="Run", exact=True).first.click()
        answer = sent.value.json()
        assert not answer.get("node_errors"), answer
        result = server.wait(answer["prompt_id"], timeout=600)
        assert result["status"]["status_str"] == "success", server.failure(result)
        (video,) = [path for path in server.files(result) if path.suffix == ".mp4"]
        page.wait_for_function(HAS_VIDEO, timeout=30_000)
        page.wait_for_timeout(3000)
        page.screenshot(path=artefacts / f"{TEMPLATE}_finished.png")
        (artefacts / f"{TEMPLATE}.mp4").write_bytes(video.read_bytes())
        chromium.close()
        assert not errors
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 65
    assert max(frame.std() for frame in frames) > 1
