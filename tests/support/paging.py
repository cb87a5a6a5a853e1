"""Core in a process of its own with its paging patcher switched on, as it is on NVIDIA.

Lazy layers, taking over the file's tensors, sampling and decoding then run on the CPU; paging itself does not.
"""

import asyncio
import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch


def start(pack: str, base: Path) -> dict:
    """Start core with the pack at ``base``, a folder that is not there yet; returns node classes by name."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True)
    sys.argv = ["core", "--cpu", "--base-directory", str(base), "--disable-api-nodes"]
    control = importlib.import_module("comfy_aimdo.control")
    if not control.init("cuda"):
        raise SystemExit("comfy_aimdo could not be initialised")
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("comfy.memory_management").aimdo_enabled = True
    patchers = importlib.import_module("comfy.model_patcher")

    def load(patcher: object, *args: object, **kwargs: object) -> None:
        # Core's pager adds patches of larger layers as it brings them, which on a CPU it does not.
        patchers.ModelPatcherDynamic.load(patcher, *args, **kwargs)
        for module in patcher.model.modules():
            for name in ("weight", "bias"):
                patch = getattr(module, f"{name}_lowvram_function", None)
                if patch is not None:
                    getattr(module, f"{name}_function").append(patch)

    changes = {
        "load": load,
        # On a CPU device core's class would return its plain sibling.
        "__new__": lambda cls, *_, **__: object.__new__(cls),
        # Core's frees the pager's own memory first, of which a CPU has none, and refuses one.
        "partially_unload": give_back,
    }
    patchers.CoreModelPatcher = type("Paging", (patchers.ModelPatcherDynamic,), changes)
    importlib.import_module("utils.install_util")
    nodes = importlib.import_module("nodes")
    importlib.import_module("server").PromptServer.instance = SimpleNamespace(
        node_replace_manager=SimpleNamespace(register=lambda *_: None),
        send_progress_text=lambda *_: None, send_sync=lambda *_, **__: None,
        client_id=None, last_node_id=None, last_prompt_id=None,
    )  # fmt: skip
    asyncio.run(nodes.load_custom_node(pack))
    return nodes.NODE_CLASS_MAPPINGS


def give_back(patcher: object, *_: object, **__: object) -> int:
    """Put the file's tensors back in the place of what was loaded; returns the bytes that this frees."""
    if hasattr(patcher, "restore_loaded_backups"):
        return patcher.restore_loaded_backups()
    # Core 0.18 has it inside of what refuses a CPU.
    utils, model = importlib.import_module("comfy.utils"), patcher.model
    while patcher.backup:
        key, kept = patcher.backup.popitem()
        utils.set_attr_param(model, key, kept.weight)
    while patcher.backup_buffers:
        utils.set_attr_buffer(model, *patcher.backup_buffers.popitem())
    freed, model.model_loaded_weight_memory = model.model_loaded_weight_memory, 0
    return freed


def run(classes: dict, node: str, **inputs: object) -> tuple:
    """Run one of our nodes."""
    return classes[node].PREPARE_CLASS_CLONE({}).execute(**inputs).args


def stored(parameter: torch.Tensor) -> torch.Tensor:
    """Return what core's pager reads of a parameter: of a quantised one, its stored values."""
    return getattr(parameter, "_qdata", parameter)


def slice_of(parameter: torch.Tensor) -> tuple | None:
    """Return where core's pager finds a parameter in its file again, None if it does not."""
    return getattr(stored(parameter).untyped_storage(), "_comfy_tensor_file_slice", None)
