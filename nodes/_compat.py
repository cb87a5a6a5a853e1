"""The only import of ComfyUI's internals; what differs between core versions is settled here."""

import inspect
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.patcher_extension
import comfy.quant_ops
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import comfy_execution.utils
import folder_paths
import latent_preview
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ..ff_kernels.checkpoints.reading import SUFFIXES

CONDRegular = comfy.conds.CONDRegular
LatentFormat = comfy.latent_formats.LatentFormat
BaseModel = comfy.model_base.BaseModel
ModelType = comfy.model_base.ModelType
EPS = comfy.model_sampling.EPS
ModelSamplingDiscrete = comfy.model_sampling.ModelSamplingDiscrete
SupportedModel = comfy.supported_models_base.BASE
ClipTarget = comfy.supported_models_base.ClipTarget
CFGGuider = comfy.samplers.CFGGuider
KSAMPLER = comfy.samplers.KSAMPLER
CoreCLIP = comfy.sd.CLIP
CoreVAE = comfy.sd.VAE
calc_cond_batch = comfy.samplers.calc_cond_batch
mm = comfy.model_management
manual_cast = comfy.ops.manual_cast
ON_CLEANUP = comfy.patcher_extension.CallbacksMP.ON_CLEANUP
ON_DETACH = comfy.patcher_extension.CallbacksMP.ON_DETACH
ON_LOAD = comfy.patcher_extension.CallbacksMP.ON_LOAD
PREPARE_SAMPLING = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
SAMPLER_SAMPLE = comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE
DIFFUSION_MODEL = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
PREDICT_NOISE = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
APPLY_MODEL = comfy.patcher_extension.WrappersMP.APPLY_MODEL
CALC_COND_BATCH = comfy.patcher_extension.WrappersMP.CALC_COND_BATCH

