"""Files to networks: strict, without a second copy in memory, in the dtype and on the device asked for."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.configs import MoVQConfig, TextConfig, UNetConfig
from ..models.movq import MoVQ
from ..models.text_encoder import TextEncoder, TextProjection
from ..models.unets import UNETS
from ..ops.rounding import layers_to_round, round_weights, set_rounded
from .detection import NAMES, NULL_KEY, Kind, detect, places, split_tensors
from .folding import OWN, Parity, Target, fold, require_parity, use_winograd
from .packing import widened
from .pages import LetGo, keep_all
from .reading import Contents, read_contents, require_as_released
from .slices import FileSlice, RoundedSlice, slices_beside

# The projections of both releases under the names their files use; the first one found is the prompt's.
PROJECTION_NAMES = ("projections.t5", "projection_base", "projection")


@dataclass(frozen=True)
class Loaded:
    """A network and what its file holds besides.

    Attributes:
        kind: stage, family and configuration.
        network: in evaluation mode, without gradients; None for projections.
        null_embedding: ``[D]`` learned empty text, where the file has one.
        projection: from text encoder to context, where the file has one.
    """

    kind: Kind
    network: nn.Module | None
    null_embedding: Tensor | None
    projection: TextProjection | None


def build_network(kind: Kind, **options: Any) -> nn.Module:
    """Build the network of a kind; options are ``operations``, ``device`` and ``dtype`` of the constructors."""
    config = kind.config
    if isinstance(config, UNetConfig):
        return UNETS[config.stage](config, **options)
    if isinstance(config, MoVQConfig):
        return MoVQ(config, **options)
    if isinstance(config, TextConfig):
        return TextEncoder(config, **options)
    raise CheckpointError(f"expected a network, got {kind.title}: projections belong to a text encoder")


def bare_network(
    kind: Kind, *, target: Target = OWN, parity: Parity = "strict", is_folded: bool = False,
    packed: Collection[str] = (),
) -> nn.Module:  # fmt: skip
    """Build a network without weights in the form in which ``load_as_stored`` gives it.

    Args:
        kind: what it is.
        target: see ``load_as_stored``.
        parity: see ``load``.
        is_folded: whether the layers of its file are folded.
        packed: names of the weights that lie in 8 bit in its file.
    """
    network = build_network(kind, device="meta")
    if is_folded:
        fold(network, replace(target, is_portable=True))
    if packed:
        round_weights(network, packed)
    if parity == "fast" and not packed:
        use_winograd(network, target) if is_folded else fold(network, target)
    return network.requires_grad_(False)


def load(
    path: str | Path, *, stage: str | None = None, device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None, overrides: Mapping[str, Any] | None = None, parity: Parity = "strict",
) -> Loaded:  # fmt: skip
    """Load a weights file.

    Args:
        path: ``.pt``, safetensors, an index of shards, or a folder that holds one of these.
        stage: what the caller needs (see ``Kind.stage``); another one is an error.
        device: where the weights go.
        dtype: dtype of the weights; default as stored.
        overrides: configuration that shapes cannot tell, such as ``head_dim``.
        parity: "strict" keeps the layers, and the state-dict names, of the release; "fast" folds linear layer after
            linear layer, the same function up to rounding (``folding.fold``).

    Raises:
        CheckpointError: naming the file, what was expected, what was found and where to get the right one.
        InputError: for another parity.
    """
    contents = read_contents(path)
    kind = detect(contents, overrides)
    return load_contents(contents, kind, stage=stage, device=device, dtype=dtype, parity=parity)


def load_contents(
    contents: Contents, kind: Kind, *, stage: str | None = None, device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None, parity: Parity = "strict",
) -> Loaded:  # fmt: skip
    """Load an opened file whose kind is known; see ``load``. Weights in 8 bit are widened."""
    _require_parity(contents, parity)
    _require_stage(contents, kind, stage)
    network, tensors, extras = check_contents(contents, kind, is_as_released=False)
    if network is not None:
        wide = widened(tensors, contents.scales, dtype or torch.float32)
        wide = _unpacked(wide, contents, contents.packed.keys(), dtype)
        # Folding holds a layer twice: in main memory, so that the device never holds more than it keeps.
        fill(network, cast_tensors(wide, "cpu" if parity == "fast" else device, dtype))
        if parity == "fast":
            target = Target(torch.device(device), dtype)
            use_winograd(network, target) if contents.is_folded else fold(network, target)
            _move(network, device)
    null = extras.get(NULL_KEY)
    return Loaded(
        kind,
        network,
        None if null is None else null.reshape(-1).to(device=device, dtype=dtype or null.dtype),
        _projection(contents, extras, device, dtype),
    )


def _unpacked(
    tensors: dict[str, Tensor], contents: Contents, names: Collection[str], dtype: torch.dtype | None
) -> dict[str, Tensor]:  # fmt: skip
    """Return tensors with the named ones widened out of their blocks, one that has two names once."""
    made = {id(contents.tensors[name]): contents.packed[name].wide(dtype or torch.float32) for name in names}
    return {key: made.get(id(tensor), tensor) for key, tensor in tensors.items()}


def _require_parity(contents: Contents, parity: Parity) -> None:
    require_parity(parity)
    if parity == "strict" and contents.is_folded:
        require_as_released(contents, "a run of them as released, or training")


def fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network without weights its tensors, in the order in memory that folding gives them.

    Args:
        network: on the meta device, folded if its file is; buffers of folded layers are filled as well.
        tensors: all of them, by name and of any dtype.
    """
    network.requires_grad_(False)
    laid = dict(tensors)
    for name, like in (*network.named_parameters(), *network.named_buffers()):
        if not like.is_contiguous():
            values = torch.empty_strided(like.shape, like.stride(), dtype=laid[name].dtype, device=laid[name].device)
            laid[name] = values.copy_(laid[name])
    for name in tensors_of(network).keys() - network.state_dict().keys():
        layer, _, buffer = name.rpartition(".")
        setattr(network.get_submodule(layer), buffer, laid.pop(name))
    network.load_state_dict(laid, assign=True)
    network.eval()


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return what a file holds of a network; folded layers have buffers beside their parameters."""
    return {**dict(network.named_buffers()), **network.state_dict()}


def _move(network: nn.Module, device: str | torch.device) -> None:
    """Put weights on a device, one at a time and in their order in memory."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().to(device), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


