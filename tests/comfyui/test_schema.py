"""The nodes as the real core publishes them: equal to the recorded file, on core names that exist."""

import ast
import json
import operator
import os
from pathlib import Path

import pytest
from support import workflows
from support.core_server import PACK, CoreServer

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "tests" / "golden" / "object_info.json").read_text())
# Widgets whose options are the files of a folder: they differ from machine to machine.
FILE_WIDGETS = {"model_name", "text_encoder_name", "projection_name", "vae_name"}
# Every name of core that the pack uses, so that a core without one is told apart from a fault of ours.
SURFACE = {
    "comfy.conds": ["CONDRegular"],
    "comfy.latent_formats": ["LatentFormat"],
    "comfy.ldm.modules.attention": ["optimized_attention"],
    "comfy.model_base": ["BaseModel", "ModelType"],
    "comfy.model_management": [
        "dtype_size", "get_torch_device", "intermediate_device", "load_models_gpu",
        "throw_exception_if_processing_interrupted", "unet_dtype", "unet_manual_cast", "unet_offload_device",
        "vae_device", "vae_offload_device",
    ],
    "comfy.model_patcher": ["CoreModelPatcher"],
    "comfy.model_sampling": ["EPS", "ModelSamplingDiscrete"],
    "comfy.ops": ["manual_cast", "mixed_precision_ops"],
    "comfy.patcher_extension": [
        "CallbacksMP", "CallbacksMP.ON_CLEANUP", "CallbacksMP.ON_DETACH", "CallbacksMP.ON_LOAD", "WrappersMP",
        "WrappersMP.APPLY_MODEL", "WrappersMP.CALC_COND_BATCH", "WrappersMP.DIFFUSION_MODEL",
        "WrappersMP.PREDICT_NOISE", "WrappersMP.PREPARE_SAMPLING", "WrappersMP.SAMPLER_SAMPLE", "WrapperExecutor",
        "WrapperExecutor.new_class_executor", "get_all_wrappers",
    ],
    "comfy.quant_ops": ["QUANT_ALGOS", "QuantizedTensor"],
    "comfy.sample": ["fix_empty_latent_channels"],
    "comfy.samplers": ["CFGGuider", "KSAMPLER", "calc_cond_batch"],
    "comfy.sd": ["CLIP", "VAE"],
    "comfy.supported_models_base": ["BASE", "ClipTarget"],
    "comfy.utils": [
        "ProgressBar", "convert_old_quants", "detect_layer_quantization", "load_torch_file", "set_attr_param",
    ],
    "folder_paths": ["add_model_folder_path", "get_filename_list", "get_full_path_or_raise"],
    "latent_preview": ["prepare_callback"],
    "comfy_execution.utils": ["get_executing_context"],
    "comfy_api.v0_0_2": ["ComfyExtension", "io", "ui"],
}  # fmt: skip


def without_files(node):
    node = json.loads(json.dumps(node))
    for inputs in node["input"].values():
        for name, spec in inputs.items():
            if name in FILE_WIDGETS:
                spec[1].pop("options", None)
    node.pop("python_module")
    return node


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    with CoreServer(os.environ["COMFYUI_PATH"], tmp_path_factory.mktemp("schema")) as server:
        templates = server.get("/workflow_templates")
        return server.info, templates, server.log_text()


def test_published_nodes_equal_the_recorded_ones(published):
    ours = {name: without_files(node) for name, node in published[0].items() if name.startswith("FusionFrames")}
    recorded = {name: without_files(node) for name, node in RECORDED.items() if name.startswith("FusionFrames")}
    # Newer cores publish more about every node, and it was with one of them that this was recorded.
    known = {field for node in ours.values() for field in node}
    assert known >= {"input", "output", "display_name", "description", "search_aliases"}
    assert ours == {name: {k: v for k, v in node.items() if k in known} for name, node in recorded.items()}


def test_demo_files_are_offered_without_any_copying(published):
    options = published[0]["FusionFramesLoadModel"]["input"]["required"]["model_name"][1]["options"]
    assert options == ["fusionframes_demo_interpolation.safetensors", "fusionframes_demo_keyframes.safetensors"]


def test_templates_list_every_workflow(published):
    assert sorted(published[1][PACK]) == workflows.NAMES


def test_core_logs_no_trouble_with_the_pack(published):
    about = [line for line in published[2].splitlines() if PACK in line.lower()]
    assert about, "core does not mention the pack"
    assert not [line for line in about if "failed" in line.lower() or "error" in line.lower()]
    assert "comfy_entrypoint" not in published[2]


def test_core_has_every_name_we_use(core):
    import importlib

    missing = []
    for module, names in SURFACE.items():
        for name in names:
            try:
                operator.attrgetter(name)(importlib.import_module(module))
            except AttributeError:
                missing.append(f"{module}.{name}")
    assert not missing


def test_surface_lists_every_core_name_of_the_compat_file():
    used = set()
    for name in ("_compat.py", "_api.py"):
        tree = ast.parse((ROOT / "nodes" / name).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                used.add(ast.unparse(node))
            elif isinstance(node, ast.ImportFrom) and node.module == "comfy_api.v0_0_2":
                used |= {f"{node.module}.{alias.name}" for alias in node.names}
    core = {name for name in used if name.split(".")[0] in ("comfy", "comfy_api", "folder_paths", "latent_preview")}
    listed = {f"{module}.{name}" for module, names in SURFACE.items() for name in names}
    modules = set(SURFACE)
    assert {name for name in core if name not in modules and name.count(".") > 0} <= listed | modules
