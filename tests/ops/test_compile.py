"""Compile every kernel for real devices, which needs none: the interpreter accepts more than the compiler does."""

import os
import subprocess
import sys

import pytest

from fusionframes.ff_kernels.ops.registry import unavailable

# Runs without the interpreter and records each launch as signature and constants instead of launching it.
PROGRAM = """
import sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fusionframes.ff_kernels.ops.triton import attention, linear, norm, step

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}

def compiled(kernel, programs, *args, num_warps=4, num_stages=3, enable_fp_fusion=True, **constants):
    signature, known, hints = {}, {}, {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, [*args, *[None] * len(constants)])):
        if name in constants:
            signature[name], known[i,] = "constexpr", constants[name]
        elif isinstance(value, int) and value == 1:
            signature[name], known[i,] = "constexpr", 1
        else:
            is_tensor = isinstance(value, torch.Tensor)
            signature[name] = POINTERS[value.dtype] if is_tensor else "i32" if isinstance(value, int) else "fp32"
            if is_tensor or (isinstance(value, int) and value % 16 == 0):
                hints[i,] = [["tt.divisibility", 16]]
    options = dict(num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=enable_fp_fusion)
    source = ASTSource(kernel, signature, known, hints)
    result = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    assert result.metadata.shared <= 99 * 1024, "more shared memory than a consumer card has"
    wide = "ld.global.v4" in result.asm["ptx"] or "cp.async.cg" in result.asm["ptx"]
    print(kernel.__name__, "wide" if wide else "narrow")

for module in (attention, linear, norm, step):
    module.launch = compiled

def pictures(*shape):
    return torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

for dtype in (getattr(torch, name) for name in sys.argv[2:]):
    for shape in ((2, 192, 64, 64), (2, 1536, 8, 8), (1, 32, 1, 1)):
        norm.group_norm_mod(pictures(*shape), torch.zeros(1, 2 * shape[1]), 32, False, True, 1e-5)
    vector, matrix = torch.zeros(128, dtype=dtype), torch.zeros(128, 4, dtype=dtype)
    maps = (pictures(1, 4, 4, 4), matrix, vector, matrix, vector, vector, vector)
    norm.spatial_norm_act(pictures(1, 128, 64, 64), *maps, 32, True, 1e-6)
    norm.spatial_norm_act(pictures(2, 128, 4, 4), *maps, 32, False, 1e-6)
    attention.attend_over_time(*torch.zeros(2, 15, 16, 3 * 128, dtype=dtype).chunk(3, -1), 2)
    attention.attend_over_time(*torch.zeros(3, 1, 1, 16, 16, dtype=dtype), 1)
    x, weight = torch.zeros(256, 192, dtype=dtype), torch.zeros(192, 192, dtype=dtype)
    linear.linear(x, weight, weight[0], x, True)
    linear.linear(x, torch.zeros(256, 192, dtype=dtype), None, None, False)
    x = torch.zeros(1, 4, 64, 64)
    for predicted in ("eps", "v", "denoised"):
        predictions = torch.zeros(2, 4, 64, 64, dtype=dtype)
        step.sample_step(predictions, x, x, torch.zeros(5), [2.0, -1.0], predicted, "quantile", 0.98)
        step.sample_step(predictions, x, None, torch.zeros(5), [2.0, -1.0], predicted, "range", 0.98)
"""
KERNELS = {"_statistics_kernel", "_modulate_kernel", "_spatial_kernel", "_attention_kernel", "_linear_kernel"}
KERNELS |= {"_step_kernel", "_quantile_step_kernel"}


# 8.9 is a 4090, 9.0 an H100 or H200.
@pytest.mark.parametrize(("capability", "dtypes"), [("89", ["float16", "float32"]), ("90", ["bfloat16"])])
def test_every_kernel_compiles_and_reads_sixteen_bytes_at_a_time(capability, dtypes, tmp_path):
    reason = unavailable("triton")
    if reason:
        pytest.skip(f"triton: {reason}")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, capability, *dtypes]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in lines} == KERNELS
    assert {name for name, width in lines if width == "wide"} == KERNELS
