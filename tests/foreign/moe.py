"""moe.h through ctypes (make lib): the structs and what the foreign checks share. Sizes are checked against moe_sizeof."""
import ctypes as C, os, sys
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
lib = C.CDLL(os.path.join(ROOT, "build", "libmoe.so"))
u32, size, f32, ptr = C.c_uint32, C.c_size_t, C.c_float, C.c_void_p


def struct(name, fields):
    """fields: "type: name name; type: name" in C's order."""
    kinds = {"u32": u32, "size": size, "f32": f32, "ptr": ptr, **{k: v for k, v in globals().items() if isinstance(v, type)}}
    members = []
    for part in fields.split(";"):
        kind, names = part.split(":")
        members += [(n, kinds[kind.strip()]) for n in names.split()]
    cls = type(name, (C.Structure,), {"_fields_": members})
    lib.moe_sizeof.restype = size
    want = lib.moe_sizeof(name.encode())
    if want != C.sizeof(cls):
        sys.exit(f"{name} has {want} bytes, the binding {C.sizeof(cls)}")
    return cls


moe_array = struct("moe_array", "u32: type; ptr: data expert; size: offset stride expert_stride")
moe_grid = struct("moe_grid", "u32: type; ptr: data expert; size: offset row_stride expert_stride; u32: rows cols")
moe_matrix = struct("moe_matrix", "u32: format; ptr: data expert; size: offset row_stride expert_stride k_stride; moe_grid: scale zero;"
                    "moe_array: scale2 bias; u32: scale2_divides")
moe_router = struct("moe_router", "moe_matrix: weight; moe_array: select_bias expert_scale input_scale; f32: input_norm_eps; ptr: table;"
                    "size: table_stride; u32: table_rows table_bytes score select_on pick weight_from norm group n_group topk_group"
                    " group_mask_zero norm_skip_k1 logit_bf16; f32: softcap jitter norm_eps norm_min routed_scale; u32: capacity;"
                    "f32: capacity_factor; u32: capacity_drop capacity_by_score capacity_norm_after; f32: drop_below top_p; u32: min_keep")
moe_ffn = struct("moe_ffn", "u32: activation ungated clamp weight_at; f32: limit alpha beta linear_beta expert_out_scale combine_scale;"
                 "moe_array: out_bias")
moe_shared = struct("moe_shared", "u32: count d_ff gate_kind clamp; f32: limit; moe_matrix: gate up down gate_weight")
moe_latent = struct("moe_latent", "u32: d; f32: norm_eps; moe_matrix: inner out; moe_array: norm")
moe_desc = struct("moe_desc", "u32: begin_ d_model d_ff n_experts top_k n_zero_experts zero_kind expert_first expert_count;"
                  "moe_matrix: gate up down; moe_router: router; moe_ffn: ffn; moe_shared: shared; moe_latent: latent; u32: compute tiers end_")
moe_io = struct("moe_io", "ptr: x y; u32: x_type y_type; size: x_stride y_stride n_tokens; u32: y_add; ptr: router_x; size: router_x_stride;"
                "ptr: token_ids logits_in logits_out ids_in weights_in ids_out weights_out; size: ids_stride weights_stride; u32: k;"
                "ptr: slots_out experts workspace; size: workspace_size; u32: n_tasks; ptr: parallel stats error")
moe_error = struct("moe_error", "u32: status; ptr: part field; size: got want")

lib.moe_workspace_size.restype = lib.moe_row_bytes.restype = size
lib.moe_status_text.restype = lib.moe_format_name.restype = C.c_char_p
lib.moe_row_bytes.argtypes = [u32, size]
lib.moe_workspace_size.argtypes = [ptr, size, u32]
lib.moe_dequantize.argtypes = [ptr, u32, size, size, size, size, size, ptr]
lib.moe_quantize.argtypes = [u32, ptr, size, size, ptr]
lib.moe_format_by_name.argtypes = [C.c_char_p]
TYPE = {"f32": 1, "f16": 2, "bf16": 3, "e8m0": 4, "e4m3": 5, "u8": 6, "u4x8": 7}
F32, BF16, Q8 = 1, 2, 3


def fmt(name):
    f = lib.moe_format_by_name(name.encode())
    assert f, name
    return f


def at(a):
    assert a.flags["C_CONTIGUOUS"]
    return a.ctypes.data


def ok(status, error=None):
    if status:
        field = C.cast(error.field, C.c_char_p).value if error is not None else b""
        raise RuntimeError(f"{field}: {lib.moe_status_text(status).decode()}")


def matrix(name, data, **scale):
    """A moe_matrix of an array; scale=(type, array[, rows, cols]), zero the same."""
    m = moe_matrix(format=fmt(name), data=at(data))
    m.keep = data, scale  # alive as long as m
    for part, (kind, a, *shape) in scale.items():
        g = getattr(m, part)
        g.type, g.data = TYPE[kind], at(a)
        if shape:
            g.rows, g.cols = shape
    return m


def dequantize(m, rows, k, experts=1):
    out = np.empty((experts, rows, k), np.float32)
    for e in range(experts):
        ok(lib.moe_dequantize(C.byref(m), e, experts, rows, k, 0, rows, at(out[e])))
    return out


def quantize(name, x):
    out = np.zeros((x.shape[0], lib.moe_row_bytes(fmt(name), x.shape[1])), np.uint8)
    ok(lib.moe_quantize(fmt(name), at(x), *x.shape, at(out)))
    return out


def forward(desc, x, **io):
    """(y, ids, weights) of a desc; x [tokens][d_model] f32."""
    layer, error = C.create_string_buffer(lib.moe_sizeof(b"moe_layer")), moe_error()
    ok(lib.moe_layer_init(layer, C.byref(desc), C.byref(error)), error)
    n, k = x.shape[0], desc.top_k
    y, ids, weights = np.empty_like(x), np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    work = np.empty(lib.moe_workspace_size(layer, n, 1), np.uint8)
    call = moe_io(x=at(x), y=at(y), x_type=1, y_type=1, n_tokens=n, ids_out=at(ids), weights_out=at(weights), workspace=at(work),
                  workspace_size=work.size, error=C.addressof(error), **{k: at(v) for k, v in io.items()})
    ok(lib.moe_forward(layer, C.byref(call)), error)
    return y, ids, weights


def same(a, b):
    """Number of elements that are neither equal in all bits nor both NaN."""
    a, b = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    return int(np.sum((a.view(np.uint32) != b.view(np.uint32)) & ~(np.isnan(a) & np.isnan(b))))


failures = 0


def row(source, version, what, figure, good):
    """One line of the table."""
    global failures
    failures += not good
    print(f"{source:18} {version:8} {what:60} {figure:28} {'agrees' if good else 'DIFFERS'}", flush=True)
