#!/usr/bin/env python3
"""Runs every golden layer through oracle.h and compares with the exact results (numpy only).

  python3 tests/tools/oracle_vs_golden.py [--cc CC] [case ...]      from anywhere

Prints FAIL lines and ends with `oracle_vs_golden: N passed, N failed, N skipped`. Where numpy is absent all cases
count as skipped.
"""
import argparse, ctypes, json, os, re, struct, subprocess, sys, tempfile

try:
    import numpy as np
except ImportError:
    np = None

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "data", "golden")
TOL = 1e-9
DTYPES = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "BF16": "<u2"}


def load(path):
    """Tensors of a safetensors file; BF16 becomes float32."""
    with open(path, "rb") as f:
        b = f.read()
    n = struct.unpack("<Q", b[:8])[0]
    out = {}
    for name, t in json.loads(b[8:8 + n]).items():
        if name == "__metadata__": continue
        a = np.frombuffer(b, DTYPES[t["dtype"]], int(np.prod(t["shape"])), 8 + n + t["data_offsets"][0])
        if t["dtype"] == "BF16": a = (a.astype(np.uint32) << 16).view(np.float32)
        out[name] = a.reshape(t["shape"])
    return out


# Last parts of tensor names (models differ in what comes before).
SINGLE = {
    "router": r"(gate|router|router\.layer|router\.classifier)\.weight",
    "router_bias": r"router\.bias",
    "sel_bias": r"e_score_correction_bias|ffn\.gate\.bias",
    "table": r"gate\.tid2eid",
    "sgate": r"shared_expert_gate\.weight",
    "b2": r"experts\.down_proj_bias",
}
ROLE = {"w1": "gate_proj w1 linear wi", "w3": "up_proj w3 linear_v v1", "w2": "down_proj w2 linear_1 wo"}
ROLE = {name: role for role, names in ROLE.items() for name in names.split()}


def halves(a, axis):
    """Gate rows first, then up rows."""
    return np.split(a, 2, axis)


def fused(t, name, fam, W):
    """Experts stored as one tensor: [E, 2ff, d], transposed in some families, rows interleaved in gpt-oss."""
    tail, turn = name.rsplit(".", 1)[1], fam in ("llama4", "gpt_oss")
    if tail == "down_proj": W["w2"] = t.swapaxes(1, 2) if turn else t
    if tail == "gate_up_proj":
        t = t.swapaxes(1, 2) if turn else t
        W["w1"], W["w3"] = (t[:, 0::2], t[:, 1::2]) if fam == "gpt_oss" else halves(t, 1)
    if tail == "gate_up_proj_bias": W["b1"], W["b3"] = t[:, 0::2], t[:, 1::2]


def dbrx(t, role, E, W):
    """[E*ff, d] each; w2 multiplies untransposed."""
    t = t.reshape(E, -1, t.shape[1])
    W[role] = t.swapaxes(1, 2) if role == "w2" else t


def granite(t, name, W):
    pre = "s" if "shared_mlp" in name else ""
    if "output_linear" in name: W[pre + "w2"] = t
    else: W[pre + "w1"], W[pre + "w3"] = halves(t, t.ndim - 2)


def weights(ts, fam, E):
    """The oracle's arrays from the tensors of a checkpoint. A tensor that fits nowhere is an error."""
    W, single = {}, {}
    for name, t in ts.items():
        one = [k for k, p in SINGLE.items() if re.search(rf"(^|\.)({p})$", name)]
        expert = re.search(r"\.experts\.(?:expert_)?(\d+)\.(\w+)\.weight$", name)
        shared = re.search(r"\.shared_experts?\.(\w+)\.weight$", name)
        if one: W[one[0]] = t
        elif expert: single.setdefault(ROLE[expert[2]], {})[int(expert[1])] = t
        elif shared: W["s" + ROLE[shared[1]]] = t
        elif fam == "dbrx": dbrx(t, ROLE[name.rsplit(".", 1)[1]], E, W)
        elif "_linear.weight" in name: granite(t, name, W)
        elif re.search(r"\.experts\.(gate_up_proj(_bias)?|down_proj)$", name): fused(t, name, fam, W)
        else: raise ValueError(f"unknown tensor {name}")
    for role, by_id in single.items():
        W[role] = np.stack([by_id[e] for e in range(E)])
    return W


