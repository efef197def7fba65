"""ml_dtypes and numpy: conversions of all codes, and rounding of a million floats."""
import numpy as np, ml_dtypes as ml
from importlib.metadata import version
from moe import *

v, one = version("ml_dtypes"), np.ones(1 << 16, np.float32)
rng = np.random.default_rng(1)


def codes(name, what, got, want):
    bad = same(got, want)
    row("ml_dtypes" if what else "numpy", v if what else np.__version__, f"{name}: all codes decoded", f"{bad} of {np.size(want)} differ", bad == 0)


b8, b16 = np.arange(256, dtype=np.uint8).reshape(1, 256), np.arange(1 << 16, dtype=np.uint16).reshape(1, 1 << 16)
codes("fp8 e4m3fn", 1, dequantize(matrix("fp8_channel", b8, scale=("f32", one)), 1, 256)[0], b8.view(ml.float8_e4m3fn).astype(np.float32))
codes("bf16", 1, dequantize(matrix("bf16", b16), 1, 1 << 16)[0], b16.view(ml.bfloat16).astype(np.float32))
codes("f16", 0, dequantize(matrix("f16", b16), 1, 1 << 16)[0], b16.view(np.float16).astype(np.float32))
unit = np.full((256, 32), 0x38, np.uint8)  # 1.0 in e4m3: the scale remains
codes("e8m0", 1, dequantize(matrix("mxfp8", unit, scale=("e8m0", b8)), 256, 32)[0][:, 0], b8.view(ml.float8_e8m0fnu).astype(np.float32)[0])
pairs = np.arange(256, dtype=np.uint8).reshape(16, 16)
scales = np.full(16, 127, np.uint8)
low, high = (pairs & 15).view(ml.float4_e2m1fn), (pairs >> 4).view(ml.float4_e2m1fn)
want = np.stack([low.astype(np.float32), high.astype(np.float32)], -1).reshape(16, 32)
codes("fp4 e2m1 (its -0 as 0), low nibble first", 1, dequantize(matrix("mxfp4_hf", pairs, scale=("e8m0", scales)), 16, 32)[0], want + np.float32(0))

x = rng.integers(0, 1 << 32, (1, 1 << 20), np.uint64).astype(np.uint32).view(np.float32)
with np.errstate(all="ignore"):
    for name, kind in (("bf16", ml.bfloat16), ("f16", np.float16)):
        got = dequantize(matrix(name, quantize(name, x)), 1, x.size)[0]
        bad = same(got, x.astype(kind).astype(np.float32))
        row("ml_dtypes" if name == "bf16" else "numpy", v if name == "bf16" else np.__version__, f"{name}: 2^20 random floats rounded", f"{bad} differ", bad == 0)
    near = (rng.standard_normal((1, 1 << 20)) * 100).astype(np.float32)  # saturation differs by design
    near = near[np.abs(near) < 448].reshape(1, -1)
    got = dequantize(matrix("fp8_channel", quantize("fp8_channel", near), scale=("f32", one)), 1, near.size)[0]
    bad = same(got, near.astype(ml.float8_e4m3fn).astype(np.float32))
    row("ml_dtypes", v, f"fp8 e4m3fn: {near.size} floats rounded", f"{bad} differ", bad == 0)
raise SystemExit(failures != 0)