DTYPES = {"default": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_patcher(module: nn.Module, load_device: Any, offload_device: Any) -> Any:
    """Wrap a module for core's memory management.

    The class is looked up when needed: core points the name at its dynamic patcher during start-up.
    """
    return comfy.model_patcher.CoreModelPatcher(module, load_device=load_device, offload_device=offload_device)


def unload(patcher: Any) -> None:
    """Unload a model, whichever clone of its patcher loaded it, and nothing else."""
    # Core's own function for it is younger than the oldest core we run in, and knows one device only.
    keep = [entry for entry in mm.current_loaded_models if entry.model is None or not patcher.is_clone(entry.model)]
    mm.free_memory(1e30, patcher.load_device, keep)


def is_dynamic(patcher: Any) -> bool:
    """Return whether core pages this patcher's weights by itself (0.16 on)."""
    return bool(getattr(patcher, "is_dynamic", lambda: False)())


def load_weights(patcher: Any, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fill a patched module strictly; a dynamic patcher takes the file's tensors over instead of copying them.

    Raises:
        RuntimeError: if the names differ, which the loader has ruled out before.
    """
    result = module.load_state_dict(tensors, strict=False, assign=is_dynamic(patcher))
    if result.missing_keys or result.unexpected_keys:
        raise RuntimeError(f"weights do not fit the network: {result.missing_keys[:3]}, {result.unexpected_keys[:3]}")
    if is_dynamic(patcher):
        put_back(module, tensors)


def put_back(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a module the file's own tensors again where core's layers for quantised weights have cast plain ones.

    Core's pager finds them in the file, and casts them when they are used as it does with those of other layers.
    """
    for name, parameter in list(module.named_parameters()):
        filed = tensors.get(name)
        is_plain = filed is not None and not isinstance(parameter, comfy.quant_ops.QuantizedTensor)
        if is_plain and parameter.dtype != filed.dtype:
            comfy.utils.set_attr_param(module, name, filed)


def archive_dtypes(module: nn.Module) -> None:
    """Let core remember the dtypes a module was built with, where it does (0.26 on)."""
    archive = getattr(mm, "archive_model_dtypes", None)
    if archive is not None:
        archive(module)


def set_inference_dtype(config: Any, dtype: torch.dtype, cast: torch.dtype | None, device: Any) -> None:
    """Tell a model configuration its dtypes; newer cores also want the device."""
    takes_device = "device" in inspect.signature(config.set_inference_dtype).parameters
    config.set_inference_dtype(dtype, cast, **({"device": device} if takes_device else {}))


def set_factory(patcher: Any, factory: Callable[..., Any], *args: Any) -> None:
    """Tell a patcher how to be made again, which core needs for hooks on dynamic patchers (0.16 on)."""
    patcher.cached_patcher_init = (factory, args)


def pick_unet_dtypes(
    chosen: torch.dtype | None, parameters: int, stored: torch.dtype | None
) -> tuple[torch.dtype, torch.dtype | None]:
    """Return the dtype of the weights and the one to compute in, None if they are the same.

    Args:
        chosen: by the user, None for core's choice.
        parameters: number of weights.
        stored: dtype of the file; None for a quantised one, where the dtype to compute in is always told.
    """
    device = mm.get_torch_device()
    supported = [torch.float16, torch.bfloat16, torch.float32]
    weights = chosen or mm.unet_dtype(
        device=device, model_params=parameters, supported_dtypes=supported, weight_dtype=stored
    )
    if stored is None:
        return weights, chosen or mm.unet_manual_cast(None, device, supported)
    return weights, mm.unet_manual_cast(weights, device, supported)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors and metadata by core's own reader.

    Its pager finds such tensors again in the file. Every quantised layer has a marker, however the file spells it.
    """
    # The reader of core's pager does not know the dtype in which core saves the scales of mxfp8.
    known, scales = getattr(comfy.utils, "_TYPES", None), getattr(torch, "float8_e8m0fnu", None)
    if known is not None and scales is not None:
        known.setdefault("F8_E8M0", scales)
    tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    prefix = next((name.removesuffix("scaled_fp8") for name in tensors if name.endswith("scaled_fp8")), "")
    tensors, metadata = comfy.utils.convert_old_quants(tensors, prefix, metadata)
    return tensors, metadata or {}


def quantisation_of(tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """Return what core's model configurations are told of quantised tensors, None where there are none."""
    return comfy.utils.detect_layer_quantization(tensors, "")


def quantised_formats() -> dict[str, torch.dtype]:
    """Return the formats of quantised weights that this core knows, and the dtype each is stored in."""
    formats = comfy.quant_ops.QUANT_ALGOS
    return {name: entry["storage_t"] for name, entry in formats.items()}


def mixed_operations(dtype: torch.dtype) -> Any:
    """Return core's layers that take quantised weights and compute with them widened to ``dtype``."""
    return comfy.ops.mixed_precision_ops({"mixed_ops": True}, dtype, full_precision_mm=True)


@cache
def keeps_quantised(kind: str, name: str) -> bool:
    """Return whether core's layers of a kind, ``Linear`` or ``Embedding``, keep weights of a format."""
    if kind != "Embedding" or name not in quantised_formats():
        return kind == "Linear" and name in quantised_formats()
    # Which tables are kept differs between cores, and is nowhere listed.
    table = mixed_operations(torch.float32).Embedding(1, 32, device="cpu", dtype=torch.float32)
    weight = torch.zeros(1, 32).to(quantised_formats()[name])
    marker = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
    try:
        table.load_state_dict({"weight": weight, "weight_scale": torch.ones(()), "comfy_quant": marker}, strict=False)
    except RuntimeError:
        return False
    return isinstance(table.weight, comfy.quant_ops.QuantizedTensor)


def dequantised(parts: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return a quantised weight ``[N, K]`` widened by core; ``parts`` are its tensors by the end of their names."""
    layer = mixed_operations(dtype).Linear(shape[1], shape[0], bias=False, device="cpu", dtype=dtype)
    layer.load_state_dict(parts, strict=False)
    return layer.weight.dequantize()


def file_names(folder: str) -> list[str]:
    """List the weights of a model folder."""
    return [name for name in folder_paths.get_filename_list(folder) if Path(name).suffix.lower() in SUFFIXES]


def file_path(folder: str, name: str) -> Path:
    """Return where a listed file is."""
    return Path(folder_paths.get_full_path_or_raise(folder, name))


def register_folder(key: str, folder: Path) -> None:
    """Add a folder to one of core's model folders, after the user's own; nothing is ever written to it."""
    folder_paths.add_model_folder_path(key, str(folder))


def check_interrupted() -> None:
    """Raise core's interruption if the user pressed cancel."""
    mm.throw_exception_if_processing_interrupted()


def progress_bar(total: int) -> Any:
    """Return core's progress bar of the running node."""
    return comfy.utils.ProgressBar(total)


def preview_callback(model: Any, steps: int) -> Callable[[int, Tensor, Tensor, int], None]:
    """Return core's callback for sampling steps: progress and, if switched on, a preview of the estimate."""
    return latent_preview.prepare_callback(model, steps)


def resize_empty(model: Any, latent: dict[str, Any]) -> Tensor:
    """Fit an all-zero latent to a model's channels and pixel factor, as core's own samplers do."""
    names = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    ratios = {"downscale_ratio_spacial": latent.get("downscale_ratio_spacial")}
    return comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], **{key: value for key, value in ratios.items() if key in names}
    )


def encode_projected(clip: Any, tokens: Any) -> Tensor | None:
    """Return the pooled text ``[1, D]`` of a CLIP after its projection, None where it has none.

    As ``CLIP.encode_from_tokens``, which leaves the projection out for the encoders whose image models do not read it.
    """
    model = clip.cond_stage_model
    model.reset_clip_options()
    try:
        model.set_clip_options({"projected_pooled": True})
        clip.load_model(tokens)
        model.set_clip_options({"execution_device": clip.patcher.load_device})
        return model.encode_token_weights(tokens)[1]
    finally:
        model.reset_clip_options()


def run_wrapped(
    function: Callable[..., Any], owner: Any, kind: str, transformer_options: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """Run a function through the wrappers of a kind that core's nodes hung on a run."""
    wrappers = comfy.patcher_extension.get_all_wrappers(kind, transformer_options)
    if not wrappers:
        return function(*args, **kwargs)
    executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(function, owner, wrappers)
    return executor.execute(*args, **kwargs)


def run_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, **options: Any) -> Tensor:
    """Run the attention that core or a node of it has chosen."""
    return optimized_attention(query, key, value, heads, **options)


@contextmanager
def quiet(words: str) -> Iterator[None]:
    """Keep a line that holds ``words`` out of core's log."""

    def passes(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(passes)
    try:
        yield
    finally:
        root.removeFilter(passes)


def warn(text: str) -> None:
    """Say something on the node that runs, and in core's log."""
    logging.warning(text)
    context = comfy_execution.utils.get_executing_context()
    show_text(None if context is None else context.node_id, text)


def show_text(node_id: str | None, text: str) -> None:
    """Show a line of text on a node while it runs, where a server is there to show it."""
    import server

    instance = getattr(server.PromptServer, "instance", None)
    send = getattr(instance, "send_progress_text", None)
    if send is not None and node_id is not None:
        send(text, node_id)
