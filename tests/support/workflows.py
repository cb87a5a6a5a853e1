"""The shipped workflows with weights small enough for a CPU in place of the real files."""

import copy
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from fusionframes.ff_kernels.demo.evaluate import true_clips
from fusionframes.ff_kernels.media.video import write_frames

from . import release

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
SIDE = 64
# Real file to the demo's, which is of release 1.0.
DEMO = {
    "kandinsky_video.pt": "fusionframes_demo_keyframes.safetensors",
    "kandinsky_video_interpolation.pt": "fusionframes_demo_interpolation.safetensors",
    "movq.pt": "fusionframes_demo_movq.safetensors",
    "pytorch_model-00001-of-00008.bin": "fusionframes_demo_text_encoder.safetensors",
    "RealESRGAN_x4plus.safetensors": "upscaler.safetensors",
}
# Real file of release 1.1 to the untrained one that ``write_models`` makes.
TINY = {
    "t2v.pt": "tiny/keyframe.safetensors",
    "interpolation.pt": "tiny/interpolation.safetensors",
    "video_movq.pt": "tiny/video_movq.safetensors",
    "t5_projections.pt": "tiny/t5.safetensors",
    "pytorch_model-00001-of-00008.bin": "tiny/text_encoder.safetensors",
}
FOLDER_OF = {"keyframe": "diffusion_models", "interpolation": "diffusion_models", "video_movq": "vae", "movq": "vae"}


def write_models(base: Path) -> None:
    """Write untrained weights of release 1.1, an upscale model and inputs into a server's folders."""
    made = base / "made"
    made.mkdir()
    release.write(made, "1.1")
    for path in made.iterdir():
        folder = base / "models" / FOLDER_OF.get(path.stem, "text_encoders") / "tiny"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    save_file(upscaler(), base / "models" / "upscale_models" / "upscaler.safetensors")
    frames = true_clips(1, 5, seed=3)[0].movedim(1, -1)
    write_frames(frames, base / "input" / "example.mp4", 2.0)
    pixels = (frames[0] * 255).to(torch.uint8).numpy()
    Image.fromarray(pixels).save(base / "input" / "example.png")


def upscaler() -> dict[str, torch.Tensor]:
    """Random weights of a compact Real-ESRGAN, four times."""
    generator = torch.Generator().manual_seed(0)
    sizes = {0: (8, 3), 2: (8, 8), 4: (48, 8)}
    tensors = {f"body.{i}.weight": torch.randn(*size, 3, 3, generator=generator) * 0.1 for i, size in sizes.items()}
    tensors |= {f"body.{i}.bias": torch.zeros(size[0]) for i, size in sizes.items()}
    return tensors | {f"body.{i}.weight": torch.full((8,), 0.1) for i in (1, 3)}


def small(name: str, steps: int = 3) -> dict:
    """Return the API twin with small weights, pictures and step counts; the demo template keeps its own sizes."""
    prompt = copy.deepcopy(json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text()))
    is_v11 = any(value in ("t2v.pt", "video_movq.pt") for node in prompt.values() for value in node["inputs"].values())
    files = TINY if is_v11 else DEMO
    for node in prompt.values():
        inputs = node["inputs"]
        for key, value in inputs.items():
            if isinstance(value, str):
                inputs[key] = files.get(value, value)
        if node["class_type"] in ("ImageScale", "EmptyImage", "FusionFramesImageToVideo", "FusionFramesEmptyLatent"):
            inputs["width"] = inputs["height"] = SIDE
        if node["class_type"] == "FusionFramesEmptyLatent":
            inputs["preset"] = "width and height above" if is_v11 else "64 x 64, demo"
            # The untrained MoVQ of release 1.1 has 2 x 2 pixels per latent position, core's latents 8 x 8.
            inputs["width"] = inputs["height"] = SIDE * 8 // 2 if is_v11 else SIDE
        if "steps" in inputs:
            inputs["steps"] = steps
            if "preset" in inputs:
                inputs["preset"] = "custom"
    return prompt
