#!/usr/bin/env python3
"""Runs checkpoints of every family through run_layer and compares with the oracle in float64 (numpy only).

  python3 tests/tools/families.py [--run build/run_layer] [--tier c] [-v] [case ...]      from anywhere

tests/data/families.json holds, for every case, a configuration as the model's own class or release writes it, the tensors'
names, what each of them holds, and the knobs that the block must have. Weights are random, in float32. Tokens whose choice
rounding may change are left out. Ends with `families: N passed, N failed, N skipped`.

What a tensor holds: an array of the oracle (w1 gate, w3 up, w2 down, s: shared ...), cat (gate rows, then up rows), inter
(alternating), binter (their biases), then in order: T (last two dimensions swapped), fold (experts one below the other), row
([1,n]), pair (with noise below), each (%u is the expert), #e (that expert); or noise DIMS, or value NUMBER.
"""
import argparse, json, os, struct, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from oracle_vs_golden import Oracle, load, np

ROOT = os.path.join(HERE, "..", "..")
T = 24  # tokens


def arrays(k, o, rng):
    """Random weights in the oracle's layout."""
    E, ff, D, S, Z = k["n_expert"], k["d_ff"], k["d_model"], k.get("d_ff_shared", 0), k.get("n_zero_expert", 0)
    d, gated = k.get("d_latent", 0) or D, k.get("gated", True)
    sink = k["n_shared"] if k.get("shared_gate") == "ROUTER_SINK" else 0
    def normal(*shape, scale=1.0, mean=0.0): return (mean + scale * rng.standard_normal(shape)).astype(np.float32)
    def width(n): return o.get("w1_gain", 1.5) / n ** 0.5
    W = {"router": normal(E + Z + sink, D, scale=1.6 / D ** 0.5)}
    if o.get("router_bias"): W["router_bias"] = normal(E, scale=0.5)
    if o.get("sel_bias"): W["sel_bias"] = normal(E + Z, scale=o["sel_bias"])
    if o.get("pes"): W["per_expert_scale"] = np.exp(normal(E, scale=0.4))
    if k.get("router_norm"): W["router_scale"] = normal(D, scale=0.3, mean=1.0)
    if o.get("out_bias"): W["out_bias"] = normal(D, scale=0.5)
    W["w1"], W["w2"] = normal(E, ff, d, scale=width(d)), normal(E, d, ff, scale=o.get("w2_gain", 1.5) / ff ** 0.5)
    if gated: W["w3"] = normal(E, ff, d, scale=width(d))
    if o.get("bias"):
        W["b1"], W["b2"] = normal(E, ff, scale=0.5), normal(E, d, scale=0.5)
        if gated: W["b3"] = normal(E, ff, scale=0.5)
    if "d_latent" in k: W["lat_in"], W["lat_out"] = normal(d, D, scale=D ** -0.5), normal(D, d, scale=d ** -0.5)
    if "latent_norm_eps" in k: W["lat_norm"] = normal(d, scale=0.2, mean=1.0)
    if S:
        n = (sink,) if sink else ()
        W["sw1"], W["sw2"] = normal(*n, S, D, scale=width(D)), normal(*n, D, S, scale=o.get("w2_gain", 1.5) / S ** 0.5)
        if gated: W["sw3"] = normal(*n, S, D, scale=width(D))
    if k.get("shared_gate") == "SIGMOID_DOT": W["sgate"] = normal(D, scale=D ** -0.5)
    if k.get("shared_gate") == "SOFTMAX2": W["sgate"], W["sgate_bias"] = normal(2, D, scale=D ** -0.5), normal(2)
    return W


def content(words, W, rng):
    """The array that a description means, before `each` and `#e`."""
    word, *more = words.split()
    if word == "noise": return rng.standard_normal([int(n) for n in more if n != "each"]).astype(np.float32)
    if word == "value": return np.array([float(more[0])], np.float32)
    pair = {"cat": ("w1", "w3"), "scat": ("sw1", "sw3"), "inter": ("w1", "w3"), "sinter": ("sw1", "sw3"), "binter": ("b1", "b3")}
    if word in pair:
        a, b = (W[n] for n in pair[word])
        if "inter" in word:
            axis = -1 if word == "binter" else -2
            shape = list(a.shape); shape[axis] *= 2
            a = np.stack([a, b], a.ndim if axis == -1 else a.ndim - 1).reshape(shape)
        else: a = np.concatenate([a, b], -2)
    else: a = W[word]
    for m in more:
        if m == "T": a = a.swapaxes(-1, -2)
        if m == "fold": a = a.reshape(-1, a.shape[-1])
        if m == "row": a = a[None]
        if m == "pair": a = np.stack([a, rng.standard_normal(a.shape).astype(np.float32)])
        if m[0] == "#": a = a[int(m[1:])]
    return a


