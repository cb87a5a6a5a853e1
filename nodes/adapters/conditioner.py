"""What only ``prepare`` reads, a third of a U-Net, in a patcher of its own that core may evict while a run steps.

The modules leave the U-Net's tree and stay its plain attributes: the network finds them, the U-Net's patcher does not.
Their names in a state dict stay those of the release, for LoRA, merging and saving.
"""

from typing import Any

from torch import Tensor, nn

from ...ff_kernels.models.unet import UNet
from .._compat import archive_dtypes, is_dynamic, make_patcher, mm, unload
from .folded import make_whole_patcher, refuse_patched

KEY = "fusionframes_conditioner"


class Conditioner(nn.Module):
    """The modules of a U-Net that only ``prepare`` runs, under the names they have in it."""

    def __init__(self, unet: UNet, is_folded: bool = False) -> None:
        super().__init__()
        self.diffusion_model, self.is_folded = nn.Module(), is_folded
        self.names: list[str] = []
        # What lies under patches, for every patcher there will be: core may clone a MODEL without its conditioner's.
        self.backup: dict[str, Any] = {}
        moved = {id(module) for module in unet.conditioner_modules()}
        for name, module in list(unet.named_modules()):
            if id(module) in moved:
                self._take(unet, name, module)
        archive_dtypes(self)

    def _take(self, unet: UNet, name: str, module: nn.Module) -> None:
        *path, last = name.split(".")
        here, there = self.diffusion_model, unet
        for part in path:
            if part not in here._modules:
                here.add_module(part, nn.Module())
            here, there = here._modules[part], there._modules[part]
        here.add_module(last, module)
        del there._modules[last]
        # Not registered again, but still found by the code that calls it.
        there.__dict__[last] = module
        self.names.append(f"{name}.")

    def part_tensors(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Part the tensors of a file into the conditioner's and the rest."""
        prefixes = tuple(self.names)
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}
        return own, {name: tensor for name, tensor in tensors.items() if name not in own}


def conditioner_of(patcher: Any) -> Any:
    """Return the patcher of a MODEL's conditioner, with the MODEL's patches (LoRA) on it.

    Core clones a patcher whenever something is added to it, and may put another copy of the model under a clone, so
    this is asked anew before every run.
    """
    conditioner = patcher.model.conditioner
    own = next((other for other in patcher.get_additional_models_with_key(KEY) if other.model is conditioner), None)
    if own is None:
        make = make_whole_patcher if conditioner.is_folded else make_patcher
        own = make(conditioner, patcher.load_device, patcher.offload_device)
        own.backup = conditioner.backup
        patcher.set_additional_models(KEY, [own])
    if own.patches_uuid != patcher.patches_uuid:
        names = conditioner.state_dict()
        own.patches = {name: list(patches) for name, patches in patcher.patches.items() if name in names}
        # Another dtype to compute in is asked of the MODEL alone, and is its conditioner's as well.
        own.force_cast_weights = patcher.force_cast_weights
        own.patches_uuid = patcher.patches_uuid
    return own


def unload_patched(patcher: Any) -> None:
    """Unload a MODEL's conditioner if it carries patches; to be called after every run.

    Core merges by asking a MODEL for its weights, and the MODEL does not know what its conditioner put under patches.
    """
    own = conditioner_of(patcher)
    if own.patches or own.force_cast_weights:
        unload(own)


def unpatch_other(patcher: Any, *_: Any) -> None:
    """Take another clone's conditioner off where the MODEL patches it; a callback for core's loading of the MODEL.

    Core saves what a loaded layer holds as it is, and adds patches only to layers that are not loaded.
    """
    own = conditioner_of(patcher)
    if own.patches and own.model.current_weight_patches_uuid not in (None, own.patches_uuid) and not is_dynamic(own):
        own.unpatch_model(own.offload_device)


class LoadedToPrepare:
    """Context manager that has core load a MODEL and its conditioner, and afterwards make room for the steps.

    Args:
        patcher: the MODEL.
        memory_required: bytes that a step needs besides weights.
    """

    def __init__(self, patcher: Any, memory_required: float) -> None:
        self.patcher, self.memory_required = patcher, memory_required

    def __enter__(self) -> None:
        """Load both."""
        refuse_patched(self.patcher)
        try:
            mm.load_models_gpu([self.patcher, conditioner_of(self.patcher)], memory_required=self.memory_required)
        except BaseException:
            unload_patched(self.patcher)
            raise

    def __exit__(self, kind: Any, *error: object) -> None:
        """Ask for the MODEL alone: where memory is short, core evicts the conditioner for it."""
        unload_patched(self.patcher)
        if kind is None:
            mm.load_models_gpu([self.patcher], memory_required=self.memory_required)


def with_conditioner(executor: Any, patcher: Any, *args: Any, **kwargs: Any) -> Any:
    """Bring the conditioner's patches up to date before core loads models; a wrapper around ``prepare_sampling``."""
    conditioner_of(patcher)
    try:
        return executor(patcher, *args, **kwargs)
    except BaseException:
        # Core's own clean-up begins after this.
        unload_patched(patcher)
        raise
