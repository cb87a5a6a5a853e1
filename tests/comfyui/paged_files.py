"""Files of one kind after the other under core's paging patcher; arguments: pack, base, result, folder of models.

For each: which parameters core's pager finds in the file again, results before and after it gave everything back, and
with a LoRA.
"""

import importlib
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
paging = importlib.import_module("support.paging")
graphs = importlib.import_module("support.graphs")
PACK, BASE, RESULT, MODELS = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
KEYFRAMES = "fusionframes_demo_keyframes.safetensors"


class Core:
    """What the graphs of ``support.graphs`` ask for."""

    def __init__(self, classes: dict) -> None:
        self.nodes = importlib.import_module("nodes")
        self.run = partial(paging.run, classes)


def wrong_slices(path: Path, parameters: dict) -> list[str]:
    """Name the parameters whose slice of the file holds something else."""
    content, wrong = path.read_bytes(), []
    for name, parameter in parameters.items():
        told = paging.slice_of(parameter)
        own = paging.stored(parameter).contiguous().view(torch.uint8).numpy().tobytes()
        if told is not None and content[told.offset : told.offset + told.size] != own:
            wrong.append(name)
    return wrong


def report(path: Path, parameters: dict) -> dict:
    """Say which parameters are not paged, which from a wrong place, and in how many bytes each waits."""
    return {
        "unpaged": [name for name, value in parameters.items() if paging.slice_of(value) is None],
        "wrong": wrong_slices(path, parameters),
        "bytes": {name: paging.stored(value).nbytes for name, value in parameters.items()},
    }


def parameters_of(model: object) -> dict:
    parts = (model.model.diffusion_model, model.model.conditioner)
    return {name.removeprefix("diffusion_model."): p for part in parts for name, p in part.named_parameters()}


def of_network(core: Core, path: Path, prompts: tuple, latent: dict) -> dict:
    management = importlib.import_module("comfy.model_management")
    (model,) = core.run("FusionFramesLoadModel", model_name=path.name)
    first = report(path, parameters_of(model))
    out = {"dynamic": model.is_dynamic(), "size": model.model_size(), **first}
    out["sample"] = graphs.ksampler(core, model, prompts, latent, 2)
    out["keyframes"] = graphs.keyframes(core, model, prompts, latent, 2)
    out["loaded"] = model.loaded_size()
    management.unload_all_models()
    out["left"] = model.loaded_size()
    out["again"] = graphs.ksampler(core, model, prompts, latent, 2)
    management.unload_all_models()
    out["is_restored"] = report(path, parameters_of(model)) == first
    if not model.model.is_folded:
        lora = torch.load(MODELS / "lora.pt", weights_only=True)
        patched = importlib.import_module("comfy.sd").load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
        out["lora"] = graphs.ksampler(core, patched, prompts, latent, 2)
        out["without"] = graphs.ksampler(core, model, prompts, latent, 2)
    return out


def of_text(core: Core, path: Path) -> dict:
    (clip,) = core.run("FusionFramesLoadTextEncoder", text_encoder_name=path.name, projection_name=KEYFRAMES)
    # Core loads a text encoder as it is opened: what lies aside is as it was.
    aside = {name: kept.weight for name, kept in clip.patcher.backup.items()}
    parameters = {**dict(clip.cond_stage_model.named_parameters()), **aside}
    # The projection is in another file.
    out = report(path, {name: value for name, value in parameters.items() if not name.startswith("projection")})
    out["unpaged"] += report(path, parameters)["unpaged"]
    encode = core.nodes.NODE_CLASS_MAPPINGS["CLIPTextEncode"]().encode
    out["context"] = encode(clip, "a large red circle")[0][0][0]
    importlib.import_module("comfy.model_management").unload_all_models()
    out["again"] = encode(clip, "a large red circle")[0][0][0]
    return {**out, "dynamic": clip.patcher.is_dynamic()}


def main() -> None:
    core = Core(paging.start(PACK, BASE))
    folders = importlib.import_module("folder_paths")
    for key in ("diffusion_models", "text_encoders"):
        folders.add_model_folder_path(key, str(MODELS / key))
    with torch.inference_mode():
        (clip,) = core.run(
            "FusionFramesLoadTextEncoder", projection_name=KEYFRAMES,
            text_encoder_name="fusionframes_demo_text_encoder.safetensors",
        )  # fmt: skip
        prompts = core.run("FusionFramesTextEncode", clip=clip, prompt="a large red circle", negative_prompt="")
        (latent,) = core.run("FusionFramesEmptyLatent", keyframes=2, preset="64 x 64, demo")
        result = {"prompts": prompts}
        for path in sorted((MODELS / "diffusion_models").glob("paged_*.safetensors")):
            result[path.stem] = of_network(core, path, prompts, latent)
        for path in sorted((MODELS / "text_encoders").glob("paged_*.safetensors")):
            result[path.stem] = of_text(core, path)
    torch.save(result, RESULT)


main()