def tensors(case, W, rng):
    E, out = case["knobs"]["n_expert"], {}
    for name, what in case["tensors"].items():
        if not what.endswith(" each"): out[name] = content(what, W, rng)
        elif "%v" in name: out.update({name.replace("%v", str(E + e)): content(what, W, rng) for e in range(E)})
        else:
            a = content(what[:-5], W, rng)
            out.update({name.replace("%u", str(e)): a[e] for e in range(E)})
    return out


def save(path, ts):
    head, body = {}, b""
    for name, a in ts.items():
        b = np.ascontiguousarray(a, "<f4").tobytes()
        head[name] = dict(dtype="F32", shape=list(a.shape), data_offsets=[len(body), len(body) + len(b)])
        body += b
    text = json.dumps(head).encode()
    with open(path, "wb") as f: f.write(struct.pack("<Q", len(text)) + text + body)


def run(oracle, case, options, dir):
    k = case["knobs"]
    rng = np.random.default_rng(sum(map(ord, case["name"])))
    W = arrays(k, case["options"], rng)
    x = rng.standard_normal((T, k["d_model"])).astype(np.float32)
    xr = rng.standard_normal(x.shape).astype(np.float32) * 3 if k.get("router_in") == "SEPARATE" else None
    path = {n: os.path.join(dir, n) for n in ("model.safetensors", "config.json", "in", "out")}
    save(path["model.safetensors"], tensors(case, W, rng))
    save(path["in"], {"hidden_states": x, **({} if xr is None else {"router_input": xr})})
    with open(path["config.json"], "w") as f: json.dump(case["config"], f)
    ran = subprocess.run([options.run, dir, "--input", path["in"], "--output", path["out"], "--tier", options.tier, "--compute", "f32"],
                         capture_output=True, text=True)
    if ran.returncode: return ran.stderr.strip()
    R, out = oracle.forward(k, W, x, xr, None), load(path["out"])
    safe = (R["margin"] > R["key_err"]) & (R["rank_margin"] > R["rank_err"])
    if k.get("capacity"): safe[:] = safe.all()
    if safe.sum() < T // 2: return f"only {safe.sum()} of {T} tokens are safe"
    if not (out["topk_ids"] == R["ids"])[safe].all(): return "other experts"
    for name, got in (("weights", out["topk_weights"]), ("output", out["output"])):
        size = np.abs(R[name]).max(1, keepdims=True)
        error = (np.abs(got - R[name]) / np.where(size > 0, size, 1))[safe].max()
        if not error < 1e-5: return f"{name} differ by {error:.1e}"
    return ""


def main():
    a = argparse.ArgumentParser()
    a.add_argument("cases", nargs="*")
    a.add_argument("--run", default=os.path.join(ROOT, "build", "run_layer"))
    a.add_argument("--tier", default="c")
    a.add_argument("--cc", default=os.environ.get("CC", "cc"))
    a.add_argument("-v", action="store_true", help="name the cases that passed")
    a = a.parse_args()
    cases = json.load(open(os.path.join(ROOT, "tests", "data", "families.json")))
    cases = [c for c in cases if not a.cases or c["name"] in a.cases]
    if np is None:
        print(f"families: 0 passed, 0 failed, {len(cases)} skipped")
        return 0
    oracle, failed = Oracle(a.cc), 0
    for case in cases:
        with tempfile.TemporaryDirectory() as dir: bad = run(oracle, case, a, dir)
        failed += bool(bad)
        if bad: print(f"FAIL {case['name']}: {bad}")
        elif a.v: print(f"ok   {case['name']}")
    print(f"families: {len(cases) - failed} passed, {failed} failed, 0 skipped")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
