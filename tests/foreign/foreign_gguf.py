"""gguf (llama.cpp's Python package): every quantised type, random blocks, decoded to the same bits."""
import numpy as np, gguf
from gguf import GGMLQuantizationType as T, quants
from importlib.metadata import version
from moe import *

rng = np.random.default_rng(1)
# where the half-precision scales of a block are
HALVES = {"q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q2_K": [80, 82], "q3_K": [108], "q4_K": [0, 2], "q5_K": [0, 2],
          "q6_K": [208], "iq4_nl": [0], "iq4_xs": [0], "mxfp4": [], "nvfp4": []}
for name, halves in HALVES.items():
    kind = getattr(T, name.upper(), None)
    if kind is None or kind not in quants._type_traits:
        print(f"gguf {version('gguf')}: no {name}")
        continue
    per, block = gguf.GGML_QUANT_SIZES[kind]
    n = 4096
    b = rng.integers(0, 256, (n, block), np.uint8)
    for h in halves:  # any half that is finite
        half = rng.integers(0, 1 << 16, n).astype(np.uint16)
        half[(half & 0x7C00) == 0x7C00] &= 0x83FF
        b[:, h:h + 2] = half.view(np.uint8).reshape(n, 2)
    if name == "mxfp4":
        b[:, 0] = np.arange(n) % 255
    with np.errstate(all="ignore"):
        want = quants.dequantize(b, kind)
    got = dequantize(matrix(name, b), n, per)[0]
    bad = same(got, want)
    row("gguf", version("gguf"), f"{name}: {n} random blocks decoded", f"{bad} of {want.size} differ", bad == 0)
raise SystemExit(failures != 0)
