"""compressed-tensors' own packing: int4 groups with and without zero points, NVFP4's nibbles."""
import numpy as np, torch
from importlib.metadata import version
from moe import *

try:
    from compressed_tensors.compressors.quantized_compressors.pack_quantized import pack_to_int32
except ImportError:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
v, g = version("compressed-tensors"), torch.Generator().manual_seed(1)
rows, k, group = 48, 256, 64
q = torch.randint(-8, 8, (rows, k), generator=g, dtype=torch.int8)
scale = torch.rand(rows, k // group, generator=g)
packed = pack_to_int32(q, 4).numpy()
spread = scale.repeat_interleave(group, 1)
want = (q.float() * spread).numpy()
got = dequantize(matrix("int4_group", packed, scale=("f32", scale.numpy(), 1, group)), rows, k)[0]
row("compressed-tensors", v, "pack_to_int32: int4 in groups of 64", f"{same(got, want)} of {want.size} differ", same(got, want) == 0)
zero = torch.randint(-8, 8, (rows, k // group), generator=g, dtype=torch.int8)
z = pack_to_int32(zero, 4, packed_dim=0).numpy()
want = ((q.float() - zero.repeat_interleave(group, 1).float()) * spread).numpy()
got = dequantize(matrix("int4_group", packed, scale=("f32", scale.numpy(), 1, group), zero=("u4x8", z, 1, group)), rows, k)[0]
row("compressed-tensors", v, "pack_to_int32: the same with zero points", f"{same(got, want)} of {want.size} differ", same(got, want) == 0)
raise SystemExit(failures != 0)
