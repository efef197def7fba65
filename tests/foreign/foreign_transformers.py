"""transformers' own blocks in float64: whatever the version calls them."""
import numpy as np, torch, transformers
from moe import *

torch.manual_seed(1)
transformers.logging.set_verbosity_error()
rng = np.random.default_rng(1)
D, FF, E, K, N = 64, 48, 8, 2, 32


def compare(name, block, gate_up, down, router, x, prepare=lambda d: None):
    block = block.double().eval()
    for p in block.parameters():
        p.data = torch.from_numpy((rng.standard_normal(tuple(p.shape)) / np.sqrt(p.shape[-1])).astype(np.float32)).double()
    with torch.no_grad():
        y = block(torch.from_numpy(x).double()[None])
    want = (y[0] if isinstance(y, tuple) else y)[0].numpy()
    f = lambda t: np.ascontiguousarray(t.detach().float().numpy())
    gu, dn, r = f(gate_up(block)), f(down(block)), f(router(block))
    desc = moe_desc()
    ok(lib.moe_preset(C.byref(desc), name.encode()))
    desc.d_model, desc.d_ff, desc.n_experts, desc.top_k = D, FF, E, K
    for part, first in (("gate", 0), ("up", 1)):
        m = matrix("f32", gu)
        m.expert_stride, m.offset = 2 * FF * D * 4, first * FF * D * 4
        setattr(desc, part, m)
    desc.down, desc.router.weight = matrix("f32", dn), matrix("f32", r)
    prepare(desc)
    got, _, _ = forward(desc, x)
    err = np.abs(got - want).max() / np.abs(want).max()
    row("transformers", transformers.__version__, f"{type(block).__name__} in float64, {N} tokens", f"error {err:.1e}", err < 1e-6)


x = rng.standard_normal((N, D)).astype(np.float32)
same_names = dict(gate_up=lambda b: b.experts.gate_up_proj, down=lambda b: b.experts.down_proj, router=lambda b: b.gate.weight, x=x)
for model, module, config, block, extra in (
        ("mixtral", "mixtral.modeling_mixtral", "MixtralConfig", "MixtralSparseMoeBlock", dict(intermediate_size=FF, num_local_experts=E)),
        ("qwen3_moe", "qwen3_moe.modeling_qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeSparseMoeBlock", dict(moe_intermediate_size=FF, num_experts=E, norm_topk_prob=True)),
        ("olmoe", "olmoe.modeling_olmoe", "OlmoeConfig", "OlmoeSparseMoeBlock", dict(intermediate_size=FF, num_experts=E))):
    try:
        code = __import__(f"transformers.models.{module}", fromlist=[block])
        made = getattr(code, block)(getattr(transformers, config)(hidden_size=D, num_experts_per_tok=K, **extra))
        compare(model, made, **same_names)
    except (ImportError, AttributeError, TypeError) as e:
        print(f"transformers {transformers.__version__}: {block}: {str(e)[:100]}")
raise SystemExit(failures != 0)
