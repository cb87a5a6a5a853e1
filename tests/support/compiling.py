"""Compile the kernels for cards that are not here and say, a line of JSON each, what the compilers made of them.

Run as a program, without Triton's interpreter: ``python compiling.py '[["sm_89", "float16", true]]'`` with a card, a
dtype and whether every variant is wanted, in place of one of each kernel.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fusionframes.ff_kernels.ops.triton import attention, linear, norm, step

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
# Waves of 64 threads on AMD's cards for data centres, of 32 elsewhere.
WAVES_OF_64 = ("gfx90a", "gfx942")
WIDE_NVIDIA = re.compile(r"ld\.global[.\w:]*\.v4\.b32|ld\.global[.\w:]*\.v2\.b64|cp\.async\.cg|cp\.async\.bulk")
WIDE_AMD = re.compile(r"(?:global|buffer)_load_(?:dwordx4|b128)")
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def target_of(card: str) -> GPUTarget:
    """Return what Triton compiles for."""
    if card.startswith("gfx"):
        return GPUTarget("hip", card, 64 if card in WAVES_OF_64 else 32)
    return GPUTarget("cuda", int(card.removeprefix("sm_")), 32)


def nvidia_spills(assembly: dict[str, Any]) -> int:
    """Return the bytes that a thread keeps in memory for want of registers."""
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "k.cubin"), Path(folder, "k.ptx")
        cubin.write_bytes(assembly["cubin"])
        usage = _told([NVIDIA_TOOLS / "cuobjdump", "-res-usage", cubin])
        if int(re.search(r"STACK:(\d+)", usage)[1]) == 0:
            return 0
        # Not all of a stack is spilled registers.
        ptx.write_text(assembly["ptx"])
        name = re.search(r"\.target (\w+)", assembly["ptx"])[1]
        ptxas = "ptxas-blackwell" if int(re.search(r"\d+", name)[0]) >= 100 else "ptxas"
        verdict = _told([NVIDIA_TOOLS / ptxas, "-v", f"--gpu-name={name}", ptx, "-o", cubin])
        return int(re.search(r"(\d+) bytes spill stores", verdict)[1])


def _told(command: list[Any]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def amd_spills(text: str) -> int:
    """Return the registers of a thread that lie in memory."""
    return sum(int(re.search(rf"\.{kind}_spill_count:?\s+(\d+)", text)[1]) for kind in ("vgpr", "sgpr"))


class Compiler:
    """Stands where kernels are launched, and compiles them instead."""

    def __init__(self, card: str, is_thorough: bool) -> None:
        self.card, self.is_thorough, self.seen = card, is_thorough, set()

    def __call__(
        self, kernel: Any, programs: int, *args: Any, num_warps: int = 4, num_stages: int = 3,
        enable_fp_fusion: bool = True, **constants: Any,
    ) -> None:  # fmt: skip
        """Compile a kernel as its launch would."""
        signature, known, hints = {}, {}, {}
        for i, (name, value) in enumerate(zip(kernel.arg_names, [*args, *[None] * len(constants)], strict=True)):
            if name in constants:
                signature[name], known[i,] = "constexpr", constants[name]
            elif isinstance(value, int) and value == 1:
                signature[name], known[i,] = "constexpr", 1
            else:
                is_tensor = isinstance(value, torch.Tensor)
                signature[name] = POINTERS[value.dtype] if is_tensor else "i32" if isinstance(value, int) else "fp32"
                if is_tensor or (isinstance(value, int) and value % 16 == 0):
                    hints[i,] = [["tt.divisibility", 16]]
        # A product has two tiles.
        shape = (kernel.__name__, constants.get("OUTPUTS"))
        shape = (*shape, *signature.values(), *known.items()) if self.is_thorough else shape
        if shape in self.seen:
            return
        self.seen.add(shape)
        options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": enable_fp_fusion}
        source = ASTSource(kernel, signature, known, hints)
        result = triton.compile(source, target=target_of(self.card), options=options)
        is_amd = self.card.startswith("gfx")
        text = result.asm["amdgcn" if is_amd else "ptx"]
        report = {
            "card": self.card,
            "kernel": kernel.__name__,
            "spills": amd_spills(text) if is_amd else nvidia_spills(result.asm),
            "shared": result.metadata.shared,
            "wide": bool((WIDE_AMD if is_amd else WIDE_NVIDIA).search(text)),
            "constants": {name: value for name, value in constants.items() if isinstance(value, (int, str))},
            "dtype": str(args[0].dtype).removeprefix("torch."),
        }
        sys.stdout.write(f"{json.dumps(report)}\n")


def call_kernels(dtype: torch.dtype, *, is_thorough: bool, has_products: bool) -> None:
    """Call every operation as the networks do: once, or in all its variants."""

    def pictures(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

    for shape in ((2, 192, 64, 64), (2, 1536, 8, 8), (1, 32, 1, 1))[: 3 if is_thorough else 1]:
        norm.group_norm_mod(pictures(*shape), torch.zeros(1, 2 * shape[1]), 32, False, True, 1e-5)
    vector, matrix = torch.zeros(128, dtype=dtype), torch.zeros(128, 4, dtype=dtype)
    maps = (pictures(1, 4, 4, 4), matrix, vector, matrix, vector, vector, vector)
    norm.spatial_norm_act(pictures(1, 128, 64, 64), *maps, 32, True, 1e-6)
    norm.spatial_norm_act(pictures(2, 128, 4, 4), *maps, 32, False, 1e-6)
    attention.attend_over_time(*torch.zeros(2, 15, 16, 3 * 128, dtype=dtype).chunk(3, -1), 2)
    if is_thorough:
        attention.attend_over_time(*torch.zeros(3, 1, 1, 16, 16, dtype=dtype), 1)
    if has_products:
        x = torch.zeros(256, 192, dtype=dtype)
        for outputs in (192, 256):
            weight = torch.zeros(outputs, 192, dtype=dtype)
            linear.linear(x, weight, weight[:, 0].contiguous(), torch.zeros(256, outputs, dtype=dtype), True)
            linear.linear(x, weight, None, None, False)
    x, told = torch.zeros(1, 4, 64, 64), (torch.zeros(5), [2.0, -1.0])
    for predicted in ("eps", "v", "denoised"):
        predictions = torch.zeros(2, 4, 64, 64, dtype=dtype)
        step.sample_step(predictions, x, x, *told, predicted, "quantile", 0.98)
        step.sample_step(predictions, x, None, *told, predicted, "range", 0.98)


def main() -> None:
    """Compile what the first argument lists."""
    for card, name, is_thorough in json.loads(sys.argv[1]):
        compiler = Compiler(card, is_thorough)
        for module in (attention, linear, norm, step):
            module.launch = compiler
        linear.architecture = lambda x, card=card: card
        dtype = getattr(torch, name)
        has_products = not linear.refuses_card(card)
        call_kernels(dtype, is_thorough=is_thorough, has_products=has_products)


if __name__ == "__main__":
    main()
