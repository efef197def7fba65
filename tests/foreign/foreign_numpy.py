"""A layer written down again in numpy, float64: softmax or sigmoid with bias, top-k, SiLU, shared expert."""
import numpy as np
from moe import *

rng = np.random.default_rng(1)
D, FF, E, K, N = 96, 80, 12, 3, 40
sigmoid = lambda v: 1 / (1 + np.exp(-v))


def layer(x, r, bias, g, u, d, s, deepseek):
    l = x @ r.T
    p = sigmoid(l) if deepseek else np.exp(l - l.max(1, keepdims=True)) / np.exp(l - l.max(1, keepdims=True)).sum(1, keepdims=True)
    ids = np.argsort(-(p + (bias if deepseek else 0)), 1, kind="stable")[:, :K]
    w = np.take_along_axis(p, ids, 1)
    w = w / w.sum(1, keepdims=True) * (2.5 if deepseek else 1)
    y = np.zeros_like(x)
    for t in range(len(x)):
        for j, e in enumerate(ids[t]):
            h = g[e] @ x[t]
            y[t] += w[t, j] * (d[e] @ (h * sigmoid(h) * (u[e] @ x[t])))
        if deepseek:
            h = s[0] @ x[t]
            y[t] += s[2] @ (h * sigmoid(h) * (s[1] @ x[t]))
    return y, ids


for name in ("mixtral", "deepseek_v3"):
    w = lambda *shape: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
    x, r, g, u, d = rng.standard_normal((N, D)).astype(np.float32), w(E, D), w(E, FF, D), w(E, FF, D), w(E, D, FF)
    s, bias = [w(FF, D), w(FF, D), w(D, FF)], rng.standard_normal(E).astype(np.float32) / 4
    desc = moe_desc()
    ok(lib.moe_preset(C.byref(desc), name.encode()))
    desc.d_model, desc.d_ff, desc.n_experts, desc.top_k = D, FF, E, K
    desc.gate, desc.up, desc.down, desc.router.weight = matrix("f32", g), matrix("f32", u), matrix("f32", d), matrix("f32", r)
    if name == "deepseek_v3":
        desc.router.select_bias = moe_array(type=1, data=at(bias))
        desc.router.group, desc.router.n_group, desc.router.topk_group, desc.router.routed_scale, desc.router.norm = 0, 0, 0, 2.5, 1
        desc.shared.d_ff, desc.shared.gate, desc.shared.up, desc.shared.down = FF, matrix("f32", s[0]), matrix("f32", s[1]), matrix("f32", s[2])
    y, ids, _ = forward(desc, x)
    f = np.float64
    want, want_ids = layer(x.astype(f), r.astype(f), bias.astype(f), g.astype(f), u.astype(f), d.astype(f), [a.astype(f) for a in s], name == "deepseek_v3")
    err = np.abs(y - want).max() / np.abs(want).max()
    row("numpy, float64", np.__version__, f"{name} layer, {N} tokens", f"ids {'equal' if (ids == want_ids).all() else 'DIFFER'}, error {err:.1e}", (ids == want_ids).all() and err < 1e-6)
raise SystemExit(failures != 0)
