"""The demo in a process of its own with core's paging patcher switched on; arguments: pack, base, result."""

import importlib
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
paging = importlib.import_module("support.paging")
PACK, BASE, RESULT = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
KEYFRAMES = "fusionframes_demo_keyframes.safetensors"
GAPS = "fusionframes_demo_interpolation.safetensors"


def decode_narrow(classes: dict, vae: object, video: dict) -> torch.Tensor:
    """Decode in a copy in bfloat16, which pages as well."""
    node = classes["FusionFramesMoVQDecode"]
    package = node.__module__.rsplit(".", 1)[0]
    importlib.import_module(f"{package}.adapters.narrow").quick_dtypes = lambda device: (torch.bfloat16,)
    marked = {**video, "fusionframes_narrow_decoder": True}
    return node.PREPARE_CLASS_CLONE({}).execute(vae=vae, latent=marked).args[0]


def main() -> None:
    classes = paging.start(PACK, BASE)
    run = partial(paging.run, classes)
    with torch.inference_mode():
        (model,) = run("FusionFramesLoadModel", model_name=KEYFRAMES)
        (gaps,) = run("FusionFramesLoadModel", model_name=GAPS)
        (clip,) = run(
            "FusionFramesLoadTextEncoder", projection_name=KEYFRAMES,
            text_encoder_name="fusionframes_demo_text_encoder.safetensors",
        )  # fmt: skip
        (vae,) = run("FusionFramesLoadMoVQ", vae_name="fusionframes_demo_movq.safetensors")
        # Core's pager reads again from the file what carries a slice of it. Folded layers are made, and cannot; small
        # ones are read at once when a model is loaded, here a text encoder as it is opened, and lie aside as they were.
        networks = [
            network for part in (model.model, gaps.model) for network in (part.diffusion_model, part.conditioner)
        ]
        parameters = [pair for network in networks for pair in network.named_parameters()]
        aside = {name: kept.weight for name, kept in clip.patcher.backup.items()}
        parameters += [*{**dict(clip.cond_stage_model.named_parameters()), **aside}.items()]
        unpaged = [name for name, value in parameters if paging.slice_of(value) is None]
        assert len(parameters) > 900
        positive, negative = run("FusionFramesTextEncode", clip=clip, prompt="a large red circle", negative_prompt="")
        (latent,) = run("FusionFramesEmptyLatent", width=64, height=64, keyframes=5, preset="64 x 64, demo")
        (keyframes,) = run(
            "FusionFramesKeyframeSampler", model=model, positive=positive, negative=negative, latent=latent, seed=7,
            steps=4, guidance_scale=2.0,
        )  # fmt: skip
        video, _ = run(
            "FusionFramesInterpolate", model=gaps, latent=keyframes, seed=7, steps=3, guidance_scale=0.25, passes=1,
            fps=2.0,
        )  # fmt: skip
        (frames,) = run("FusionFramesMoVQDecode", vae=vae, latent=video)
        narrow = decode_narrow(classes, vae, video)
        (other,) = classes["KSampler"]().sample(model, 1, 3, 3.0, "euler", "normal", positive, negative, latent, 1.0)
        parts = [run("FusionFramesLoadModel", model_name=name, layers="folded")[0] for name in (KEYFRAMES, GAPS)]
        (again,) = run(
            "FusionFramesKeyframeSampler", model=parts[0], positive=positive, negative=negative, latent=latent, seed=7,
            steps=4, guidance_scale=2.0,
        )  # fmt: skip
        again, _ = run(
            "FusionFramesInterpolate", model=parts[1], latent=again, seed=7, steps=3, guidance_scale=0.25, passes=1,
            fps=2.0,
        )  # fmt: skip
        (folded,) = run("FusionFramesMoVQDecode", vae=vae, latent=again)
    dynamic = [part.is_dynamic() for part in (model, gaps, clip.patcher, vae.patcher, vae.narrow.patcher, *parts)]
    result = {"frames": frames, "ksampler": other["samples"], "folded": folded, "narrow": narrow}
    torch.save({**result, "dynamic": dynamic, "unpaged": unpaged}, RESULT)


main()
