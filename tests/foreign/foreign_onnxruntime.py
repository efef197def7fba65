"""ONNX Runtime's contrib operator MoE on the CPU, float32."""
import numpy as np, onnx, onnxruntime as ort
from onnx import TensorProto, helper
from moe import *

rng = np.random.default_rng(1)
D, FF, E, N = 64, 96, 8, 24
w = lambda *shape: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def session(op, inputs, **attributes):
    node = helper.make_node(op, list(inputs), ["y"], domain="com.microsoft", **attributes)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT if a.dtype == np.float32 else TensorProto.UINT8, a.shape) for n, a in inputs.items() if n]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, (N, D))
    model = helper.make_model(helper.make_graph([node], "g", infos, [out]),
                              opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    s = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return s.run(None, {n: a for n, a in inputs.items() if n})[0]


for act, code, k in (("relu", 3, 1), ("gelu", 1, 2), ("silu", 0, 2)):
    x, up, down, bias1, bias2 = rng.standard_normal((N, D)).astype(np.float32), w(E, FF, D), w(E, D, FF), w(E, FF), w(E, D)
    logits = rng.standard_normal((N, E)).astype(np.float32)
    desc = moe_desc(d_model=D, d_ff=FF, n_experts=E, top_k=k)
    desc.up, desc.down, desc.router.norm = matrix("f32", up), matrix("f32", down), 1
    desc.up.bias, desc.down.bias = moe_array(type=1, data=at(bias1)), moe_array(type=1, data=at(bias2))
    desc.ffn.ungated, desc.ffn.activation = 1, code
    y, _, _ = forward(desc, x, logits_in=logits)
    try:
        want = session("MoE", {"x": x, "p": logits, "w1": up, "b1": bias1, "w2": down, "b2": bias2}, k=k, activation_type=act, normalize_routing_weights=1)
    except Exception as e:
        print(f"onnxruntime {ort.__version__}: MoE with {act} does not run on the CPU: {str(e).splitlines()[0][:90]}")
        continue
    err = np.abs(y - want).max() / np.abs(want).max()
    row("onnxruntime", ort.__version__, f"MoE, {act}, top {k} of {E}, biases", f"error {err:.1e}", err < 2e-6)

# QMoE: symmetric int8 per row and swiglu as gpt-oss has it (interleaved rows, alpha 1.702, limit 7)
x, logits = rng.standard_normal((N, D)).astype(np.float32), rng.standard_normal((N, E)).astype(np.float32)
q1, q2 = rng.integers(-127, 128, (E, 2 * FF, D)).astype(np.int8), rng.integers(-127, 128, (E, D, FF)).astype(np.int8)
s1, s2 = (rng.random((E, 2 * FF)) / 500 + 1e-3).astype(np.float32), (rng.random((E, D)) / 500 + 1e-3).astype(np.float32)
b1, b2 = w(E, 2 * FF), w(E, D)
desc = moe_desc(d_model=D, d_ff=FF, n_experts=E, top_k=2, compute=F32)
for name, first in (("gate", 0), ("up", 1)):
    m = matrix("int8_channel", q1, scale=("f32", s1))
    m.row_stride, m.offset, m.expert_stride = 2 * D, first * D, 2 * FF * D
    m.scale.row_stride, m.scale.offset, m.scale.expert_stride = 8, 4 * first, 8 * FF
    m.bias = moe_array(type=1, data=at(b1), stride=8, offset=4 * first, expert_stride=8 * FF)
    setattr(desc, name, m)
desc.down, desc.down.bias = matrix("int8_channel", q2, scale=("f32", s2)), moe_array(type=1, data=at(b2))
desc.down.bias = moe_array(type=1, data=at(b2))
desc.router.norm, desc.ffn.activation, desc.ffn.clamp, desc.ffn.limit, desc.ffn.alpha = 1, 5, 1, 7.0, 1.702
y, _, _ = forward(desc, x, logits_in=logits)
try:
    unsigned = lambda q: (q.astype(np.int16) + 128).astype(np.uint8)
    want = session("QMoE", {"x": x, "p": logits, "w1": unsigned(q1), "s1": s1, "b1": b1, "w2": unsigned(q2), "s2": s2, "b2": b2}, k=2, activation_type="swiglu",
                   normalize_routing_weights=1, expert_weight_bits=8, swiglu_fusion=1, activation_alpha=1.702, activation_beta=1.0, swiglu_limit=7.0)
    err = np.abs(y - want).max() / np.abs(want).max()
    row("onnxruntime", ort.__version__, "QMoE, int8 per row, swiglu of gpt-oss, biases", f"error {err:.1e}", err < 2e-5)
except Exception as e:
    print(f"onnxruntime {ort.__version__}: QMoE does not run on the CPU: {str(e).splitlines()[0][:90]}")
raise SystemExit(failures != 0)