def _require_stage(contents: Contents, kind: Kind, stage: str | None) -> None:
    if stage is not None and kind.stage != stage:
        raise CheckpointError(f"expected {NAMES[stage]} in '{contents.path}', got {kind.title}: take {places(stage)}")


def load_as_stored(
    contents: Contents, kind: Kind, *, target: Target, parity: Parity = "strict", done: LetGo = keep_all
) -> tuple[nn.Module, Callable[[Tensor], FileSlice | RoundedSlice | None]]:
    """Load an opened file whose weights stay in their file until they are put where the network will run.

    Args:
        contents: the opened file.
        kind: what it holds: a network.
        target: where and in which dtype the network will run, for what folding makes anew.
        parity: see ``load``.
        done: called with weights that folding has read, see ``pages.let_go_of``.

    Returns:
        The network, whose weights are mapped as stored or made by folding, and a function from one of its parameters
        to where that lies in a file; None for one that is made or changed, or lies in a file of another format. Layers
        in 8 bit stay so, with their scales beside them (``ops.rounding.round_weights``), and are not folded.
    """
    _require_parity(contents, parity)
    network, tensors, _ = check_contents(contents, kind, is_as_released=False)
    layers = layers_to_round(network) if contents.scales else {}
    packed = {name: layer for name, layer in layers.items() if f"{name}.weight" in contents.scales}
    # A stranger's file may have rounded more than passes through the buffers that widen.
    loose = {key: scale for key, scale in contents.scales.items() if key.removesuffix(".weight") not in packed}
    tensors = widened(tensors, loose, target.dtype or torch.float32)
    passing = {f"{name}.weight" for name in (layers_to_round(network) if contents.packed else ())}
    tensors = _unpacked(tensors, contents, contents.packed.keys() - passing, target.dtype)
    slices = slices_beside(contents.path)
    by_tensor = {
        id(tensor): None if name in contents.changed else slices.get(name) for name, tensor in contents.tensors.items()
    }
    fill(network, tensors)
    for name, layer in packed.items():
        set_rounded(layer, layer.weight.data, contents.scales[f"{name}.weight"])
    # The parameters are kept beside their places: the number of one that has died may be another's.
    known = {}
    for name, value in network.named_parameters():
        source = by_tensor.get(id(tensors[name]))
        if source is not None and value.dtype is torch.int8:
            source = RoundedSlice(source, contents.scales[name])
        known[id(value)] = value, contents.packed.get(name, source) if value.is_meta else source
    if parity == "fast" and not contents.scales:
        use_winograd(network, target) if contents.is_folded else fold(network, target, done=done)
    return network, lambda parameter: known.get(id(parameter), (None, None))[1]