class Oracle:
    def __init__(self, cc):
        self.dir = tempfile.TemporaryDirectory()
        so = os.path.join(self.dir.name, "oracle.so")
        flags = ["-std=c11", "-O2", "-shared", "-fPIC"]
        subprocess.run([cc, *flags, os.path.join(HERE, "oracle_lib.c"), "-o", so, "-lm"], check=True)
        self.lib = ctypes.CDLL(so)
        self.lib.orc_lib_result.restype = ctypes.c_void_p
        self.lib.orc_lib_forward.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t]
        self.lib.orc_lib_array.argtypes = [ctypes.c_char_p, ctypes.c_void_p]

    def result(self, name, type, shape):
        p = self.lib.orc_lib_result(name.encode())
        return np.ctypeslib.as_array(ctypes.cast(p, ctypes.POINTER(type)), shape).copy()

    def forward(self, knobs, W, x, xr, token_ids):
        lib, hold = self.lib, []

        def pointer(a, type):
            if a is None: return None
            hold.append(np.ascontiguousarray(a, type))
            return hold[-1].ctypes.data

        lib.orc_lib_reset()
        for name, v in knobs.items():
            v = str(int(v)) if isinstance(v, bool) else repr(v) if isinstance(v, float) else str(v)
            if name != "router_in" and not lib.orc_lib_knob(name.encode(), v.encode()):
                raise ValueError(f"unknown knob {name} = {v}")
        for name, a in W.items():
            if not lib.orc_lib_array(name.encode(), pointer(a, np.int32 if name == "table" else np.float32)):
                raise ValueError(f"unknown array {name}")
        T, d, k = len(x), x.shape[1], knobs["top_k"]
        lib.orc_lib_forward(pointer(x, np.float32), pointer(xr, np.float32), pointer(token_ids, np.int32), T)
        f, i = ctypes.c_double, ctypes.c_int32
        shapes = dict(logits=(T, len(W["router"])), weights=(T, k), output=(T, d), bound=(T, d), margin=(T,),
                      key_err=(T,), rank_margin=(T,), rank_err=(T,))
        return dict({n: self.result(n, f, s) for n, s in shapes.items()}, ids=self.result("ids", i, (T, k)))


def relative(got, want):
    """Largest difference, relative to the largest value of its token (1 where that is all zero)."""
    size = np.abs(want).max(1)
    return float((np.abs(got - want).max(1) / np.where(size > 0, size, 1)).max())


def faults(R, io):
    """What is wrong with a result; and its figures."""
    bad, out = [], relative(R["output"], io["output"])
    w, l = relative(R["weights"], io["topk_weights"]), relative(R["logits"], io["router_logits"].astype(float))
    if not (R["ids"] == io["topk_ids"]).all(): bad.append("ids differ")
    if not out <= TOL: bad.append(f"output differs by {out:.1e}")
    if not w <= TOL: bad.append(f"weights differ by {w:.1e}")
    if not l <= 1e-7: bad.append(f"logits (stored as float32) differ by {l:.1e}")
    if not (R["margin"] > R["key_err"]).all() or not (R["rank_margin"] > R["rank_err"]).all():
        bad.append("tokens called ambiguous")
    wide = (R["bound"].max(1) / np.maximum(np.abs(io["output"]).max(1), 1e-30))[np.abs(io["output"]).max(1) > 0]
    return bad, f"output {out:.1e} weights {w:.1e} logits {l:.1e} bound/max {np.median(wide):.1e}"


def run(oracle, case):
    path = os.path.join(GOLDEN, case)
    info = json.load(open(os.path.join(path, "case.json")))
    ts, io = load(os.path.join(path, "model.safetensors")), load(os.path.join(path, "io.safetensors"))
    W = weights(ts, info["family"], info["knobs"]["n_expert"])
    R = oracle.forward(info["knobs"], W, io["hidden_states"], io.get("router_input"), io.get("token_ids"))
    return faults(R, io)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("cases", nargs="*")
    a.add_argument("--cc", default=os.environ.get("CC", "cc"))
    a.add_argument("-v", action="store_true", help="print the figures of every case")
    a = a.parse_args()
    cases = sorted(a.cases or [c for c in os.listdir(GOLDEN) if os.path.isdir(os.path.join(GOLDEN, c))])
    if np is None:
        print(f"oracle_vs_golden: 0 passed, 0 failed, {len(cases)} skipped")
        return 0
    oracle, failed = Oracle(a.cc), 0
    for case in cases:
        try:
            bad, figures = run(oracle, case)
        except (OSError, KeyError, ValueError) as e:
            bad, figures = [f"{type(e).__name__}: {e}"], ""
        failed += bool(bad)
        if bad: print(f"FAIL {case}: {'; '.join(bad)}")
        if a.v: print(f"{case:28s} {figures}")
    print(f"oracle_vs_golden: {len(cases) - failed} passed, {failed} failed, 0 skipped")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
