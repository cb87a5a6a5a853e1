"""The real core in this process; set COMFYUI_PATH to its folder and run in an environment with its requirements."""

import asyncio
import importlib
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
CORE = os.environ.get("COMFYUI_PATH")
DEMO = {
    "model": "fusionframes_demo_keyframes.safetensors",
    "interpolation": "fusionframes_demo_interpolation.safetensors",
    "text": "fusionframes_demo_text_encoder.safetensors",
    "vae": "fusionframes_demo_movq.safetensors",
}


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if not CORE:
                item.add_marker(pytest.mark.skip(reason="needs ComfyUI: set COMFYUI_PATH to its folder"))


class Core:
    """Core's modules and our nodes inside it."""

    def __init__(self, base: Path):
        self.base = base
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (base / name).mkdir(parents=True)
        sys.path.insert(0, CORE)
        sys.argv = ["core", "--cpu", "--base-directory", str(base), "--disable-api-nodes"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import comfy.options

            comfy.options.enable_args_parsing()
            importlib.import_module("utils.install_util")
            self.nodes = importlib.import_module("nodes")
            server = importlib.import_module("server")
            server.PromptServer.instance = SimpleNamespace(
                node_replace_manager=SimpleNamespace(register=lambda *_: None),
                send_progress_text=lambda *_: None,
                client_id=None,
                last_node_id=None,
                last_prompt_id=None,
                send_sync=lambda *_, **__: None,
            )
            if not asyncio.run(self.nodes.load_custom_node(str(ROOT))):
                raise RuntimeError("core could not load the pack")
        self.folder_paths = importlib.import_module("folder_paths")
        self.pack = sys.modules[
            self.nodes.NODE_CLASS_MAPPINGS["FusionFramesLoadModel"].__module__.rsplit(".nodes", 1)[0]
        ]

    def module(self, name: str):
        """Module of the pack under the name core gave it."""
        return importlib.import_module(f"{self.pack.__name__}.{name}")

    def extra(self, name: str, class_name: str):
        """Class of core's extra nodes."""
        return getattr(importlib.import_module(f"comfy_extras.{name}"), class_name)

    def run(self, node: str, **inputs):
        """Run one of our nodes as core does: on a locked clone, missing optional inputs left out."""
        cls = self.nodes.NODE_CLASS_MAPPINGS[node]
        schema = cls.GET_SCHEMA()
        for item in schema.inputs:
            default = getattr(item, "default", None)
            if item.id not in inputs and default is not None:
                inputs[item.id] = default
        clone = cls.PREPARE_CLASS_CLONE({})
        return clone.execute(**inputs).args

    def load_demo(self):
        """Load the demo's files by our loaders."""
        text = {"text_encoder_name": DEMO["text"], "projection_name": DEMO["model"]}
        with torch.inference_mode():
            return SimpleNamespace(
                model=self.run("FusionFramesLoadModel", model_name=DEMO["model"])[0],
                interpolation=self.run("FusionFramesLoadModel", model_name=DEMO["interpolation"])[0],
                clip=self.run("FusionFramesLoadTextEncoder", **text)[0],
                vae=self.run("FusionFramesLoadMoVQ", vae_name=DEMO["vae"])[0],
            )


@pytest.fixture(scope="session")
def core(tmp_path_factory):
    return Core(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="session")
def demo(core):
    return core.load_demo()


@pytest.fixture(scope="session")
def prompts(core, demo):
    return core.run("FusionFramesTextEncode", clip=demo.clip, prompt="a large red circle moves up", negative_prompt="")


@pytest.fixture
def latent(core, demo):
    return core.run("FusionFramesEmptyLatent", width=64, height=64, keyframes=5, vae=demo.vae)[0]
