#!/usr/bin/env python3
"""Writes tests/data/route_vectors.h from the routing rows of a vectors.json (see its "about" for the format).

usage: route_vectors_to_c.py vectors.json > route_vectors.h

Floats that a router reads are written as their bits, because NaN and infinities have no portable literal."""
import json
import struct
import sys

ENUM = {
    "score": ["SOFTMAX", "SIGMOID", "SQRT_SOFTPLUS"],
    "select_on": ["SCORE", "LOGIT"],
    "group": ["NONE", "LIMIT_MAX", "LIMIT_TOP2SUM", "PER_GROUP"],
    "group_mask": ["NEG_INF", "ZERO"],
    "pick": ["TOPK", "TABLE", "SPARSEMIXER"],
    "weight_src": ["SCORE", "SOFTMAX_SELECTED", "BIASED"],
    "norm": ["NONE", "SUM"],
}
KNOWN = set(ENUM) | {"n_expert", "top_k", "n_zero_expert", "n_group", "topk_group", "norm_skip_k1", "norm_scope",
                     "n_shared", "shared_gate", "logit_softcap", "jitter", "norm_eps", "norm_min", "routed_scale"}


def bits(x):
    return "0x%08xu" % struct.unpack("<I", struct.pack("<f", float(x)))[0]


def array(name, ctype, values, text):
    """Prints a static array and returns its name; NULL where there is none."""
    if values is None:
        return "NULL"
    out, line = [], "   "
    for v in map(text, values):
        if len(line) + len(v) > 110:
            out.append(line)
            line = "   "
        line += " " + v + ","
    print("static const %s %s[] = {\n%s};" % (ctype, name, "\n".join(out + [line])))
    return name


def row(v):
    k, n = v["knobs"], "route_" + v["id"]
    assert set(k) <= KNOWN, set(k) - KNOWN
    assert k.get("shared_gate", "ROUTER_SINK") == "ROUTER_SINK"
    e = v["expect"]
    arrays = [array(n + "_l", "uint32_t", v["logits"], bits),
              array(n + "_b", "uint32_t", v.get("sel_bias"), bits),
              array(n + "_s", "uint32_t", v.get("per_expert_scale"), bits),
              array(n + "_t", "int32_t", v.get("table_ids"), str),
              array(n + "_i", "int32_t", e["ids"], str),
              array(n + "_w", "double", e["weights"], repr),
              array(n + "_h", "double", e.get("shared_weights"), repr)]
    norm = ENUM["norm"].index(k.get("norm", "NONE"))
    if norm and k.get("norm_scope") == "ROUTED_AND_SHARED":
        norm = 2
    ints = [k["n_expert"], k.get("n_zero_expert", 0), k["top_k"], k.get("n_shared", 0)]
    ints += [ENUM[f].index(k.get(f, ENUM[f][0])) for f in ("score", "select_on", "pick", "weight_src")] + [norm]
    ints += [ENUM["group"].index(k.get("group", "NONE")), k.get("n_group", 1), k.get("topk_group", 1)]
    ints += [ENUM["group_mask"].index(k.get("group_mask", "NEG_INF")), int(k.get("norm_skip_k1", False))]
    floats = [bits(k.get(f, d)) for f, d in (("logit_softcap", 0), ("jitter", 0.01), ("norm_eps", 0), ("norm_min", 0),
                                             ("routed_scale", 1))]
    return '    {"%s", "%s",\n     {%s}, {%s},\n     %s},' % (
        v["id"], v["note"].replace('"', "'"), ", ".join(map(str, ints)), ", ".join(floats), ", ".join(arrays))


def main():
    rows = json.load(open(sys.argv[1]))["router"]
    print("/* Made by tests/tools/route_vectors_to_c.py from the golden routing vectors; do not edit. */\n"
          "#include <stddef.h>\n#include <stdint.h>\n\n"
          "typedef struct route_vector {\n"
          "    const char *id, *note;\n"
          "    uint32_t knob[14]; /* n_experts n_zero top_k n_shared score select_on pick weight_from norm\n"
          "                          group n_group topk_group group_mask_zero norm_skip_k1 */\n"
          "    uint32_t real[5];  /* bits of: softcap jitter norm_eps norm_min routed_scale */\n"
          "    const uint32_t *logits, *bias, *scale; /* bits of floats */\n"
          "    const int32_t *table, *ids;\n"
          "    const double *weights, *shared;        /* NULL = unspecified, absent */\n"
          "} route_vector;\n")
    text = [row(v) for v in rows]
    print("\nstatic const route_vector route_vectors[] = {\n%s\n};" % "\n".join(text))


main()