def cast_tensors(
    tensors: Mapping[str, Tensor], device: str | torch.device, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Return tensors on a device in a dtype (None: as stored); one listed under two names stays one tensor."""
    moved: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in moved:
            moved[id(tensor)] = tensor.to(device=device, dtype=dtype or tensor.dtype)
    return {key: moved[id(tensor)] for key, tensor in tensors.items()}


def check_contents(
    contents: Contents, kind: Kind, *, is_as_released: bool = True
) -> tuple[nn.Module | None, dict[str, Tensor], dict[str, Tensor]]:
    """Return the network without weights, its tensors and the extras, all checked against the configuration.

    Args:
        contents: the opened file.
        kind: what it holds.
        is_as_released: refuse folded layers and weights in 8 bit; otherwise the network has the folded layers, and
            tensors may be ``int8`` whose scales are in ``contents.scales``.

    Raises:
        CheckpointError: if the network cannot be built, or a tensor is missing, extra or does not fit.
    """
    path = contents.path
    if is_as_released:
        require_as_released(contents, "this use")
    tensors, extras = split_tensors(contents)
    projection = _projection(contents, extras, "meta", None)
    if kind.stage == "projection":
        if projection is None:
            raise CheckpointError(
                f"expected text projections in '{path}', got only '{next(iter(extras))}' and the like: take "
                f"{kind.where}"
            )
        return None, tensors, extras
    try:
        network = bare_network(kind, is_folded=contents.is_folded)
    # Sizes that contradict each other make the layers raise anything.
    except Exception as error:
        raise CheckpointError(
            f"expected sizes of one network in '{path}', got {kind.title} that cannot be built ({error}): take "
            f"{kind.where}"
        ) from error
    check_tensors(path, kind, network, tensors, contents.scales.keys())
    strange = sorted(contents.scales.keys() - tensors.keys())
    if strange:
        raise CheckpointError(
            f"expected '{strange[0]}' in 16 or 32 bit in '{path}', got it in 8 bit: take the file that it was made from"
        )
    null = extras.get(NULL_KEY)
    width = getattr(kind.config, "context_dim", None)
    if null is not None and width is not None and (null.numel() != width or not null.is_floating_point()):
        raise CheckpointError(
            f"expected {width} floating values of {NULL_KEY} in '{path}', got {list(null.shape)} of {null.dtype}: take "
            f"{kind.where}"
        )
    return network, tensors, extras


def check_tensors(
    path: Path, kind: Kind, network: nn.Module, tensors: Mapping[str, Tensor], packed: Collection[str] = ()
) -> None:
    """Compare the tensors of a file with those the network of its configuration has; ``packed`` ones lie in 8 bit.

    Raises:
        CheckpointError: if one is missing, extra, of another shape, or not floating.
    """
    wanted = {key: tuple(value.shape) for key, value in tensors_of(network).items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys())
    wrong = sorted(key for key in wanted.keys() & found.keys() if wanted[key] != found[key])
    floating = wanted.keys() & found.keys() - set(packed)
    odd = sorted(key for key in floating if not tensors[key].is_floating_point())
    if not (missing or extra or wrong or odd):
        return
    details = [
        f"{len(names)} {word} ('{names[0]}')" for names, word in ((missing, "missing"), (extra, "unexpected")) if names
    ]
    if wrong:
        key = wrong[0]
        details.append(f"{len(wrong)} of another shape ('{key}' is {list(found[key])}, not {list(wanted[key])})")
    if odd:
        details.append(f"{len(odd)} that are not floating ('{odd[0]}' is {tensors[odd[0]].dtype})")
    raise CheckpointError(
        f"expected the {len(wanted)} tensors of {kind.title} in '{path}', got {', '.join(details)}: take {kind.where}"
    )


def load_projection(
    contents: Contents, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> TextProjection | None:
    """Return the text projection of a file, or None if it has none; nothing else is read.

    Args:
        contents: the opened file.
        device: where it goes.
        dtype: of its weights; default as stored.

    Raises:
        CheckpointError: if the projection is incomplete.
    """
    return _projection(contents, split_tensors(contents)[1], device, dtype)


def _projection(
    contents: Contents, extras: Mapping[str, Tensor], device: str | torch.device, dtype: torch.dtype | None
) -> TextProjection | None:
    for name in PROJECTION_NAMES:
        parts = {key.removeprefix(f"{name}."): tensor for key, tensor in extras.items() if key.startswith(f"{name}.")}
        if not parts:
            continue
        try:
            outputs, inputs = parts["0.weight"].shape
            projection = TextProjection(inputs, outputs, device="meta")
            moved = {k: v.to(device=device, dtype=dtype or v.dtype) for k, v in parts.items()}
            projection.load_state_dict(moved, assign=True)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"expected a Linear and a LayerNorm under '{name}' in '{contents.path}', got {sorted(parts)}: download "
                "the file again"
            ) from error
        return projection.eval().requires_grad_(False)
    return None
