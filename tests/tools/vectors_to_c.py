#!/usr/bin/env python3
"""Turns tests/data/vectors.json (routing rows and activation values with exact results) into a C header.

  python3 tests/tools/vectors_to_c.py [--check]     writes tests/data/vectors.h; --check only compares

The header is committed, so that testing needs no Python.
"""
import json, os, struct, sys

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data")
DEFAULTS = dict(router_norm_eps=1e-6, n_group=1, topk_group=1, jitter=0.01, routed_scale=1.0, act_alpha=1.702,
                act_beta=4.0, act_lin_beta=25.0, gated=1, combine_scale=1.0, expert_out_scale=1.0)
ENUMS = dict(
    score=dict(SOFTMAX="ORC_SOFTMAX", SIGMOID="ORC_SIGMOID", SQRT_SOFTPLUS="ORC_SQRT_SOFTPLUS"),
    select_on="ORC_ON_", group="ORC_GROUP_", group_mask="ORC_MASK_", pick="ORC_PICK_", weight_src="ORC_W_",
    norm="ORC_NORM_", norm_scope="ORC_SCOPE_", weight_pos="ORC_POS_", act="ORC_", clamp="ORC_CLAMP_",
    shared_gate="ORC_GATE_", capacity_drop="ORC_DROP_", capacity_priority="ORC_PRIO_", capacity_norm="ORC_CAPNORM_")
SPECIAL = {"nan": "NAN", "inf": "INFINITY", "-inf": "-INFINITY"}

HEAD = """/* Made by tests/tools/vectors_to_c.py from vectors.json: do not edit. */
#ifndef VECTORS_H
#define VECTORS_H

#include "../oracle.h"

/* Logits in, ids and weights out. Rows that must form keys in float32 have k.key_f32. */
typedef struct vec_router {
    const char *id, *note;
    orc_knobs k;
    const float *logits, *sel_bias, *per_expert_scale; /* as many as the knobs say, or NULL */
    const int32_t *table_ids;                          /* [top_k] ids given by a table, or NULL */
    const int32_t *ids;                                /* [top_k] in rank order */
    const double *weights;                             /* [top_k]; NULL: unspecified */
    const double *shared;                              /* [n_shared] weights of a router sink, or NULL */
} vec_router;

/* Gate and up sums in, activation out; ungated rows have up NULL. */
typedef struct vec_act {
    const char *id, *note;
    orc_knobs k;
    size_t n;
    const float *gate, *up;
    const double *expect;
} vec_act;

"""


def f32(v):
    """Shortest decimal that is this float32."""
    if v in SPECIAL: return SPECIAL[v]
    for p in range(1, 10):
        s = f"{v:.{p}g}"
        if struct.pack("f", float(s)) == struct.pack("f", v): break
    return s + ("f" if "." in s or "e" in s else ".0f")


def f64(v):
    s = repr(float(v))
    return s if "." in s or "e" in s else s + ".0"


def array(name, kind, values):
    per = dict(float=f32, double=f64, int32_t=str)[kind]
    lines, line = [], ""
    for v in map(per, values):
        if len(line) + len(v) > 108: lines.append(line); line = ""
        line += v + ", "
    lines.append(line)
    return f"static const {kind} {name}[] = {{\n" + "".join(f"    {x.rstrip()}\n" for x in lines) + "};\n"


def knobs(k):
    k = dict(DEFAULTS, **k)
    out = []
    for name, v in k.items():
        e = ENUMS.get(name)
        if isinstance(e, dict): v = e[v]
        elif e: v = e + v
        else: v = f64(v) if isinstance(v, float) else int(v)
        out.append(f".{name} = {v}")
    return "{" + ", ".join(out) + "}"


def wrap(items, indent=5, width=112):
    """Items separated by commas, broken between them."""
    lines, line = [], ""
    for i in items:
        if line and len(line) + len(i) > width - indent: lines.append(line); line = ""
        line += i + ", "
    return (",\n" + " " * indent).join(x.rstrip(", ") for x in lines + [line])


def row(id, note, k, rest):
    note = json.dumps(note)
    inner = knobs(k)[1:-1].split(", ")
    return f"    {{\"{id}\", {note},\n     {{{wrap(inner, 6)}}},\n     {wrap(rest)}}},\n"


def emit(prefix, arrays):
    """The arrays' definitions and the names to refer to them."""
    text, names = "", []
    for suffix, kind, values in arrays:
        name = f"{prefix}_{suffix}"
        names.append(name if values is not None else "NULL")
        if values is not None: text += array(name, kind, values)
    return text, names


def router(v):
    k = dict(v["knobs"])
    sink = k.get("n_shared", 0) if k.get("shared_gate") == "ROUTER_SINK" else 0
    k.setdefault("n_expert", len(v["logits"]) - sink)
    if "formed in float32" in v["note"]: k["key_f32"] = 1
    e = v["expect"]
    text, names = emit("vec_" + v["id"].lower(), [
        ("logits", "float", v["logits"]), ("bias", "float", v.get("sel_bias")),
        ("scale", "float", v.get("per_expert_scale")), ("table", "int32_t", v.get("table_ids")),
        ("ids", "int32_t", e["ids"]), ("weights", "double", e["weights"]),
        ("shared", "double", e.get("shared_weights"))])
    return text, row(v["id"], v["note"], k, names)


def activation(v):
    gate = v.get("gate", v.get("input"))
    text, names = emit("vec_" + v["id"].lower(), [
        ("gate", "float", gate), ("up", "float", v.get("up")), ("expect", "double", v["expect"])])
    return text, row(v["id"], v["note"], v["knobs"], [str(len(gate))] + names)


def table(type, name, rows):
    return f"static const {type} {name}[] = {{\n" + "".join(rows) + "};\n"


def header(v):
    r, a = [router(x) for x in v["router"]], [activation(x) for x in v["activation"]]
    arrays = "".join(x[0] for x in r + a)
    tables = table("vec_router", "vec_routers", [x[1] for x in r]), table("vec_act", "vec_acts", [x[1] for x in a])
    return HEAD + f"/* clang-format off */\n{arrays}\n{tables[0]}\n{tables[1]}/* clang-format on */\n\n#endif\n"


def main():
    text, path = header(json.load(open(os.path.join(DATA, "vectors.json")))), os.path.join(DATA, "vectors.h")
    if "--check" not in sys.argv:
        open(path, "w").write(text)
    elif open(path).read() != text:
        print("FAIL vectors.h: not what vectors.json gives; run tests/tools/vectors_to_c.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
