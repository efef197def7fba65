/* moe.h - v0.1.0 - Mixture-of-Experts layers on the CPU - single-header C11 library - MIT licence (see the end)

   WHAT IT IS
   The feed-forward half of every public Mixture-of-Experts transformer (Mixtral, DeepSeek, Qwen, Llama 4, gpt-oss, Grok,
   DBRX, Jamba, Kimi, GLM, Switch, ... back to Jacobs 1991): router, top-k gating, gated experts, shared experts, weighted
   sum. Weights are used where they lie, in the format they were shipped in. Every result is exact to a written contract:
   the same bits for any number of threads and any split of the tokens into calls.

   DO THIS
      #define MOE_IMPLEMENTATION      in exactly one C or C++ file, before
      #include "moe.h"                everywhere else include it without the define
   No compiler flags are needed: the instruction set is chosen at run time. Nothing beyond the C library is used
   (stddef, stdint, string, math). OpenMP is used if MOE_USE_OPENMP is defined and the compiler runs with -fopenmp.

   A COMPLETE EXAMPLE (examples/minimal.c)
      #define MOE_IMPLEMENTATION
      #include "moe.h"
      #include <stdio.h>
      #include <stdlib.h>
      enum { D = 64, FF = 128, E = 8, K = 2, T = 5 };                 // width, expert width, experts, active, tokens
      static float gate[E][FF][D], up[E][FF][D], down[E][D][FF], router[E][D], x[T][D], y[T][D];
      int main(void) {
          float *all[] = {&gate[0][0][0], &up[0][0][0], &down[0][0][0], &router[0][0], &x[0][0]};
          size_t len[] = {E * FF * D, E * FF * D, E * D * FF, E * D, T * D};
          for (int a = 0; a < 5; a++)
              for (size_t i = 0; i < len[a]; i++) all[a][i] = (float)rand() / (float)RAND_MAX - 0.5f;
          moe_desc desc = {0};                                        // zero is "the usual" in every field
          moe_preset(&desc, "mixtral");                               // softmax, top-k, renormalised, SiLU
          desc.d_model = D, desc.d_ff = FF, desc.n_experts = E, desc.top_k = K;
          desc.gate.format = desc.up.format = desc.down.format = desc.router.weight.format = MOE_FORMAT_F32;
          desc.gate.data = gate, desc.up.data = up, desc.down.data = down, desc.router.weight.data = router;
          moe_layer layer;
          moe_error error;
          if (moe_layer_init(&layer, &desc, &error)) return printf("%s: %s\n", error.field, moe_status_text(error.status)), 1;
          moe_io io = {0};
          io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = T;
          io.workspace_size = moe_workspace_size(&layer, T, 1);
          io.workspace = malloc(io.workspace_size);
          if (moe_forward(&layer, &io)) return 1;
          printf("y[0][0..3] = %g %g %g %g on the %s tier\n", (double)y[0][0], (double)y[0][1], (double)y[0][2], (double)y[0][3],
                 moe_tier_name(moe_layer_tier(&layer)));
          free(io.workspace);
      }

   WHAT IT DOES NOT DO
   It does not allocate, start threads, print, abort, read files or the environment, or keep mutable globals. It does not
   load checkpoints (examples/checkpoint.h does), compute attention or norms around the block, train, or use a GPU.
   Refused with a message: GroveMoE's adjugate experts, JetMoE's mixture of attention, Soft MoE.

   CONCEPTS
   token     one row of x.                        expert   one feed-forward network.
   slot      one (token, expert) pair.            row      one output feature of a matrix;  k  one input feature.
   tier      an instruction-set level.            compute  the arithmetic of the activations: F32, BF16 or Q8.
   phase     a step that every worker must finish before the next begins.      task  a piece of a phase.
   desc      what the caller knows of the layer, all-zero but for the required fields.
   layer     a validated desc: a plain value, immutable, shareable by threads; pointers in it are read during calls only.
   io        one call: rows in, rows out, workspace.
   Shapes are written [tokens][d_model], the last dimension is contiguous. Strides are in bytes. 0 strides mean "tight".

   NUMERICS (the contract; the plain-C code of the section `reference` is its definition)
   For one layer, tier set and compute, a token's output has the same bits for any number of workers, order of tasks,
   split of the tokens into calls, and company (capacity limits, which look at the whole call, excepted).
   F32 and Q8 compute have the same bits on every tier, F32: 16 accumulators by k mod 16, each one chain of fused
   multiply-adds in ascending k, then a halving tree (8, 4, 2, 1), then + 0.0f. Q8: activations as int8 with one scale per 32
   values, integer dot products, 8 accumulators by block mod 8, one chain each, tree (4, 2, 1), + 0.0f.
   BF16 uses the processor's bf16 dot products: the same bits within a tier, a bound across tiers.
   Experts are summed in ascending id by one owner per output element. A NaN or Inf in one token never reaches another.
   Router logits, scores, selection, norms and shared gates are always F32. NaN logits count as -Inf, ties go to the
   lowest id, selected ids are always distinct and in range. Suspended under -ffast-math (only the routing guards stay)
   and where FLT_EVAL_METHOD is not 0. The floating-point environment is not changed and assumed to be the default.

   CONFIGURATION (define before including; all optional)
   MOE_IMPLEMENTATION   emit the code here.                MOE_STATIC     everything static: several copies may coexist.
   MOE_API              linkage of public functions.       MOE_ASSERT(x)  checks of moe.h's own logic; default: none.
   MOE_USE_OPENMP       run phases with OpenMP when io->parallel is NULL and n_tasks > 1.
   MOE_NO_SIMD          only the portable C tier. MOE_NO_AVX2, MOE_NO_AVX512, MOE_NO_VNNI, MOE_NO_BF16, MOE_NO_AMX,
   MOE_NO_NEON          leave out single tiers (a compiler too old for one leaves it out by itself).
*/
#ifndef MOE_H
#define MOE_H

#include <stddef.h>
#include <stdint.h>

#define MOE_VERSION_MAJOR 0
#define MOE_VERSION_MINOR 1
#define MOE_VERSION_PATCH 0
#define MOE_VERSION (MOE_VERSION_MAJOR * 10000 + MOE_VERSION_MINOR * 100 + MOE_VERSION_PATCH)

#ifndef MOE_API
#ifdef MOE_STATIC
#if defined(__GNUC__) || defined(__clang__)
#define MOE_API static __attribute__((unused))
#else
#define MOE_API static
#endif
#else
#define MOE_API extern
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Lists: the numbers are stable within a minor version, 0 is never a valid format or type ---------------------- */

// clang-format off
/* X(id, name, elements per block, bytes per block, scale rows, scale columns): the last two are the default shape of a
   scale that lives in its own tensor (moe_matrix.scale), 0 0 = the format carries its scales in its blocks.
   GGUF's block formats, then the layouts of Hugging Face checkpoints: nibbles low first (2j, 2j+1). */
#define MOE_FORMATS(X)                                                                                                 \
    X(F32,           "f32",            1,   4,   0,   0)                                                               \
    X(F16,           "f16",            1,   2,   0,   0)                                                               \
    X(BF16,          "bf16",           1,   2,   0,   0)                                                               \
    X(Q8_0,          "q8_0",          32,  34,   0,   0)                                                               \
    X(Q4_0,          "q4_0",          32,  18,   0,   0)                                                               \
    X(Q4_1,          "q4_1",          32,  20,   0,   0)                                                               \
    X(Q5_0,          "q5_0",          32,  22,   0,   0)                                                               \
    X(Q5_1,          "q5_1",          32,  24,   0,   0)                                                               \
    X(Q2_K,          "q2_K",         256,  84,   0,   0)                                                               \
    X(Q3_K,          "q3_K",         256, 110,   0,   0)                                                               \
    X(Q4_K,          "q4_K",         256, 144,   0,   0)                                                               \
    X(Q5_K,          "q5_K",         256, 176,   0,   0)                                                               \
    X(Q6_K,          "q6_K",         256, 210,   0,   0)                                                               \
    X(IQ4_NL,        "iq4_nl",        32,  18,   0,   0)                                                               \
    X(IQ4_XS,        "iq4_xs",       256, 136,   0,   0)                                                               \
    X(MXFP4,         "mxfp4",         32,  17,   0,   0)                                                               \
    X(NVFP4,         "nvfp4",         64,  36,   0,   0)                                                               \
    X(MXFP4_HF,      "mxfp4_hf",      32,  16,   1,  32)                                                               \
    X(NVFP4_HF,      "nvfp4_hf",      16,   8,   1,  16)                                                               \
    X(MXFP8,         "mxfp8",         32,  32,   1,  32)                                                               \
    X(FP8_BLOCK,     "fp8_block",      1,   1, 128, 128)                                                               \
    X(FP8_CHANNEL,   "fp8_channel",    1,   1,   1, UINT32_MAX)                                                        \
    X(INT8_CHANNEL,  "int8_channel",   1,   1,   1, UINT32_MAX)                                                        \
    X(INT4_GROUP,    "int4_group",     8,   4,   1, 128)
/* X(id, name, element bytes): scalars. E8M0 is 2^(b-127), E4M3 the fn variant; U4X8 holds the 4-bit zero points of 8
   consecutive rows in a little-endian 32-bit word, lowest row first (compressed-tensors). */
#define MOE_TYPES(X)                                                                                                   \
    X(F32, "f32", 4) X(F16, "f16", 2) X(BF16, "bf16", 2) X(E8M0, "e8m0", 1) X(E4M3, "e4m3", 1) X(U8, "u8", 1)         \
    X(U4X8, "u4x8", 4)
/* X(id, name, text) */
#define MOE_STATUSES(X)                                                                                                \
    X(OK,                "ok")                                                                                         \
    X(ERR_NULL,          "a required pointer is NULL")                                                                 \
    X(ERR_DESC,          "the struct was not zeroed before it was filled (canary)")                                    \
    X(ERR_SIZE,          "a size is zero or out of range")                                                             \
    X(ERR_FORMAT,        "unknown or unsuitable weight format")                                                        \
    X(ERR_TYPE,          "unknown or unsuitable element type")                                                         \
    X(ERR_KNOB,          "a knob has an unknown value or contradicts another")                                         \
    X(ERR_BLOCK,         "the row length is no multiple of the format's block")                                        \
    X(ERR_STRIDE,        "a stride is smaller than what it must step over")                                            \
    X(ERR_COMPUTE,       "this compute does not exist for the format, row length or tier")                             \
    X(ERR_TIER,          "none of the asked-for tiers exists on this machine")                                         \
    X(ERR_OVERFLOW,      "sizes overflow the address space")                                                           \
    X(ERR_WORKSPACE,     "the workspace is too small")                                                                 \
    X(ERR_ALIAS,         "output overlaps input in part (only y == x with equal type and stride is allowed)")          \
    X(ERR_EXPERT_ID,     "an expert id is out of range")                                                               \
    X(ERR_EXPERT_ABSENT, "a token needs an expert whose pointer is NULL")                                              \
    X(ERR_TOKEN_ID,      "a token id is outside the routing table, or none was given")                                 \
    X(ERR_PHASE,         "phase, ith or nth is out of range")                                                          \
    X(ERR_MODEL,         "unknown model family")                                                                       \
    X(ERR_VALUE,         "a value that must be finite is not")                                                         \
    X(ERR_UNSUPPORTED,   "this combination is not supported")
/* X(id, name): bits of moe_desc.tiers; a tier builds on those of its architecture above it. */
#define MOE_TIERS(X)                                                                                                   \
    X(C, "c") X(AVX2, "avx2") X(AVXVNNI, "avxvnni") X(AVX512, "avx512") X(VNNI, "vnni") X(AVX512BF16, "avx512bf16")    \
    X(AMX, "amx") X(NEON, "neon") X(DOTPROD, "dotprod") X(I8MM, "i8mm") X(NEONBF16, "neonbf16")
// clang-format on

typedef enum moe_format {
    MOE_FORMAT_NONE,
#define MOE_X(id, name, n, bytes, rows, cols) MOE_FORMAT_##id,
    MOE_FORMATS(MOE_X)
#undef MOE_X
        MOE_FORMAT_COUNT
} moe_format;
typedef enum moe_type {
    MOE_TYPE_NONE,
#define MOE_X(id, name, bytes) MOE_TYPE_##id,
    MOE_TYPES(MOE_X)
#undef MOE_X
        MOE_TYPE_COUNT
} moe_type;
typedef enum moe_status {
#define MOE_X(id, text) MOE_##id,
    MOE_STATUSES(MOE_X)
#undef MOE_X
        MOE_STATUS_COUNT
} moe_status;
typedef enum moe_tier {
#define MOE_X(id, name) MOE_TIER_##id,
    MOE_TIERS(MOE_X)
#undef MOE_X
        MOE_TIER_COUNT
} moe_tier;
#define MOE_TIER_BIT(tier) (1u << (uint32_t)(tier))

/* The arithmetic of the activations. DEFAULT: f32, f16 -> F32; bf16, fp8 -> BF16 where the tier has a bf16 dot product,
   else F32; 4- to 8-bit blocks -> Q8. F32 is exact in the activations, runs everywhere and with every format. */
typedef enum moe_compute { MOE_COMPUTE_DEFAULT, MOE_COMPUTE_F32, MOE_COMPUTE_BF16, MOE_COMPUTE_Q8, MOE_COMPUTE_COUNT } moe_compute;

/* ---- Where the weights lie ----------------------------------------------------------------------------------------- */

/* A vector per expert (bias, per-expert scale, norm): element i of expert e is at
   (expert ? expert[e] : (char *)data + e * expert_stride) + offset + i * stride.  type F32, F16 or BF16; any alignment. */
typedef struct moe_array {
    uint32_t type;             /* moe_type; MOE_TYPE_NONE = absent                                   */
    const void *data;          /* of all experts, or                                                  */
    const void *const *expert; /* [n_experts] one pointer each                                        */
    size_t offset;             /* bytes, added to either                                              */
    size_t stride;             /* bytes between elements; 0 = tight                                   */
    size_t expert_stride;      /* bytes between experts;  0 = tight                                   */
} moe_array;

/* Scales or zero points that live apart from the weights: one value per block of rows x cols weights. */
typedef struct moe_grid {
    uint32_t type;             /* scales: F32 F16 BF16 E8M0 E4M3; zero points: U8, U4X8; NONE = absent */
    const void *data;          /* as in moe_array                                                     */
    const void *const *expert;
    size_t offset, row_stride; /* bytes between rows of blocks (U4X8: rows of words); 0 = tight       */
    size_t expert_stride;
    uint32_t rows, cols;       /* weights per value; 0 = the format's own; cols UINT32_MAX = whole row */
} moe_grid;

/* One projection of every expert, [expert][row][k], never copied. Gate and up are always two views: interleaved rows are the
   same base with twice the row stride, concatenated rows an offset, [in, out] storage a k_stride. */
typedef struct moe_matrix {
    uint32_t format;           /* moe_format; NONE = absent                                           */
    const void *data;          /* of all experts, or                                                  */
    const void *const *expert; /* [n_experts] one pointer each                                        */
    size_t offset;             /* bytes, added to either                                              */
    size_t row_stride;         /* bytes between rows;    0 = tight                                    */
    size_t expert_stride;      /* bytes between experts; 0 = tight                                    */
    size_t k_stride;           /* bytes between inputs of a row; 0 = consecutive; F32 F16 BF16 only   */
    moe_grid scale, zero;      /* where the format keeps them apart                                   */
    moe_array scale2;          /* one more factor for a whole expert (NVFP4, fp8 per tensor)          */
    moe_array bias;            /* [rows]                                                              */
    uint32_t scale2_divides;   /* 1: the weights are divided by scale2 (compressed-tensors)           */
} moe_matrix;

/* ---- What the layer computes: the names are those of the literature; zero is "the usual" ---------------------------- */

typedef enum moe_score { MOE_SCORE_SOFTMAX, MOE_SCORE_SIGMOID, MOE_SCORE_SQRT_SOFTPLUS, MOE_SCORE_COUNT } moe_score;
typedef enum moe_select_on { MOE_SELECT_SCORE, MOE_SELECT_LOGIT, MOE_SELECT_COUNT } moe_select_on;
typedef enum moe_group {
    MOE_GROUP_NONE,
    MOE_GROUP_MAX,       /* keep the topk_group groups with the largest best key   (DeepSeek-V2)      */
    MOE_GROUP_TOP2_SUM,  /* ... with the largest sum of their two best keys        (DeepSeek-V3)      */
    MOE_GROUP_PER_GROUP, /* the best top_k / n_group of every group                (InternS1-Pro)     */
    MOE_GROUP_COUNT
} moe_group;
typedef enum moe_pick { MOE_PICK_TOP_K, MOE_PICK_TABLE, MOE_PICK_SPARSEMIXER, MOE_PICK_COUNT } moe_pick;
typedef enum moe_weight_from {
    MOE_WEIGHT_SCORE,
    MOE_WEIGHT_SOFTMAX_SELECTED, /* softmax over the selected logits (gpt-oss, Granite)               */
    MOE_WEIGHT_BIASED,           /* score + selection bias: Kimi-Linear's own code, for parity only   */
    MOE_WEIGHT_COUNT
} moe_weight_from;
typedef enum moe_norm { MOE_NORM_NONE, MOE_NORM_SUM, MOE_NORM_SUM_WITH_SHARED, MOE_NORM_COUNT } moe_norm;
typedef enum moe_drop { MOE_DROP_ZERO, MOE_DROP_PASS_THROUGH, MOE_DROP_COUNT } moe_drop;

/* l = W x + bias; l = softcap * tanh(l / softcap); s = score(l); key = (s or l) + select_bias; groups; ids = pick(key);
   w = s[ids]; w /= max(sum(w) + norm_eps, norm_min); w *= routed_scale * expert_scale[id].
   Rows of the router: n_experts, then n_zero_experts, then shared.count if shared.gate_kind is ROUTER_SINK. */
typedef struct moe_router {
    moe_matrix weight;        /* [rows][d_model], any format (F32 compute)                            */
    moe_array bias;           /* [rows] part of the logit                             (gpt-oss)       */
    moe_array select_bias;    /* [n_experts + n_zero] selection only, never the weight (DeepSeek-V3)  */
    moe_array expert_scale;   /* [n_experts + n_zero] factor on the final weight      (Gemma-4)       */
    moe_array input_scale;    /* [d_model]: router input = rms_norm(x) * input_scale / sqrt(d_model)  */
    float input_norm_eps;     /* of that norm                                          (Gemma-4)      */
    const void *table;        /* PICK_TABLE: [table_rows][top_k] expert ids by token id (DeepSeek-V4) */
    size_t table_stride;      /* bytes between its rows; 0 = tight                                    */
    uint32_t table_rows, table_bytes; /* rows; bytes per id: 4 (also 0) or 8                          */
    uint32_t score, select_on, pick, weight_from, norm; /* moe_score, moe_select_on, ...              */
    uint32_t group, n_group, topk_group, group_mask_zero; /* moe_group; mask 0 instead of -Inf: legacy */
    uint32_t norm_skip_k1;    /* 1: no normalisation if top_k == 1                                    */
    uint32_t logit_bf16;      /* 1: round the logits to bf16, as some reference code does             */
    float softcap;            /* 0 = none                                                             */
    float jitter;             /* sparsemixer's threshold; 0 = 0.01                     (Phi-3.5-MoE)  */
    float norm_eps, norm_min; /* added to, and floor of, the sum                                      */
    float routed_scale;       /* 0 = 1                                                                */
    /* Capacity (Switch, GShard, NLLB): places per expert in one call; the result depends on the whole call. */
    uint32_t capacity;        /* a count; 0 = none                                                    */
    float capacity_factor;    /* or ceil(factor * n_tokens); 0 = none                                 */
    uint32_t capacity_drop;   /* moe_drop: a dropped slot contributes 0, or w * x                     */
    uint32_t capacity_by_score, capacity_norm_after; /* queue by best score; normalise after dropping */
    /* Adaptive computation (after normalisation, not renormalised): slots beyond are dropped and counted as saved. */
    float drop_below;         /* drop weights below this share of the token's largest; 0 = off        */
    float top_p;              /* keep the best slots up to this share of the weight; 0 = off          */
    uint32_t min_keep;        /* but keep at least this many; 0 = 1                                   */
} moe_router;

typedef enum moe_activation {
    MOE_ACT_SILU,
    MOE_ACT_GELU_TANH,
    MOE_ACT_GELU_ERF,
    MOE_ACT_RELU,
    MOE_ACT_RELU2, /* relu(x)^2                                                           (Nemotron)  */
    MOE_ACT_OAI,   /* g * sigmoid(alpha g) * (u + 1)                                      (gpt-oss)   */
    MOE_ACT_SITU,  /* beta tanh(g/beta) sigmoid(g) * linear_beta tanh(u/linear_beta)      (Kimi-K3)   */
    MOE_ACT_COUNT
} moe_activation;
typedef enum moe_clamp {
    MOE_CLAMP_NONE,
    MOE_CLAMP_PRE,  /* gate <= limit, |up| <= limit, then the activation     (gpt-oss, DeepSeek-V4)   */
    MOE_CLAMP_POST, /* act(gate) <= limit, |up| <= limit                     (Step-3.5, Ling-3)       */
    MOE_CLAMP_COUNT
} moe_clamp;
typedef enum moe_weight_at { MOE_WEIGHT_AT_OUTPUT, MOE_WEIGHT_AT_INPUT, MOE_WEIGHT_AT_HIDDEN, MOE_WEIGHT_AT_COUNT } moe_weight_at;
typedef enum moe_zero { MOE_ZERO_IDENTITY, MOE_ZERO_NOTHING, MOE_ZERO_COUNT } moe_zero;

/* y_e = down(act(gate h) * (up h)); y = combine_scale * (expert_out_scale * sum w_e y_e + shared) + out_bias */
typedef struct moe_ffn {
    uint32_t activation;     /* moe_activation                                                        */
    uint32_t ungated;        /* 1: y_e = down(act(up h)), there is no gate matrix    (Switch)         */
    uint32_t clamp;          /* moe_clamp                                                             */
    uint32_t weight_at;      /* INPUT: w multiplies the expert's input               (Llama-4)        */
    float limit;             /* of the clamp; 0 = none                                                */
    float alpha;             /* OAI;  0 = 1.702                                                       */
    float beta, linear_beta; /* SITU; 0 = 4, 25                                                       */
    float expert_out_scale;  /* 0 = 1                                                (NLLB)           */
    float combine_scale;     /* 0 = 1                                                (Cohere2, Grok-2) */
    moe_array out_bias;      /* [d_model]                                            (JetMoE)         */
} moe_ffn;

typedef enum moe_shared_gate {
    MOE_SHARED_PLAIN,
    MOE_SHARED_SIGMOID,     /* times sigmoid(g . x)                                    (Qwen2-MoE)    */
    MOE_SHARED_SOFTMAX2,    /* routed and shared weighted by softmax(G x + b), G [2][d] (Klear)       */
    MOE_SHARED_ROUTER_SINK, /* every shared expert has a row in the router             (Inkling)      */
    MOE_SHARED_COUNT
} moe_shared_gate;

/* Shared experts see every token. count FFNs of width d_ff: usually one whose width is the sum of all. */
typedef struct moe_shared {
    uint32_t count;            /* 0 = 1 if d_ff > 0                                                   */
    uint32_t d_ff;             /* 0 = no shared experts                                               */
    uint32_t gate_kind;        /* moe_shared_gate                                                     */
    uint32_t clamp;            /* moe_clamp, with its own limit; activation and gating as the ffn's   */
    float limit;
    moe_matrix gate, up, down; /* [count] experts; formats of their own                               */
    moe_matrix gate_weight;    /* SIGMOID [1][d_model], SOFTMAX2 [2][d_model] with bias               */
} moe_shared;

/* Experts that work in a narrower space: h = in x; y = out (norm(sum)) (Nemotron-3 Super, Kimi-K3). */
typedef struct moe_latent {
    uint32_t d;         /* width of the experts' input and output; 0 = d_model, no projections        */
    float norm_eps;     /* > 0: RMSNorm of the routed sum with weight `norm` before `out`             */
    moe_matrix in, out; /* [d][d_model], [d_model][d]                                                 */
    moe_array norm;     /* [d]; NONE with norm_eps > 0 = ones                                         */
} moe_latent;

#define MOE_CANARY 0u

/* A layer. Required: d_model, d_ff, n_experts, top_k, up, down, gate (unless ffn.ungated), router.weight (unless every call
   brings logits or ids). All-zero is valid for everything else. */
typedef struct moe_desc {
    uint32_t begin_;                      /* canary: leave 0                                          */
    uint32_t d_model, d_ff, n_experts, top_k;
    uint32_t n_zero_experts, zero_kind;   /* ids from n_experts on: moe_zero        (LongCat-Flash)   */
    uint32_t expert_first, expert_count;  /* this process holds only these (matrices too); 0 = all    */
    moe_matrix gate, up, down;            /* [d_ff][in], [d_ff][in], [in][d_ff]; in = latent.d or d_model */
    moe_router router;
    moe_ffn ffn;
    moe_shared shared;
    moe_latent latent;
    uint32_t compute;                     /* moe_compute of the experts                               */
    uint32_t tiers;                       /* MOE_TIER_BIT mask of allowed tiers; 0 = all; c is always in */
    uint32_t end_;                        /* canary: leave 0                                          */
} moe_desc;

/* ---- One call ------------------------------------------------------------------------------------------------------- */

/* What was wrong. field is a static string naming the struct member; got and want where numbers explain it. */
typedef struct moe_error {
    moe_status status;
    const char *field;
    uint64_t got, want;
} moe_error;

/* Runs task(arg, i) once for every i < n, in any order, on any threads, and returns when all are done. Tasks never wait for
   each other, so a serial loop, OpenMP, GCD, TBB and a private pool are all correct. */
typedef struct moe_parallel {
    void (*run)(void *user, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg);
    void *user;
} moe_parallel;

/* Load statistics, added up over calls; the caller zeroes the struct and owns the arrays (each may be NULL). */
typedef struct moe_stats {
    uint64_t *tokens;         /* [n_experts + n_zero] slots computed per expert                        */
    double *weight;           /* [n_experts + n_zero] sum of their weights                             */
    double *score;            /* [n_experts + n_zero] sum of all scores (for the auxiliary loss)       */
    uint64_t n_tokens, slots; /* tokens and slots seen                                                 */
    uint64_t dropped;         /* slots over capacity                                                   */
    uint64_t saved;           /* slots dropped by drop_below or top_p                                  */
    uint64_t skipped;         /* slots given as -1                                                     */
    double z;                 /* sum over tokens of logsumexp(logits)^2                                */
} moe_stats;

/* Per-call pointers for streamed experts; arrays [n_experts]; a NULL array means the desc's own. A NULL entry is an absent
   expert: MOE_ERR_EXPERT_ABSENT if a token needs it. Index: MOE_GATE, MOE_UP, MOE_DOWN. */
enum { MOE_GATE, MOE_UP, MOE_DOWN };
typedef struct moe_experts {
    const void *const *data[3], *const *scale[3], *const *zero[3], *const *scale2[3], *const *bias[3];
} moe_experts;

typedef struct moe_io {
    const void *x;            /* [n_tokens][d_model]                                                   */
    void *y;                  /* [n_tokens][d_model]; y == x with equal type and stride is allowed     */
    uint32_t x_type, y_type;  /* F32, BF16, F16                                                        */
    size_t x_stride, y_stride;/* bytes between rows; 0 = tight                                         */
    size_t n_tokens;          /* 0 is fine: nothing is touched                                         */
    uint32_t y_add;           /* 1: add to y instead of storing                                        */
    const void *router_x;     /* what the router reads; NULL = x; type as x                            */
    size_t router_x_stride;
    const int32_t *token_ids; /* [n_tokens] for PICK_TABLE                                             */
    const float *logits_in;   /* [n_tokens][router rows]: skip the router's matrix                     */
    float *logits_out;        /* [n_tokens][router rows], as W x + bias (before softcap)               */
    const int32_t *ids_in;    /* [n_tokens][k] the caller's experts; -1 = skip; repeats are summed     */
    const float *weights_in;  /* [n_tokens][k] with ids_in; NULL = routing weights of those ids        */
    int32_t *ids_out;         /* [n_tokens][k] rank order; a dropped slot keeps its id, its weight is 0 */
    float *weights_out;       /* [n_tokens][k]                                                         */
    size_t ids_stride, weights_stride; /* bytes between rows of all four; 0 = tight                    */
    uint32_t k;               /* slots per token with ids_in; 0 = top_k                                */
    float *slots_out;         /* [n_tokens][k][d_model] every slot's expert output, unweighted (a skipped or dropped
                                 slot: zeros), instead of y; the width is latent.d if latent; see moe_finish  */
    const moe_experts *experts; /* per-call pointers                                                   */
    void *workspace;          /* any alignment; contents need not be kept between calls                */
    size_t workspace_size;
    uint32_t n_tasks;         /* pieces per phase; 0 = 1. Use 1x the workers, 3-4x with a stealing pool */
    const moe_parallel *parallel; /* NULL = a serial loop (or OpenMP, see above)                       */
    moe_stats *stats;         /* NULL = none                                                           */
    moe_error *error;         /* NULL = none                                                           */
} moe_io;

/* A validated layer: a value to copy and share; treat the members as private. */
struct moei_arith;
typedef struct moei_bank {    /* one set of experts: the routed ones, or the shared ones */
    moe_matrix gate, up, down;
    uint32_t n_experts, d_in, d_ff, clamp;
    float limit;
    const struct moei_arith *in, *mid; /* arithmetic of gate and up, of down */
} moei_bank;
typedef struct moe_layer {
    moe_desc desc;            /* with every 0 that means something else resolved                       */
    moei_bank routed, shared;
    const struct moei_arith *router, *latent_in, *latent_out;
    uint32_t router_rows, n_ids, has_gate, tier;
} moe_layer;

/* ---- API 1: set up -------------------------------------------------------------------------------------------------- */

/* Fills the knobs of a model family (router, ffn, shared.gate_kind, ...; no sizes, no weights), by Hugging Face model_type or
   GGUF architecture name, case-insensitive. Call it on a zeroed desc, then set what the checkpoint's config says.
   MOE_ERR_MODEL if the family is unknown (moe_preset_name lists them), MOE_ERR_UNSUPPORTED if it can't be expressed. */
MOE_API moe_status moe_preset(moe_desc *desc, const char *model_type);
MOE_API const char *moe_preset_name(uint32_t index); /* NULL after the last */

/* Validates the whole desc once and chooses kernels. Thread-safe. The layer is written on success only. error may be NULL. */
MOE_API moe_status moe_layer_init(moe_layer *layer, const moe_desc *desc, moe_error *error);

/* Bytes of workspace: moe_workspace_size reads each weight once per call; moe_workspace_min is the least that works
   (tokens are then processed in blocks). Anything between is used. SIZE_MAX on overflow. */
MOE_API size_t moe_workspace_size(const moe_layer *layer, size_t n_tokens, uint32_t n_tasks);
MOE_API size_t moe_workspace_min(const moe_layer *layer, size_t n_tokens, uint32_t n_tasks);

/* ---- API 2: run. Thread-safe for distinct workspaces and outputs. On error no output was touched. ------------------ */

MOE_API moe_status moe_forward(const moe_layer *layer, const moe_io *io); /* the whole layer                         */
MOE_API moe_status moe_route(const moe_layer *layer, const moe_io *io);   /* ids_out, weights_out, logits_out only   */

/* Routing of given logits [n_tokens][rows], without a layer. Only the knobs, biases and table of desc are used (d_model, d_ff
   and matrices may be 0). ids, weights [n_tokens][top_k]; token_ids for PICK_TABLE, else NULL; capacity is not applied. */
MOE_API moe_status moe_select(const moe_desc *desc, const float *logits, size_t n_tokens, const int32_t *token_ids, int32_t *ids,
                              float *weights, moe_error *error);

/* After the partial sums of several processes (expert_count < n_experts) were added up: in io->x the block's input, in
   `sums` [n_tokens][latent.d or d_model] f32 the total; adds what comes once: latent out, shared experts, scale, bias. */
MOE_API moe_status moe_finish(const moe_layer *layer, const moe_io *io, const float *sums);

/* For engines whose own workers run in step: every worker calls each phase p = 0 .. moe_phase_count - 1 with its (ith, nth),
   nth <= io->n_tasks, with the engine's barrier between phases. The same io (by value) for all. An error is returned by the
   phase that finds it and by all later ones. The count depends on layer, n_tokens, n_tasks and workspace size only. */
MOE_API uint32_t moe_phase_count(const moe_layer *layer, const moe_io *io);
MOE_API moe_status moe_phase_run(const moe_layer *layer, const moe_io *io, uint32_t phase, uint32_t ith, uint32_t nth);

/* ---- API 3: ask ----------------------------------------------------------------------------------------------------- */

typedef struct moe_counts { /* of one layer; a dense equivalent is an FFN with all experts' width */
    uint64_t params_total, params_active, bytes_total, bytes_active; /* active: read for one token     */
    uint64_t flops_token, flops_dense;                               /* multiply-add = 2               */
} moe_counts;
typedef struct moe_balance { /* what a moe_stats says */
    double imbalance; /* largest load / mean load: 1 is perfect                                        */
    double variation; /* standard deviation / mean                                                     */
    double entropy;   /* of the load, 1 = uniform, 0 = a single expert                                 */
    double aux_loss;  /* Switch Transformers: E * sum(load share * mean score)                         */
    double z_loss;    /* ST-MoE: mean of logsumexp(logits)^2                                           */
} moe_balance;

MOE_API uint32_t moe_version(void);                    /* MOE_VERSION of the implementation            */
MOE_API size_t moe_sizeof(const char *struct_name);    /* "moe_desc", ...: for bindings; 0 if unknown  */
MOE_API const char *moe_status_text(moe_status status);
MOE_API const char *moe_format_name(uint32_t format);  /* "q4_K"; "?" if unknown                       */
MOE_API const char *moe_tier_name(uint32_t tier);
MOE_API const char *moe_compute_name(uint32_t compute);
MOE_API uint32_t moe_format_by_name(const char *name); /* case-insensitive; MOE_FORMAT_NONE if unknown */
MOE_API uint32_t moe_tier_by_name(const char *name);   /* MOE_TIER_COUNT if unknown                    */
MOE_API uint32_t moe_compute_by_name(const char *name);/* MOE_COMPUTE_COUNT if unknown                 */
MOE_API uint32_t moe_tiers(void);                      /* mask of what this build and machine can run  */
MOE_API uint32_t moe_tier_mask(uint32_t tier);         /* the tier and those it builds on: for desc.tiers */
MOE_API int moe_enable_amx(void);                      /* asks the kernel (process-wide); 1 = granted  */
MOE_API uint32_t moe_layer_tier(const moe_layer *layer);
MOE_API uint32_t moe_layer_compute(const moe_layer *layer, uint32_t matrix); /* MOE_GATE, MOE_UP, MOE_DOWN */
MOE_API void moe_layer_counts(const moe_layer *layer, moe_counts *counts);
MOE_API void moe_stats_balance(const moe_stats *stats, uint32_t n_experts, moe_balance *balance);

/* ---- API 4: weights -------------------------------------------------------------------------------------------------- */

/* Bytes of one tight row of k weights (without scales that live apart); 0 if k is no multiple of the block. */
MOE_API size_t moe_row_bytes(uint32_t format, size_t k);
/* Rows [row, row + n_rows) of one expert as exact f32 [n_rows][k], every scale applied. */
MOE_API moe_status moe_dequantize(const moe_matrix *matrix, uint32_t expert, size_t n_experts, size_t rows, size_t k, size_t row,
                                  size_t n_rows, float *out);
/* f32 [n_rows][k] to F32, F16, BF16, Q8_0, Q4_0, MXFP4 or (scale 1) FP8_CHANNEL rows, rounded as the formats' reference
   quantisers do; other formats: MOE_ERR_UNSUPPORTED. */
MOE_API moe_status moe_quantize(uint32_t format, const float *src, size_t n_rows, size_t k, void *dst);
/* Checks every scale of untrusted weights (all experts) for NaN and Inf: MOE_ERR_VALUE with the place in error. */
MOE_API moe_status moe_validate(const moe_matrix *matrix, size_t n_experts, size_t rows, size_t k, moe_error *error);

#ifdef __cplusplus
}
#endif
#endif /* MOE_H */

#ifdef MOE_IMPLEMENTATION
#ifndef MOEI_ONCE
#define MOEI_ONCE

/* ==== >>config: compilers, targets, small helpers =====================================================================
   Every tier's functions carry their target attribute themselves, so no compiler flag is needed and nothing of a tier can
   leak into portable code. Sections below: numerics formats reference c avx2 avx512 vnni bf16 neon cpu choose validate
   route layout phases api presets. Each may call what stands above it. */
#include <string.h>
#include <math.h>

#ifndef MOE_ASSERT
#define MOE_ASSERT(x) ((void)0)
#endif

#if defined(__GNUC__) || defined(__clang__)
#define MOEI_UNUSED __attribute__((unused))
#define MOEI_FORCE static inline __attribute__((always_inline, unused))
#define MOEI_NOINLINE __attribute__((noinline))
#define MOEI_TARGET(s) __attribute__((target(s)))
#define MOEI_PREFETCH(p) __builtin_prefetch(p)
#else
#define MOEI_UNUSED
#define MOEI_FORCE static __forceinline
#define MOEI_NOINLINE
#define MOEI_TARGET(s)
#define MOEI_PREFETCH(p) ((void)(p))
#endif
#if defined(__clang__)
#define MOEI_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define MOEI_UNROLL _Pragma("GCC unroll 32")
#else
#define MOEI_UNROLL
#endif
#define MOEI_COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* Which tiers this compiler can build. */
#if !defined(MOE_NO_SIMD) && (defined(__x86_64__) || defined(_M_X64)) &&                                                 \
    (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 9) || defined(_MSC_VER))
#include <immintrin.h>
#ifndef MOE_NO_AVX2
#define MOEI_HAVE_AVX2 1
#ifndef MOE_NO_AVX512
#define MOEI_HAVE_AVX512 1
#ifndef MOE_NO_VNNI
#define MOEI_HAVE_VNNI 1
#endif
#if !defined(MOE_NO_BF16) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 10))
#define MOEI_HAVE_AVX512BF16 1
#endif
#endif
#endif
#endif
#if !defined(MOE_NO_SIMD) && !defined(MOE_NO_NEON) && defined(__aarch64__) && !defined(__AARCH64EB__)
#include <arm_neon.h>
#define MOEI_HAVE_NEON 1
#endif
#ifndef MOEI_HAVE_AVX2
#define MOEI_HAVE_AVX2 0
#endif
#ifndef MOEI_HAVE_AVX512
#define MOEI_HAVE_AVX512 0
#endif
#ifndef MOEI_HAVE_VNNI
#define MOEI_HAVE_VNNI 0
#endif
#ifndef MOEI_HAVE_AVX512BF16
#define MOEI_HAVE_AVX512BF16 0
#endif
#ifndef MOEI_HAVE_NEON
#define MOEI_HAVE_NEON 0
#endif
#define MOEI_AVX2 MOEI_TARGET("avx2,fma,f16c")
#define MOEI_AVX512 MOEI_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define MOEI_VNNI MOEI_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define MOEI_BF16 MOEI_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

#ifdef __cplusplus
extern "C" {
#endif

/* ==== >>numerics: conversions, fma, exp ================================================================================
   Scalar definitions that every tier must reproduce bit for bit. No product feeds an add except through moei_fma: compilers
   contract a * b + c wherever they may. */

MOEI_FORCE uint32_t moei_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
MOEI_FORCE float moei_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }

/* True for NaN even under -ffast-math. */
MOEI_FORCE int moei_is_nan(float f) { return (moei_bits(f) & 0x7fffffffu) > 0x7f800000u; }
MOEI_FORCE int moei_is_finite(float f) { return (moei_bits(f) & 0x7f800000u) != 0x7f800000u; }

/* Fused multiply-add. Where the target has no fast one, libm's is slow (a call), so: the product of two floats is exact in
   double, the sum is rounded to odd there (TwoSum gives the error's sign), and the final rounding to float is then right. */
MOEI_FORCE float moei_fma(float a, float b, float c) {
#if defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__)
    return fmaf(a, b, c);
#else
    double p = (double)a * (double)b, q = (double)c, s = p + q, t = s - p, e = (p - (s - t)) + (q - t);
    uint64_t u, v;
    memcpy(&u, &s, 8);
    memcpy(&v, &e, 8);
    if ((v << 1) != 0 && !(u & 1) && (u & 0x7ff0000000000000u) != 0x7ff0000000000000u) u = (u ^ v) >> 63 ? u - 1 : u + 1;
    memcpy(&s, &u, 8);
    return (float)s;
#endif
}

MOEI_FORCE uint16_t moei_load16(const void *p) { const uint8_t *b = (const uint8_t *)p; return (uint16_t)(b[0] | b[1] << 8); }
MOEI_FORCE uint32_t moei_load32(const void *p) {
    const uint8_t *b = (const uint8_t *)p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}
MOEI_FORCE float moei_loadf32(const void *p) { return moei_float(moei_load32(p)); } /* little-endian, any alignment */
MOEI_FORCE float moei_bf16(uint16_t h) { return moei_float((uint32_t)h << 16); }
MOEI_FORCE uint16_t moei_to_bf16(float f) { /* round to nearest even, NaN stays NaN */
    uint32_t u = moei_bits(f);
    if (moei_is_nan(f)) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
MOEI_FORCE float moei_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023u;
    if (e == 31) return moei_float(sign | 0x7f800000u | m << 13);
    if (e) return moei_float(sign | (e + 112) << 23 | m << 13);
    return moei_float(sign | moei_bits((float)m * 5.96046448e-08f)); /* subnormal: exact */
}
MOEI_FORCE uint16_t moei_to_f16(float f) { /* round to nearest even, overflow to Inf */
    uint32_t u = moei_bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);                 /* >= 65520 rounds to Inf */
    if (a < 0x38800000u) {                                                  /* subnormal half: units of 2^-24 */
        uint32_t shift = 126 - (a >> 23), m = (a & 0x7fffffu) | 0x800000u;
        if (shift > 24) return (uint16_t)sign;
        uint32_t q = m >> shift, rest = m & ((1u << shift) - 1), half = 1u << (shift - 1);
        return (uint16_t)(sign | (q + (rest > half || (rest == half && (q & 1)))));
    }
    return (uint16_t)(sign | ((a - 0x38000000u + 0xfff + (a >> 13 & 1)) >> 13));
}
MOEI_FORCE float moei_e8m0(uint8_t b) { return b == 255 ? moei_float(0x7fc00000u) : b ? moei_float((uint32_t)b << 23) : 5.87747175e-39f; }
MOEI_FORCE float moei_e4m3(uint8_t b) { /* the "fn" variant: no Inf, 0x7f is NaN */
    uint32_t sign = (uint32_t)(b & 0x80) << 24, e = b >> 3 & 15, m = b & 7u;
    if ((b & 0x7f) == 0x7f) return moei_float(sign | 0x7fc00000u);
    if (e) return moei_float(sign | (e + 120) << 23 | m << 20);
    return moei_float(sign | moei_bits((float)m * 0.001953125f));
}

/* exp, 1 ULP, the same bits on every tier. n = round(x log2 e) is taken out of the fma's low bits as an integer, not by
   subtracting the magic number (that gets folded by -ffast-math). Overflows to Inf above 88.72, underflows to 0. */
#define MOEI_LOG2E 1.44269502f
#define MOEI_MAGIC 12582912.0f
#define MOEI_MAGIC_BITS 0x4b400000
#define MOEI_LN2_HI 0.693145752f
#define MOEI_LN2_LO 1.42860677e-06f
#define MOEI_EXP_MIN -104.0f
#define MOEI_EXP_MAX 89.0f
#define MOEI_EXP_C6 0.00138145988f
#define MOEI_EXP_C5 0.00836871658f
#define MOEI_EXP_C4 0.041668389f
#define MOEI_EXP_C3 0.166665211f
#define MOEI_EXP_C2 0.49999994f
MOEI_FORCE float moei_exp(float x) {
    float z = x > MOEI_EXP_MAX ? MOEI_EXP_MAX : x; /* NaN passes */
    z = z < MOEI_EXP_MIN ? MOEI_EXP_MIN : z;
    if (moei_is_nan(x)) return x;
    int32_t k = (int32_t)(moei_bits(moei_fma(z, MOEI_LOG2E, MOEI_MAGIC)) - MOEI_MAGIC_BITS);
    float n = (float)k, r = moei_fma(n, -MOEI_LN2_LO, moei_fma(n, -MOEI_LN2_HI, z)), p = MOEI_EXP_C6;
    p = moei_fma(p, r, MOEI_EXP_C5);
    p = moei_fma(p, r, MOEI_EXP_C4);
    p = moei_fma(p, r, MOEI_EXP_C3);
    p = moei_fma(p, r, MOEI_EXP_C2);
    p = moei_fma(p, r * r, r) + 1.0f;
    int32_t k1 = k >> 1, k2 = k - k1; /* two exact steps: the result may be subnormal or Inf */
    return p * moei_float((uint32_t)(k1 + 127) << 23) * moei_float((uint32_t)(k2 + 127) << 23);
}
MOEI_FORCE float moei_sigmoid(float x) { return 1.0f / (1.0f + moei_exp(-x)); }

/* ==== >>contract: what a tier provides ================================================================================
   rows      a view of consecutive rows of one expert's matrix.
   prepared  an activation row in the form that the dot products of one arithmetic read: padded with zeros to whole vectors, so
             that only weight reads have tails. F32: f32, padded to 16, in the tier's own order within every 16. BF16: bf16, padded
             to 32. Q8: one moei_q8 per 256 values.
   panel     rows decoded once for many tokens. F32 and BF16: row r at r * row_bytes(k), laid out like a prepared row. Q8: the
             arithmetic's own layout.
   Nothing reads a byte outside of the rows, and nothing allocates. */

typedef struct moei_side {    /* scales or zero points that live apart, of one expert */
    const uint8_t *data;      /* NULL = absent */
    size_t row_stride;
    uint32_t type, rows, cols;
} moei_side;

typedef struct moei_rows {
    const uint8_t *data;        /* the expert's row 0 */
    size_t row_stride, k_stride, k;
    uint32_t format, row0;      /* row r of the view is the expert's row row0 + r */
    moei_side scale, zero;      /* scales constant along a row are not here: the caller applies them to the result */
    const uint8_t *prefetch;    /* what will be read next: spread prefetches of prefetch_bytes over the work; may be NULL */
    size_t prefetch_bytes;
} moei_rows;
MOEI_FORCE const uint8_t *moei_row(const moei_rows *w, size_t r) { return w->data + (w->row0 + r) * w->row_stride; }

/* 256 activations as int8: 8 blocks of 32. d = amax / 127, q = round-to-nearest-even(x * (127 / amax)) by one fma, s = d * sum(q).
   A block whose amax is below 2^-96 is zero; one with NaN or Inf has d = s = NaN and q = 0. */
typedef struct moei_q8 {
    int8_t q[8][32];
    float d[8], s[8];
    int32_t sum[8];             /* of q */
    int16_t sum16[8][2];        /* of its halves */
} moei_q8;

/* out[t * out_stride + r] = sum over k of row r (r < n_rows) times prepared row x[t] (t < n_tokens) */
typedef void moei_dot_fn(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                         size_t out_stride);
typedef void moei_decode_fn(const moei_rows *w, uint32_t n_rows, void *panel);
typedef void moei_panel_fn(const void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                           float *out, size_t out_stride);

typedef struct moei_ops {       /* of one format */
    moei_dot_fn *dot;           /* straight from the rows; NULL = only through a panel */
    moei_decode_fn *decode;     /* NULL = decode by the reference, then prepare (F32 and BF16 only) */
    uint32_t dot_max;           /* beyond that many tokens the panel is faster */
} moei_ops;

typedef struct moei_arith {     /* one compute on one tier */
    uint32_t compute, tier;
    size_t (*row_bytes)(size_t k);                                                /* of a prepared row, a multiple of 64 */
    void (*prepare)(void *row, const float *x, size_t k0, size_t n, size_t k);    /* values k0 .. k0 + n of a row of k; k0 and
                                     (but at the end of the row) n are multiples of 32; the end of the row also pads */
    size_t (*panel_bytes)(uint32_t n_rows, size_t k);
    moei_panel_fn *panel;       /* NULL = no panels: ops[].dot takes any number of tokens */
    moei_ops ops[MOE_FORMAT_COUNT];
} moei_arith;

typedef struct moei_vec {       /* elementwise, of one tier; each equal to its scalar definition, any n, any alignment */
    void (*exp)(float *y, const float *x, size_t n);                              /* y = moei_exp(x) */
    void (*sigmoid)(float *y, const float *x, float a, size_t n);                 /* y = moei_sigmoid(a * x) */
    void (*axpy)(float *y, const float *v, float w, size_t n);                    /* y = fma(w, v, y) */
    void (*affine)(float *v, const float *s, const float *b, size_t n);           /* v = fma(v, s, b) */
} moei_vec;

/* ==== >>formats: what the bytes mean =================================================================================== */

/* ==== >>reference: the definition of every dot product, and the c tier ================================================= */

/* ==== >>dense: loops around the register tiles of f32 and bf16 arithmetic ==============================================
   A tile is 4 rows (3 on AVX2) times up to 6 tokens over all of k, its sums in registers. Rows are read where they lie,
   tokens through pointers. A tile that is short of rows repeats its last row and stores less, so there is one code path. */

typedef struct moei_tile {
    const uint8_t *w[4];             /* rows */
    const void *const *x;            /* prepared tokens */
    size_t k;
    float *out;                      /* of the first row and token */
    size_t out_stride;
    uint32_t n_rows;                 /* stored: 1 .. R */
    const uint8_t *ahead, *ahead_end; /* to prefetch on the way */
} moei_tile;
typedef void moei_tile_fn(const moei_tile *t);
typedef struct moei_tiles {
    uint32_t rows, tokens;           /* R, C: the largest tile */
    moei_tile_fn *fn[6];             /* [tokens - 1] */
} moei_tiles;

/* Tokens are cut evenly (7 = 4 + 3, not 6 + 1): small tiles are bound by unpacking. A block of tokens stays in L2 while all
   rows pass over it; a group of rows stays in L1 while the tiles of the block pass over it. */
#define MOEI_BLOCK_BYTES (384u << 10)
MOEI_UNUSED static void moei_sweep_block(const moei_tiles *tiles, const moei_rows *w, uint32_t n_rows, moei_tile *t,
                                         uint32_t n_tokens, const uint8_t *ahead, size_t ahead_bytes) {
    const void *const *x = t->x;
    float *out = t->out;
    uint32_t R = tiles->rows, groups = (n_rows + R - 1) / R, per_group = (n_tokens + tiles->tokens - 1) / tiles->tokens;
    size_t lines = ahead_bytes / 64, all = (size_t)groups * per_group, done = 0;
    for (uint32_t r = 0; r < n_rows; r += R) {
        t->n_rows = n_rows - r < R ? n_rows - r : R;
        for (uint32_t i = 0; i < 4; i++) t->w[i] = moei_row(w, r + (i < t->n_rows ? i : t->n_rows - 1));
        for (uint32_t i = 0, at = 0; i < per_group; i++, done++) {
            uint32_t n = (n_tokens - at + per_group - i - 1) / (per_group - i);
            t->x = x + at, t->out = out + at * t->out_stride + r;
            t->ahead = ahead + lines * done / all * 64, t->ahead_end = ahead + lines * (done + 1) / all * 64;
            tiles->fn[n - 1](t);
            at += n;
        }
    }
}
MOEI_UNUSED static void moei_sweep(const moei_tiles *tiles, const moei_rows *w, size_t row_bytes, uint32_t n_rows,
                                   const void *const *x, uint32_t n_tokens, float *out, size_t out_stride) {
    moei_tile t;
    size_t fit = MOEI_BLOCK_BYTES / row_bytes / tiles->tokens, lines = w->prefetch ? w->prefetch_bytes / 64 : 0;
    uint32_t block = (uint32_t)(fit < 2 ? 2 : fit > 64 ? 64 : fit) * tiles->tokens;
    t.k = w->k, t.out_stride = out_stride;
    for (uint32_t at = 0; at < n_tokens; at += block) {
        uint32_t n = n_tokens - at < block ? n_tokens - at : block;
        size_t from = lines * at / n_tokens, to = lines * (at + n) / n_tokens;
        t.x = x + at, t.out = out + at * out_stride;
        moei_sweep_block(tiles, w, n_rows, &t, n, (w->prefetch ? w->prefetch : w->data) + from * 64, (to - from) * 64);
    }
}

/* The value of a scale grid for (row, k). */
MOEI_UNUSED static float moei_scale_at(const moei_side *s, size_t row, size_t k) {
    const uint8_t *p = s->data + row / s->rows * s->row_stride;
    size_t i = k / s->cols;
    if (s->type == MOE_TYPE_F32) return moei_loadf32(p + 4 * i);
    if (s->type == MOE_TYPE_F16) return moei_f16(moei_load16(p + 2 * i));
    if (s->type == MOE_TYPE_BF16) return moei_bf16(moei_load16(p + 2 * i));
    return s->type == MOE_TYPE_E8M0 ? moei_e8m0(p[i]) : moei_e4m3(p[i]);
}
/* The scales of weights k .. k + 15 of row r; returns how many of the following k have the same (at least 16 are covered). */
MOEI_UNUSED static size_t moei_scales16(const moei_rows *w, uint32_t r, size_t k, float *s) {
    size_t row = w->row0 + r, cols = w->scale.cols;
    if (w->scale.data && cols % 16) { /* odd shapes: one by one */
        for (size_t i = 0; i < 16; i++) s[i] = k + i < w->k ? moei_scale_at(&w->scale, row, k + i) : 0.0f;
        return 16;
    }
    float same = w->scale.data ? moei_scale_at(&w->scale, row, k) : 1.0f;
    for (size_t i = 0; i < 16; i++) s[i] = same;
    return w->scale.data ? cols - k % cols : w->k;
}
MOEI_UNUSED static size_t moei_row_bytes_f32(size_t k) { return (k + 15) / 16 * 64; }
MOEI_UNUSED static size_t moei_panel_bytes_f32(uint32_t n_rows, size_t k) { return n_rows * moei_row_bytes_f32(k); }
MOEI_UNUSED static void moei_prepare_f32(void *row, const float *x, size_t k0, size_t n, size_t k) {
    float *p = (float *)row;
    memcpy(p + k0, x, n * 4);
    if (k0 + n == k) memset(p + k, 0, ((k + 15) / 16 * 16 - k) * 4);
}
#define MOEI_NO_OPS {NULL, NULL, 0}

/* ==== >>avx2: F32 on AVX2 + FMA + F16C =================================================================================
   Prepared rows and panels hold every 16 values as 8 even ones, then 8 odd ones: the two halves of bf16 weights come apart by
   a shift and a mask. The sums of the even k are 8 lanes and those of the odd k are 8 more; the tree 8, 4, 2, 1 over
   natural k is the tree 4, 2, 1 of either and then their sum. */

#if MOEI_HAVE_AVX2
/* Keeps a vector in its register: a load that is used several times may otherwise become a memory operand of each use. */
#if defined(__GNUC__) || defined(__clang__)
#define MOEI_PIN(v) __asm__("" : "+x"(v))
#else
#define MOEI_PIN(v) ((void)(v))
#endif
/* Up to 16 weights of 2 or 4 bytes to a padded buffer: AVX2 has no masked loads of 16 bits. */
MOEI_FORCE void moei_tail16(uint8_t *to, const uint8_t *from, size_t bytes) {
    memset(to, 0, 64);
    for (size_t i = 0; i < bytes; i++) to[i] = from[i];
}
/* 16 f32 as even and odd: the halves are loaded so that one shuffle per half sorts them. */
MOEI_FORCE MOEI_AVX2 void moei_part_avx2(const float *p, __m256 *even, __m256 *odd) {
    __m256 a = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 8), 1);
    __m256 b = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 4)), _mm_loadu_ps(p + 12), 1);
    *even = _mm256_shuffle_ps(a, b, 0x88), *odd = _mm256_shuffle_ps(a, b, 0xdd);
}
/* 16 weights as even and odd f32 */
MOEI_FORCE MOEI_AVX2 void moei_load_avx2(const uint32_t format, const uint8_t *p, __m256 *even, __m256 *odd) {
    if (format == MOE_FORMAT_F32) {
        moei_part_avx2((const float *)p, even, odd);
        return;
    }
    __m256i v = _mm256_loadu_si256((const __m256i *)p);
    if (format == MOE_FORMAT_BF16) {
        *even = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
        *odd = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000)));
        return;
    }
    const __m256i sort = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6,
                                          7, 10, 11, 14, 15);
    v = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, sort), 0xd8);
    *even = _mm256_cvtph_ps(_mm256_castsi256_si128(v)), *odd = _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1));
}

/* The trees 4, 2, 1 of four times 8 lanes. */
MOEI_FORCE MOEI_AVX2 __m128 moei_sum4_avx2(__m256 a, __m256 b, __m256 c, __m256 d) {
    __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
    __m256 s = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee)); /* a0 a1 c0 c1 | b d */
    s = _mm256_hadd_ps(s, s);                                                                    /* a c a c | b d b d */
    return _mm_unpacklo_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}
/* The first 1 to 3 of s; masked stores are slow on AMD. */
MOEI_FORCE MOEI_AVX2 void moei_store_avx2(float *out, __m128 s, uint32_t n) {
    if (n == 1) _mm_store_ss(out, s);
    else _mm_storel_pi((__m64 *)(void *)out, s);
    if (n == 3) _mm_store_ss(out + 2, _mm_movehl_ps(s, s));
}

/* SHAPES      1 row x C tokens, row after row, even and odd k at once
   REGISTERS   2 C sums + 2 weights: 10 of 16 at C = 4 (tokens are memory operands) */
MOEI_FORCE MOEI_AVX2 void moei_rows_avx2(const uint32_t format, const int C, const moei_rows *w, uint32_t n_rows,
                                         const void *const *xs, float *out, size_t out_stride) {
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2, k_end = w->k & ~(size_t)15;
    const float *x[4];
    MOEI_UNROLL for (int c = 0; c < C; c++) x[c] = (const float *)xs[c];
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *p = moei_row(w, r);
        __m256 a[4], b[4], even, odd;
        MOEI_UNROLL for (int c = 0; c < C; c++) a[c] = b[c] = _mm256_setzero_ps();
        for (size_t k = 0; k < k_end; k += 16) {
            moei_load_avx2(format, p + k * size, &even, &odd);
            MOEI_UNROLL for (int c = 0; c < C; c++) {
                a[c] = _mm256_fmadd_ps(even, _mm256_loadu_ps(x[c] + k), a[c]);
                b[c] = _mm256_fmadd_ps(odd, _mm256_loadu_ps(x[c] + k + 8), b[c]);
            }
        }
        if (k_end < w->k) {
            uint8_t tail[64];
            moei_tail16(tail, p + k_end * size, (w->k - k_end) * size);
            moei_load_avx2(format, tail, &even, &odd);
            MOEI_UNROLL for (int c = 0; c < C; c++) {
                a[c] = _mm256_fmadd_ps(even, _mm256_loadu_ps(x[c] + k_end), a[c]);
                b[c] = _mm256_fmadd_ps(odd, _mm256_loadu_ps(x[c] + k_end + 8), b[c]);
            }
        }
        MOEI_UNROLL for (int c = 0; c < C; c++) {
            __m128 s = moei_sum4_avx2(a[c], b[c], a[c], b[c]);
            out[(size_t)c * out_stride + r] = _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s))) + 0.0f;
        }
    }
}

/* 8 weights of one parity, of 16 bf16 or of 16 f32 in panel order */
MOEI_FORCE MOEI_AVX2 __m256 moei_half_avx2(const uint32_t format, const int odd, const uint8_t *p) {
    if (format == MOE_FORMAT_F32) return _mm256_loadu_ps((const float *)p + 8 * odd);
    __m256i v = _mm256_loadu_si256((const __m256i *)p);
    if (odd) return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}
/* SHAPES      3 rows (bf16, or f32 in panel order) x C tokens, one parity of k; s[c] = the trees of the 3 sums
   REGISTERS   3 C sums + 3 weights + 1 token: all 16 at C = 4; 12 FMAs (6 cycles) per 7 loads */
MOEI_FORCE MOEI_AVX2 void moei_pass_avx2(const uint32_t format, const int C, const int odd, const moei_tile *t,
                                         const uint8_t *const *tail, const uint8_t *ahead, const uint8_t *ahead_end, __m128 *s) {
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2, k_end = t->k & ~(size_t)15;
    const uint8_t *w[3] = {t->w[0], t->w[1], t->w[2]};
    const float *x[4];
    __m256 a[4][3], v[3];
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        x[c] = (const float *)t->x[c] + 8 * odd;
        MOEI_UNROLL for (int r = 0; r < 3; r++) a[c][r] = _mm256_setzero_ps();
    }
    for (size_t k = 0; k < k_end; k += 16) {
        if (ahead < ahead_end) MOEI_PREFETCH(ahead), ahead += 64;
        MOEI_UNROLL for (int r = 0; r < 3; r++) v[r] = moei_half_avx2(format, odd, w[r] + k * size);
        MOEI_UNROLL for (int c = 0; c < C; c++) {
            __m256 xc = _mm256_loadu_ps(x[c] + k);
            MOEI_PIN(xc);
            MOEI_UNROLL for (int r = 0; r < 3; r++) a[c][r] = _mm256_fmadd_ps(v[r], xc, a[c][r]);
        }
    }
    if (k_end < t->k) {
        MOEI_UNROLL for (int r = 0; r < 3; r++) v[r] = moei_half_avx2(format, odd, tail[r]);
        MOEI_UNROLL for (int c = 0; c < C; c++) {
            __m256 xc = _mm256_loadu_ps(x[c] + k_end);
            MOEI_UNROLL for (int r = 0; r < 3; r++) a[c][r] = _mm256_fmadd_ps(v[r], xc, a[c][r]);
        }
    }
    MOEI_UNROLL for (int c = 0; c < C; c++) s[c] = moei_sum4_avx2(a[c][0], a[c][1], a[c][2], a[c][2]);
}
MOEI_FORCE MOEI_AVX2 void moei_tile_avx2(const uint32_t format, const int C, const moei_tile *t) {
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2, k_end = t->k & ~(size_t)15;
    const uint8_t *tail[3] = {t->w[0] + k_end * size, t->w[1] + k_end * size, t->w[2] + k_end * size};
    uint8_t pad[3][64];
    __m128 even[4], odd[4];
    if (k_end < t->k && format != MOE_FORMAT_F32) /* panels are padded */
        for (int r = 0; r < 3; r++) moei_tail16(pad[r], tail[r], (t->k - k_end) * size), tail[r] = pad[r];
    size_t half = (size_t)(t->ahead_end - t->ahead) / 128 * 64;
    moei_pass_avx2(format, C, 0, t, tail, t->ahead, t->ahead + half, even);
    moei_pass_avx2(format, C, 1, t, tail, t->ahead + half, t->ahead_end, odd);
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        __m128 s = _mm_add_ps(_mm_add_ps(even[c], odd[c]), _mm_setzero_ps());
        moei_store_avx2(t->out + (size_t)c * t->out_stride, s, t->n_rows);
    }
}
#define MOEI_TILE_AVX2(F, C)                                                                                           \
    MOEI_AVX2 static void moei_tile_avx2_##F##_##C(const moei_tile *t) { moei_tile_avx2(MOE_FORMAT_##F, C, t); }
#define MOEI_TILES_AVX2(F)                                                                                             \
    MOEI_TILE_AVX2(F, 1) MOEI_TILE_AVX2(F, 2) MOEI_TILE_AVX2(F, 3) MOEI_TILE_AVX2(F, 4)
MOEI_TILES_AVX2(F32)
MOEI_TILES_AVX2(BF16)
static const moei_tiles moei_tiles_avx2_F32 = {
    3, 4, {moei_tile_avx2_F32_1, moei_tile_avx2_F32_2, moei_tile_avx2_F32_3, moei_tile_avx2_F32_4, NULL, NULL}};
static const moei_tiles moei_tiles_avx2_BF16 = {
    3, 4, {moei_tile_avx2_BF16_1, moei_tile_avx2_BF16_2, moei_tile_avx2_BF16_3, moei_tile_avx2_BF16_4, NULL, NULL}};

MOEI_FORCE MOEI_AVX2 void moei_dot_avx2(const uint32_t format, const moei_rows *w, uint32_t n_rows, const void *const *x,
                                        uint32_t n_tokens, float *out, size_t out_stride) {
    for (; n_tokens >= 4; n_tokens -= 4, x += 4, out += 4 * out_stride) moei_rows_avx2(format, 4, w, n_rows, x, out, out_stride);
    if (n_tokens == 3) moei_rows_avx2(format, 3, w, n_rows, x, out, out_stride);
    if (n_tokens == 2) moei_rows_avx2(format, 2, w, n_rows, x, out, out_stride);
    if (n_tokens == 1) moei_rows_avx2(format, 1, w, n_rows, x, out, out_stride);
}
MOEI_AVX2 static void moei_dot_avx2_F32(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                                        float *out, size_t out_stride) {
    moei_dot_avx2(MOE_FORMAT_F32, w, n_rows, x, n_tokens, out, out_stride);
}
MOEI_AVX2 static void moei_dot_avx2_F16(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                                        float *out, size_t out_stride) {
    moei_dot_avx2(MOE_FORMAT_F16, w, n_rows, x, n_tokens, out, out_stride);
}
MOEI_AVX2 static void moei_dot_avx2_BF16(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                                         float *out, size_t out_stride) {
    if (n_tokens <= 4) moei_dot_avx2(MOE_FORMAT_BF16, w, n_rows, x, n_tokens, out, out_stride);
    else moei_sweep(&moei_tiles_avx2_BF16, w, moei_row_bytes_f32(w->k), n_rows, x, n_tokens, out, out_stride);
}
static void moei_panel_avx2(const void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                            float *out, size_t out_stride) {
    moei_rows rows = *w;
    rows.data = (const uint8_t *)panel, rows.row0 = 0, rows.row_stride = moei_row_bytes_f32(w->k);
    moei_sweep(&moei_tiles_avx2_F32, &rows, rows.row_stride, n_rows, x, n_tokens, out, out_stride);
}

MOEI_AVX2 static void moei_prepare_avx2(void *row, const float *x, size_t k0, size_t n, size_t k) {
    float *o = (float *)row + k0;
    __m256 even, odd;
    for (; n >= 16; n -= 16, x += 16, o += 16) {
        moei_part_avx2(x, &even, &odd);
        _mm256_storeu_ps(o, even), _mm256_storeu_ps(o + 8, odd);
    }
    (void)k; /* n is no multiple of 16 at the end of the row only */
    for (size_t i = 0; n && i < 16; i++) o[i / 2 + i % 2 * 8] = i < n ? x[i] : 0.0f;
}
MOEI_FORCE MOEI_AVX2 void moei_decode_avx2(const uint32_t format, const moei_rows *w, uint32_t n_rows, void *panel) {
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2;
    float *o = (float *)panel;
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *p = moei_row(w, r);
        uint8_t tail[64];
        for (size_t k = 0; k < w->k; k += 16, p += 16 * size, o += 16) {
            __m256 even, odd;
            if (w->k - k < 16) moei_tail16(tail, p, (w->k - k) * size), p = tail;
            moei_load_avx2(format, p, &even, &odd);
            _mm256_storeu_ps(o, even), _mm256_storeu_ps(o + 8, odd);
        }
    }
}
MOEI_AVX2 static void moei_decode_f32_avx2(const moei_rows *w, uint32_t n_rows, void *panel) {
    moei_decode_avx2(MOE_FORMAT_F32, w, n_rows, panel);
}
MOEI_AVX2 static void moei_decode_f16_avx2(const moei_rows *w, uint32_t n_rows, void *panel) {
    moei_decode_avx2(MOE_FORMAT_F16, w, n_rows, panel);
}

/* 8 E4M3 values times 2^-8: their fields moved into those of f16, which has the same kind of subnormals; all ones is NaN. */
MOEI_FORCE MOEI_AVX2 __m256 moei_e4m3_avx2(__m128i b) {
    const __m128i top = _mm_set1_epi16(0x7f << 7);
    __m128i h = _mm_and_si128(_mm_slli_epi16(_mm_cvtepi8_epi16(b), 7), _mm_set1_epi16((short)0xbf80));
    return _mm256_cvtph_ps(_mm_or_si128(h, _mm_cmpeq_epi16(_mm_and_si128(h, top), top)));
}
MOEI_AVX2 static void moei_decode_fp8_avx2(const moei_rows *w, uint32_t n_rows, void *panel) {
    const __m128i sort = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    const __m256 up = _mm256_set1_ps(256.0f);
    float *o = (float *)panel, s[16];
    uint8_t tail[64];
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *p = moei_row(w, r);
        __m256 even = up, odd = up;
        for (size_t k = 0, next = 0; k < w->k; k += 16, p += 16, o += 16) {
            if (k >= next) next = k + moei_scales16(w, r, k, s), moei_part_avx2(s, &even, &odd);
            if (w->k - k < 16) moei_tail16(tail, p, w->k - k), p = tail;
            __m128i b = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)p), sort);
            _mm256_storeu_ps(o, _mm256_mul_ps(_mm256_mul_ps(moei_e4m3_avx2(b), up), even));
            _mm256_storeu_ps(o + 8, _mm256_mul_ps(_mm256_mul_ps(moei_e4m3_avx2(_mm_srli_si128(b, 8)), up), odd));
            for (size_t i = w->k - k; i < 16; i++) o[i / 2 + i % 2 * 8] = 0.0f; /* 0 times an infinite scale is not */
        }
    }
}

// clang-format off
MOEI_UNUSED static const moei_arith moei_f32_avx2 = {
    MOE_COMPUTE_F32, MOE_TIER_AVX2, moei_row_bytes_f32, moei_prepare_avx2, moei_panel_bytes_f32, moei_panel_avx2, {
        /* NONE         */ MOEI_NO_OPS,
        /* F32          */ {moei_dot_avx2_F32, moei_decode_f32_avx2, 4},
        /* F16          */ {moei_dot_avx2_F16, moei_decode_f16_avx2, 4},
        /* BF16         */ {moei_dot_avx2_BF16, NULL, UINT32_MAX},
        /* Q8_0 - Q5_1  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* Q2_K - Q6_K  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* IQ4_NL, _XS  */ MOEI_NO_OPS, MOEI_NO_OPS,
        /* MXFP4, NVFP4 */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* MXFP8        */ {NULL, moei_decode_fp8_avx2, 0},
        /* FP8_BLOCK    */ {NULL, moei_decode_fp8_avx2, 0},
        /* FP8_CHANNEL  */ {NULL, moei_decode_fp8_avx2, 0},
        /* INT8, INT4   */ MOEI_NO_OPS, MOEI_NO_OPS}};
// clang-format on

/* exp: see moei_exp. min and max return their second operand on NaN. */
MOEI_FORCE MOEI_AVX2 __m256 moei_exp_avx2(__m256 x) {
    __m256 z = _mm256_max_ps(_mm256_set1_ps(MOEI_EXP_MIN), _mm256_min_ps(_mm256_set1_ps(MOEI_EXP_MAX), x));
    __m256i k = _mm256_castps_si256(_mm256_fmadd_ps(z, _mm256_set1_ps(MOEI_LOG2E), _mm256_set1_ps(MOEI_MAGIC)));
    k = _mm256_sub_epi32(k, _mm256_set1_epi32(MOEI_MAGIC_BITS));
    __m256 n = _mm256_cvtepi32_ps(k), r = _mm256_fmadd_ps(n, _mm256_set1_ps(-MOEI_LN2_HI), z);
    __m256 p = _mm256_set1_ps(MOEI_EXP_C6);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-MOEI_LN2_LO), r);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(MOEI_EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(MOEI_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(MOEI_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(MOEI_EXP_C2));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    __m256i k1 = _mm256_srai_epi32(k, 1), k2 = _mm256_sub_epi32(k, k1), one = _mm256_set1_epi32(127);
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k1, one), 23)));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k2, one), 23)));
}
MOEI_FORCE MOEI_AVX2 __m256 moei_sigmoid_avx2(__m256 x) {
    __m256 e = moei_exp_avx2(_mm256_xor_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN))));
    return _mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}
MOEI_AVX2 static void moei_vexp_avx2(float *y, const float *x, size_t n) {
    float last[8] = {0};
    for (; n >= 8; n -= 8, x += 8, y += 8) _mm256_storeu_ps(y, moei_exp_avx2(_mm256_loadu_ps(x)));
    for (size_t i = 0; i < n; i++) last[i] = x[i];
    _mm256_storeu_ps(last, moei_exp_avx2(_mm256_loadu_ps(last)));
    for (size_t i = 0; i < n; i++) y[i] = last[i];
}
MOEI_AVX2 static void moei_vsigmoid_avx2(float *y, const float *x, float a, size_t n) {
    const __m256 by = _mm256_set1_ps(a);
    float last[8] = {0};
    for (; n >= 8; n -= 8, x += 8, y += 8) _mm256_storeu_ps(y, moei_sigmoid_avx2(_mm256_mul_ps(by, _mm256_loadu_ps(x))));
    for (size_t i = 0; i < n; i++) last[i] = x[i];
    _mm256_storeu_ps(last, moei_sigmoid_avx2(_mm256_mul_ps(by, _mm256_loadu_ps(last))));
    for (size_t i = 0; i < n; i++) y[i] = last[i];
}
MOEI_AVX2 static void moei_vaxpy_avx2(float *y, const float *v, float w, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_fmadd_ps(_mm256_set1_ps(w), _mm256_loadu_ps(v + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++) y[i] = moei_fma(w, v[i], y[i]);
}
MOEI_AVX2 static void moei_vaffine_avx2(float *v, const float *s, const float *b, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(v + i, _mm256_fmadd_ps(_mm256_loadu_ps(v + i), _mm256_loadu_ps(s + i), _mm256_loadu_ps(b + i)));
    for (; i < n; i++) v[i] = moei_fma(v[i], s[i], b[i]);
}
MOEI_UNUSED static const moei_vec moei_vec_avx2 = {moei_vexp_avx2, moei_vsigmoid_avx2, moei_vaxpy_avx2, moei_vaffine_avx2};
#endif

/* ==== >>avx512: F32 on AVX-512 F/BW/DQ/VL ============================================================================== */

#if MOEI_HAVE_AVX512
/* g++ before 13 takes its own "undefined" vectors for uninitialised variables. */
#if defined(__cplusplus) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
/* 16 weights as f32; the tail's missing ones are 0 and not touched. */
MOEI_FORCE MOEI_AVX512 __m512 moei_load_avx512(const uint32_t format, const uint8_t *p) {
    if (format == MOE_FORMAT_F32) return _mm512_loadu_ps((const float *)p);
    __m256i h = _mm256_loadu_si256((const __m256i *)p);
    if (format == MOE_FORMAT_F16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
MOEI_FORCE MOEI_AVX512 __m512 moei_load_tail_avx512(const uint32_t format, const uint8_t *p, __mmask16 m) {
    if (format == MOE_FORMAT_F32) return _mm512_maskz_loadu_ps(m, p);
    __m256i h = _mm256_maskz_loadu_epi16(m, p);
    if (format == MOE_FORMAT_F16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
MOEI_FORCE MOEI_AVX512 __mmask16 moei_mask_avx512(size_t n) { return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffffu); }

/* The tree 8, 4, 2, 1 of one and of four sums, then + 0.0f. */
MOEI_FORCE MOEI_AVX512 float moei_sum_avx512(__m512 a) {
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1))) + 0.0f;
}
MOEI_FORCE MOEI_AVX512 __m128 moei_sum4_avx512(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    __m512 s = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4e)); /* now a, b, c, d have 128 bits each */
    s = _mm512_add_ps(_mm512_add_ps(s, _mm512_permute_ps(s, 0xb1)), _mm512_setzero_ps());
    __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(first, s));
}
MOEI_FORCE MOEI_AVX512 void moei_store_avx512(float *out, __m128 s, uint32_t n) {
    if (n == 4) _mm_storeu_ps(out, s);
    else _mm_mask_storeu_ps(out, (__mmask8)((1u << n) - 1), s);
}

/* SHAPES      4 rows (any format, k contiguous) x C tokens (prepared: natural order, padded to 16)
   DEFINITION  lane l of a[c][r] is the FMA chain over k mod 16 == l
   REGISTERS   4 C sums + 4 weights + 1 token: 29 of 32 at C = 6; 24 FMAs (12 cycles) per 10 loads */
MOEI_FORCE MOEI_AVX512 void moei_tile_avx512(const uint32_t format, const int C, const moei_tile *t) {
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2, k_end = t->k & ~(size_t)15;
    const uint8_t *w[4] = {t->w[0], t->w[1], t->w[2], t->w[3]}, *ahead = t->ahead, *ahead_end = t->ahead_end;
    const float *x[6];
    __m512 a[6][4], v[4];
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        x[c] = (const float *)t->x[c];
        MOEI_UNROLL for (int r = 0; r < 4; r++) a[c][r] = _mm512_setzero_ps();
    }
    for (size_t k = 0; k < k_end; k += 16) {
        if (ahead < ahead_end) MOEI_PREFETCH(ahead), ahead += 64;
        MOEI_UNROLL for (int r = 0; r < 4; r++) v[r] = moei_load_avx512(format, w[r] + k * size);
        MOEI_UNROLL for (int c = 0; c < C; c++) {
            __m512 xc = _mm512_loadu_ps(x[c] + k);
            MOEI_UNROLL for (int r = 0; r < 4; r++) a[c][r] = _mm512_fmadd_ps(v[r], xc, a[c][r]);
        }
    }
    if (k_end < t->k) {
        __mmask16 m = moei_mask_avx512(t->k - k_end);
        MOEI_UNROLL for (int r = 0; r < 4; r++) v[r] = moei_load_tail_avx512(format, w[r] + k_end * size, m);
        MOEI_UNROLL for (int c = 0; c < C; c++) {
            __m512 xc = _mm512_loadu_ps(x[c] + k_end);
            MOEI_UNROLL for (int r = 0; r < 4; r++) a[c][r] = _mm512_fmadd_ps(v[r], xc, a[c][r]);
        }
    }
    MOEI_UNROLL for (int c = 0; c < C; c++)
        moei_store_avx512(t->out + (size_t)c * t->out_stride, moei_sum4_avx512(a[c][0], a[c][1], a[c][2], a[c][3]), t->n_rows);
}

/* SHAPES      1 row x C tokens, row after row: one linear stream, which the hardware prefetches best */
MOEI_FORCE MOEI_AVX512 void moei_rows_avx512(const uint32_t format, const int C, const moei_rows *w, uint32_t n_rows,
                                             const void *const *xs, float *out, size_t out_stride) {
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2, k_end = w->k & ~(size_t)15;
    const __mmask16 m = moei_mask_avx512(w->k - k_end);
    const float *x[4];
    MOEI_UNROLL for (int c = 0; c < C; c++) x[c] = (const float *)xs[c];
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *p = moei_row(w, r);
        __m512 a[4];
        MOEI_UNROLL for (int c = 0; c < C; c++) a[c] = _mm512_setzero_ps();
        for (size_t k = 0; k < k_end; k += 16) {
            __m512 v = moei_load_avx512(format, p + k * size);
            MOEI_UNROLL for (int c = 0; c < C; c++) a[c] = _mm512_fmadd_ps(v, _mm512_loadu_ps(x[c] + k), a[c]);
        }
        if (k_end < w->k) {
            __m512 v = moei_load_tail_avx512(format, p + k_end * size, m);
            MOEI_UNROLL for (int c = 0; c < C; c++) a[c] = _mm512_fmadd_ps(v, _mm512_loadu_ps(x[c] + k_end), a[c]);
        }
        MOEI_UNROLL for (int c = 0; c < C; c++) out[(size_t)c * out_stride + r] = moei_sum_avx512(a[c]);
    }
}

#define MOEI_TILE_AVX512(F, C)                                                                                         \
    MOEI_AVX512 static void moei_tile_avx512_##F##_##C(const moei_tile *t) { moei_tile_avx512(MOE_FORMAT_##F, C, t); }
#define MOEI_TILES_AVX512(F)                                                                                           \
    MOEI_TILE_AVX512(F, 1) MOEI_TILE_AVX512(F, 2) MOEI_TILE_AVX512(F, 3) MOEI_TILE_AVX512(F, 4) MOEI_TILE_AVX512(F, 5) \
    MOEI_TILE_AVX512(F, 6)
MOEI_TILES_AVX512(F32)
MOEI_TILES_AVX512(F16)
MOEI_TILES_AVX512(BF16)
static const moei_tiles moei_tiles_avx512_F32 = {
    4, 6, {moei_tile_avx512_F32_1, moei_tile_avx512_F32_2, moei_tile_avx512_F32_3, moei_tile_avx512_F32_4,
           moei_tile_avx512_F32_5, moei_tile_avx512_F32_6}};
static const moei_tiles moei_tiles_avx512_F16 = {
    4, 6, {moei_tile_avx512_F16_1, moei_tile_avx512_F16_2, moei_tile_avx512_F16_3, moei_tile_avx512_F16_4,
           moei_tile_avx512_F16_5, moei_tile_avx512_F16_6}};
static const moei_tiles moei_tiles_avx512_BF16 = {
    4, 6, {moei_tile_avx512_BF16_1, moei_tile_avx512_BF16_2, moei_tile_avx512_BF16_3, moei_tile_avx512_BF16_4,
           moei_tile_avx512_BF16_5, moei_tile_avx512_BF16_6}};

/* Up to 4 tokens the weights' stream is what counts, beyond the multiply-adds. */
MOEI_FORCE MOEI_AVX512 void moei_dot_avx512(const uint32_t format, const moei_tiles *tiles, const moei_rows *w,
                                            uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                                            size_t out_stride) {
    if (n_tokens == 1) moei_rows_avx512(format, 1, w, n_rows, x, out, out_stride);
    else if (n_tokens == 2) moei_rows_avx512(format, 2, w, n_rows, x, out, out_stride);
    else if (n_tokens == 3) moei_rows_avx512(format, 3, w, n_rows, x, out, out_stride);
    else if (n_tokens == 4) moei_rows_avx512(format, 4, w, n_rows, x, out, out_stride);
    else moei_sweep(tiles, w, moei_row_bytes_f32(w->k), n_rows, x, n_tokens, out, out_stride);
}
#define MOEI_DOT_AVX512(F)                                                                                             \
    MOEI_AVX512 static void moei_dot_avx512_##F(const moei_rows *w, uint32_t n_rows, const void *const *x,             \
                                                uint32_t n_tokens, float *out, size_t out_stride) {                    \
        moei_dot_avx512(MOE_FORMAT_##F, &moei_tiles_avx512_##F, w, n_rows, x, n_tokens, out, out_stride);              \
    }
MOEI_DOT_AVX512(F32)
MOEI_DOT_AVX512(F16)
MOEI_DOT_AVX512(BF16)

static void moei_panel_avx512(const void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                              float *out, size_t out_stride) {
    moei_rows rows = *w;
    rows.data = (const uint8_t *)panel, rows.row0 = 0, rows.row_stride = moei_row_bytes_f32(w->k);
    moei_dot_avx512_F32(&rows, n_rows, x, n_tokens, out, out_stride);
}

/* 16 E4M3 values times 2^-8: their fields moved into those of f16, which has the same kind of subnormals. */
MOEI_FORCE MOEI_AVX512 __m512 moei_e4m3_avx512(__m128i b) {
    const __m256i top = _mm256_set1_epi16(0x7f << 7);
    __m256i h = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(b), 7), _mm256_set1_epi16((short)0xbf80));
    __mmask16 nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(h, top), top);
    return _mm512_cvtph_ps(_mm256_mask_mov_epi16(h, nan, _mm256_set1_epi16(0x7e00)));
}
MOEI_FORCE MOEI_AVX512 __m512 moei_fp8_avx512(const uint8_t *p, __mmask16 m, __m512 scale) {
    __m512 v = _mm512_mul_ps(moei_e4m3_avx512(_mm_maskz_loadu_epi8(m, p)), _mm512_set1_ps(256.0f));
    return _mm512_maskz_mul_ps(m, v, scale);
}
MOEI_AVX512 static void moei_decode_fp8_avx512(const moei_rows *w, uint32_t n_rows, void *panel) {
    float *o = (float *)panel, s[16];
    for (uint32_t r = 0; r < n_rows; r++, o += moei_row_bytes_f32(w->k) / 4) {
        const uint8_t *p = moei_row(w, r);
        __m512 scale = _mm512_setzero_ps();
        for (size_t k = 0, next = 0; k < w->k; k += 16) {
            if (k >= next) next = k + moei_scales16(w, r, k, s), scale = _mm512_loadu_ps(s);
            _mm512_storeu_ps(o + k, moei_fp8_avx512(p + k, moei_mask_avx512(w->k - k), scale));
        }
    }
}

// clang-format off
MOEI_UNUSED static const moei_arith moei_f32_avx512 = {
    MOE_COMPUTE_F32, MOE_TIER_AVX512, moei_row_bytes_f32, moei_prepare_f32, moei_panel_bytes_f32, moei_panel_avx512, {
        /* NONE         */ MOEI_NO_OPS,
        /* F32          */ {moei_dot_avx512_F32, NULL, UINT32_MAX},
        /* F16          */ {moei_dot_avx512_F16, NULL, UINT32_MAX},
        /* BF16         */ {moei_dot_avx512_BF16, NULL, UINT32_MAX},
        /* Q8_0 - Q5_1  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* Q2_K - Q6_K  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* IQ4_NL, _XS  */ MOEI_NO_OPS, MOEI_NO_OPS,
        /* MXFP4, NVFP4 */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* MXFP8        */ {NULL, moei_decode_fp8_avx512, 0},
        /* FP8_BLOCK    */ {NULL, moei_decode_fp8_avx512, 0},
        /* FP8_CHANNEL  */ {NULL, moei_decode_fp8_avx512, 0},
        /* INT8, INT4   */ MOEI_NO_OPS, MOEI_NO_OPS}};
// clang-format on

/* exp: see moei_exp. min and max return their second operand on NaN; scalef rounds once, as the two exact steps do. */
MOEI_FORCE MOEI_AVX512 __m512 moei_exp_avx512(__m512 x) {
    __m512 z = _mm512_max_ps(_mm512_set1_ps(MOEI_EXP_MIN), _mm512_min_ps(_mm512_set1_ps(MOEI_EXP_MAX), x));
    __m512i k = _mm512_castps_si512(_mm512_fmadd_ps(z, _mm512_set1_ps(MOEI_LOG2E), _mm512_set1_ps(MOEI_MAGIC)));
    __m512 n = _mm512_cvtepi32_ps(_mm512_sub_epi32(k, _mm512_set1_epi32(MOEI_MAGIC_BITS)));
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-MOEI_LN2_HI), z), p = _mm512_set1_ps(MOEI_EXP_C6);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-MOEI_LN2_LO), r);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(MOEI_EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(MOEI_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(MOEI_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(MOEI_EXP_C2));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}
MOEI_FORCE MOEI_AVX512 __m512 moei_sigmoid_avx512(__m512 x) {
    __m512 minus = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN)));
    return _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_add_ps(_mm512_set1_ps(1.0f), moei_exp_avx512(minus)));
}
MOEI_AVX512 static void moei_vexp_avx512(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = moei_mask_avx512(n - i);
        _mm512_mask_storeu_ps(y + i, m, moei_exp_avx512(_mm512_maskz_loadu_ps(m, x + i)));
    }
}
MOEI_AVX512 static void moei_vsigmoid_avx512(float *y, const float *x, float a, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = moei_mask_avx512(n - i);
        __m512 v = _mm512_mul_ps(_mm512_set1_ps(a), _mm512_maskz_loadu_ps(m, x + i));
        _mm512_mask_storeu_ps(y + i, m, moei_sigmoid_avx512(v));
    }
}
MOEI_AVX512 static void moei_vaxpy_avx512(float *y, const float *v, float w, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = moei_mask_avx512(n - i);
        __m512 t = _mm512_fmadd_ps(_mm512_set1_ps(w), _mm512_maskz_loadu_ps(m, v + i), _mm512_maskz_loadu_ps(m, y + i));
        _mm512_mask_storeu_ps(y + i, m, t);
    }
}
MOEI_AVX512 static void moei_vaffine_avx512(float *v, const float *s, const float *b, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = moei_mask_avx512(n - i);
        __m512 t = _mm512_maskz_loadu_ps(m, b + i);
        _mm512_mask_storeu_ps(v + i, m, _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, v + i), _mm512_maskz_loadu_ps(m, s + i), t));
    }
}
MOEI_UNUSED static const moei_vec moei_vec_avx512 = {moei_vexp_avx512, moei_vsigmoid_avx512, moei_vaxpy_avx512,
                                                     moei_vaffine_avx512};
#endif

/* ==== >>bf16: BF16 on AVX512-BF16 ======================================================================================
   Lane l of a sum is the chain of VDPBF16PS over the pairs k = 32 i + 2 l, 32 i + 2 l + 1; then F32's tree and + 0.0f.
   VDPBF16PS and the conversions to bf16 take subnormals as zero, whatever MXCSR says. */

#if MOEI_HAVE_AVX512BF16
MOEI_FORCE MOEI_BF16 __mmask32 moei_mask_bf16(size_t n) { return n < 32 ? (1u << n) - 1 : 0xffffffffu; }
/* SHAPES      4 bf16 rows x C prepared tokens (bf16, padded to 32)
   REGISTERS   as moei_tile_avx512: 24 dot products of 16 pairs per 10 loads at C = 6 */
MOEI_FORCE MOEI_BF16 void moei_tile_bf16(const int C, const moei_tile *t) {
    const size_t k_end = t->k & ~(size_t)31;
    const uint8_t *w[4] = {t->w[0], t->w[1], t->w[2], t->w[3]}, *ahead = t->ahead, *ahead_end = t->ahead_end;
    const uint8_t *x[6];
    __m512 a[6][4];
    __m512i v[4];
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        x[c] = (const uint8_t *)t->x[c];
        MOEI_UNROLL for (int r = 0; r < 4; r++) a[c][r] = _mm512_setzero_ps();
    }
    for (size_t k = 0; k < k_end; k += 32) {
        if (ahead < ahead_end) MOEI_PREFETCH(ahead), ahead += 64;
        MOEI_UNROLL for (int r = 0; r < 4; r++) v[r] = _mm512_loadu_si512(w[r] + k * 2);
        MOEI_UNROLL for (int c = 0; c < C; c++) {
            __m512i xc = _mm512_loadu_si512(x[c] + k * 2);
            MOEI_UNROLL for (int r = 0; r < 4; r++) a[c][r] = _mm512_dpbf16_ps(a[c][r], (__m512bh)v[r], (__m512bh)xc);
        }
    }
    if (k_end < t->k) {
        __mmask32 m = moei_mask_bf16(t->k - k_end);
        MOEI_UNROLL for (int r = 0; r < 4; r++) v[r] = _mm512_maskz_loadu_epi16(m, w[r] + k_end * 2);
        MOEI_UNROLL for (int c = 0; c < C; c++) {
            __m512i xc = _mm512_loadu_si512(x[c] + k_end * 2);
            MOEI_UNROLL for (int r = 0; r < 4; r++) a[c][r] = _mm512_dpbf16_ps(a[c][r], (__m512bh)v[r], (__m512bh)xc);
        }
    }
    MOEI_UNROLL for (int c = 0; c < C; c++)
        moei_store_avx512(t->out + (size_t)c * t->out_stride, moei_sum4_avx512(a[c][0], a[c][1], a[c][2], a[c][3]), t->n_rows);
}
/* SHAPES      1 row x C tokens, row after row, as moei_rows_avx512 */
MOEI_FORCE MOEI_BF16 void moei_rows_bf16(const int C, const moei_rows *w, uint32_t n_rows, const void *const *xs, float *out,
                                         size_t out_stride) {
    const size_t k_end = w->k & ~(size_t)31;
    const __mmask32 m = moei_mask_bf16(w->k - k_end);
    const uint8_t *x[4];
    MOEI_UNROLL for (int c = 0; c < C; c++) x[c] = (const uint8_t *)xs[c];
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *p = moei_row(w, r);
        __m512 a[4];
        __m512i v;
        MOEI_UNROLL for (int c = 0; c < C; c++) a[c] = _mm512_setzero_ps();
        for (size_t k = 0; k < k_end; k += 32) {
            v = _mm512_loadu_si512(p + k * 2);
            MOEI_UNROLL for (int c = 0; c < C; c++)
                a[c] = _mm512_dpbf16_ps(a[c], (__m512bh)v, (__m512bh)_mm512_loadu_si512(x[c] + k * 2));
        }
        if (k_end < w->k) {
            v = _mm512_maskz_loadu_epi16(m, p + k_end * 2);
            MOEI_UNROLL for (int c = 0; c < C; c++)
                a[c] = _mm512_dpbf16_ps(a[c], (__m512bh)v, (__m512bh)_mm512_loadu_si512(x[c] + k_end * 2));
        }
        MOEI_UNROLL for (int c = 0; c < C; c++) out[(size_t)c * out_stride + r] = moei_sum_avx512(a[c]);
    }
}
#define MOEI_TILE_BF16(C)                                                                                              \
    MOEI_BF16 static void moei_tile_bf16_##C(const moei_tile *t) { moei_tile_bf16(C, t); }
MOEI_TILE_BF16(1) MOEI_TILE_BF16(2) MOEI_TILE_BF16(3) MOEI_TILE_BF16(4) MOEI_TILE_BF16(5) MOEI_TILE_BF16(6)
static const moei_tiles moei_tiles_bf16 = {
    4, 6, {moei_tile_bf16_1, moei_tile_bf16_2, moei_tile_bf16_3, moei_tile_bf16_4, moei_tile_bf16_5, moei_tile_bf16_6}};

static size_t moei_row_bytes_bf16(size_t k) { return (k + 31) / 32 * 64; }
static size_t moei_panel_bytes_bf16(uint32_t n_rows, size_t k) { return n_rows * moei_row_bytes_bf16(k); }
MOEI_BF16 static void moei_dot_bf16(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                                    size_t out_stride) {
    if (n_tokens == 1) moei_rows_bf16(1, w, n_rows, x, out, out_stride);
    else if (n_tokens == 2) moei_rows_bf16(2, w, n_rows, x, out, out_stride);
    else if (n_tokens == 3) moei_rows_bf16(3, w, n_rows, x, out, out_stride);
    else if (n_tokens == 4) moei_rows_bf16(4, w, n_rows, x, out, out_stride);
    else moei_sweep(&moei_tiles_bf16, w, moei_row_bytes_bf16(w->k), n_rows, x, n_tokens, out, out_stride);
}
static void moei_panel_bf16(const void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                            float *out, size_t out_stride) {
    moei_rows rows = *w;
    rows.data = (const uint8_t *)panel, rows.row0 = 0, rows.row_stride = moei_row_bytes_bf16(w->k);
    moei_dot_bf16(&rows, n_rows, x, n_tokens, out, out_stride);
}

/* f32, f16 and fp8 rows to bf16: the exact f32 value (fp8: rounded to f32 after its scale) to the nearest bf16, ties to even. */
MOEI_FORCE MOEI_BF16 void moei_store_bf16(void *to, __m512 low, __m512 high) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
MOEI_BF16 static void moei_prepare_bf16(void *row, const float *x, size_t k0, size_t n, size_t k) {
    uint16_t *o = (uint16_t *)row + k0;
    (void)k; /* n is no multiple of 32 at the end of the row only */
    for (size_t i = 0; i < n; i += 32) {
        __mmask32 m = moei_mask_bf16(n - i);
        __m512 high = _mm512_maskz_loadu_ps((__mmask16)(m >> 16), x + i + 16);
        moei_store_bf16(o + i, _mm512_maskz_loadu_ps((__mmask16)m, x + i), high);
    }
}
MOEI_FORCE MOEI_BF16 void moei_decode_bf16(const uint32_t format, const moei_rows *w, uint32_t n_rows, void *panel) {
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2;
    uint8_t *o = (uint8_t *)panel;
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *p = moei_row(w, r);
        for (size_t k = 0; k < w->k; k += 32, p += 32 * size, o += 64) {
            __mmask32 m = moei_mask_bf16(w->k - k);
            __m512 high = moei_load_tail_avx512(format, p + 16 * size, (__mmask16)(m >> 16));
            moei_store_bf16(o, moei_load_tail_avx512(format, p, (__mmask16)m), high);
        }
    }
}
MOEI_BF16 static void moei_decode_f32_bf16(const moei_rows *w, uint32_t n_rows, void *panel) {
    moei_decode_bf16(MOE_FORMAT_F32, w, n_rows, panel);
}
MOEI_BF16 static void moei_decode_f16_bf16(const moei_rows *w, uint32_t n_rows, void *panel) {
    moei_decode_bf16(MOE_FORMAT_F16, w, n_rows, panel);
}
MOEI_BF16 static void moei_decode_fp8_bf16(const moei_rows *w, uint32_t n_rows, void *panel) {
    uint8_t *o = (uint8_t *)panel;
    float s[16];
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *p = moei_row(w, r);
        __m512 scale = _mm512_setzero_ps(), half[2];
        for (size_t k = 0, next = 0; k < w->k; o += 64) {
            for (int i = 0; i < 2; i++, k += 16) {
                if (k >= next && k < w->k) next = k + moei_scales16(w, r, k, s), scale = _mm512_loadu_ps(s);
                half[i] = moei_fp8_avx512(p + k, moei_mask_avx512(w->k > k ? w->k - k : 0), scale);
            }
            moei_store_bf16(o, half[0], half[1]);
        }
    }
}

// clang-format off
MOEI_UNUSED static const moei_arith moei_bf16_avx512bf16 = {
    MOE_COMPUTE_BF16, MOE_TIER_AVX512BF16, moei_row_bytes_bf16, moei_prepare_bf16, moei_panel_bytes_bf16, moei_panel_bf16, {
        /* NONE         */ MOEI_NO_OPS,
        /* F32          */ {NULL, moei_decode_f32_bf16, 0},
        /* F16          */ {NULL, moei_decode_f16_bf16, 0},
        /* BF16         */ {moei_dot_bf16, NULL, UINT32_MAX},
        /* Q8_0 - Q5_1  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* Q2_K - Q6_K  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* IQ4_NL, _XS  */ MOEI_NO_OPS, MOEI_NO_OPS,
        /* MXFP4, NVFP4 */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* MXFP8        */ {NULL, moei_decode_fp8_bf16, 0},
        /* FP8_BLOCK    */ {NULL, moei_decode_fp8_bf16, 0},
        /* FP8_CHANNEL  */ {NULL, moei_decode_fp8_bf16, 0},
        /* INT8, INT4   */ MOEI_NO_OPS, MOEI_NO_OPS}};
// clang-format on
#endif
#if MOEI_HAVE_AVX512 && defined(__cplusplus) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic pop
#endif

/* ==== >>q8: Q8 on AVX2 and AVX512-VNNI ================================================================================= */

/* ==== >>neon: F32 on aarch64 =========================================================================================== */

/* ==== >>cpu: what this machine can do ==================================================================================
   Detection is a pure function of the raw words, so that it can be tested with other machines' words. Nothing is cached: cpuid
   is slow in virtual machines, but only moe_layer_init and moe_tiers ask. */

#ifndef MOEI_HAVE_AVXVNNI
#define MOEI_HAVE_AVXVNNI 0
#endif
#ifndef MOEI_HAVE_AMX
#define MOEI_HAVE_AMX 0
#endif
#ifndef MOEI_HAVE_DOTPROD
#define MOEI_HAVE_DOTPROD 0
#endif
#ifndef MOEI_HAVE_I8MM
#define MOEI_HAVE_I8MM 0
#endif
#ifndef MOEI_HAVE_NEONBF16
#define MOEI_HAVE_NEONBF16 0
#endif
#define MOEI_TIERS_BUILT                                                                                               \
    (MOE_TIER_BIT(MOE_TIER_C) | (uint32_t)MOEI_HAVE_AVX2 << MOE_TIER_AVX2 | (uint32_t)MOEI_HAVE_AVXVNNI << MOE_TIER_AVXVNNI | \
     (uint32_t)MOEI_HAVE_AVX512 << MOE_TIER_AVX512 | (uint32_t)MOEI_HAVE_VNNI << MOE_TIER_VNNI |                       \
     (uint32_t)MOEI_HAVE_AVX512BF16 << MOE_TIER_AVX512BF16 | (uint32_t)MOEI_HAVE_AMX << MOE_TIER_AMX |                 \
     (uint32_t)MOEI_HAVE_NEON << MOE_TIER_NEON | (uint32_t)MOEI_HAVE_DOTPROD << MOE_TIER_DOTPROD |                     \
     (uint32_t)MOEI_HAVE_I8MM << MOE_TIER_I8MM | (uint32_t)MOEI_HAVE_NEONBF16 << MOE_TIER_NEONBF16)

/* x86: words of cpuid leaf 1, leaf 7 and leaf 7.1, XCR0 (what the OS saves), the XSAVE features this process may use. */
typedef struct moei_cpuid {
    uint32_t leaf1_ecx, leaf7_ebx, leaf7_ecx, leaf7_edx, leaf7_1_eax;
    uint64_t xcr0, permitted;
} moei_cpuid;
MOEI_FORCE int moei_has(uint64_t word, uint64_t bits) { return (word & bits) == bits; }

MOEI_UNUSED static uint32_t moei_cpu_decide(const moei_cpuid *id) {
    uint32_t tiers = MOE_TIER_BIT(MOE_TIER_C);
    const uint32_t osxsave_avx_fma_f16c = 1u << 27 | 1u << 28 | 1u << 12 | 1u << 29, avx2_bmi = 1u << 5 | 1u << 3 | 1u << 8;
    const uint32_t avx512_f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, amx_bf16_tile_int8 = 1u << 22 | 3u << 24;
    const uint64_t ymm = 6, zmm = 0xe6, tile_config_data = 3u << 17, tile_data = 1u << 18;
    if (!moei_has(id->leaf1_ecx, osxsave_avx_fma_f16c) || !moei_has(id->xcr0, ymm) || !moei_has(id->leaf7_ebx, avx2_bmi))
        return tiers;
    tiers |= MOE_TIER_BIT(MOE_TIER_AVX2);
    if (moei_has(id->leaf7_1_eax, 1u << 4)) tiers |= MOE_TIER_BIT(MOE_TIER_AVXVNNI);
    if (!moei_has(id->leaf7_ebx, avx512_f_dq_bw_vl) || !moei_has(id->xcr0, zmm)) return tiers;
    tiers |= MOE_TIER_BIT(MOE_TIER_AVX512);
    if (moei_has(id->leaf7_ecx, 1u << 11)) tiers |= MOE_TIER_BIT(MOE_TIER_VNNI);
    if (moei_has(id->leaf7_1_eax, 1u << 5)) tiers |= MOE_TIER_BIT(MOE_TIER_AVX512BF16);
    if (moei_has(id->leaf7_edx, amx_bf16_tile_int8) && moei_has(id->xcr0, tile_config_data) && moei_has(id->permitted, tile_data))
        tiers |= MOE_TIER_BIT(MOE_TIER_AMX);
    return tiers;
}
/* aarch64: AT_HWCAP and AT_HWCAP2 of Linux */
MOEI_UNUSED static uint32_t moei_cpu_decide_arm(uint64_t hwcap, uint64_t hwcap2) {
    uint32_t tiers = MOE_TIER_BIT(MOE_TIER_C) | MOE_TIER_BIT(MOE_TIER_NEON);
    if (!moei_has(hwcap, 1u << 20)) return tiers;
    tiers |= MOE_TIER_BIT(MOE_TIER_DOTPROD);
    if (!moei_has(hwcap2, 1u << 13)) return tiers;
    tiers |= MOE_TIER_BIT(MOE_TIER_I8MM);
    return moei_has(hwcap2, 1u << 14) ? tiers | MOE_TIER_BIT(MOE_TIER_NEONBF16) : tiers;
}

#if MOEI_HAVE_AVX2
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
static void moei_cpuid_read(uint32_t leaf, uint32_t sub, uint32_t *r) { __cpuidex((int *)r, (int)leaf, (int)sub); }
static uint64_t moei_xcr0(void) { return _xgetbv(0); }
#else
static void moei_cpuid_read(uint32_t leaf, uint32_t sub, uint32_t *r) {
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
static uint64_t moei_xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}
#endif
/* Linux keeps AMX's tile data from a process until it asks, because signal frames grow by 8 KB. A bare system call, since the C
   library need not have a wrapper. */
#if defined(__linux__) && defined(__x86_64__) && !defined(__ILP32__)
static long moei_arch_prctl(long code, void *arg) {
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "0"(158L), "D"(code), "S"(arg) : "rcx", "r11", "memory");
    return r;
}
static uint64_t moei_permitted(void) {
    uint64_t features = 0;
    return moei_arch_prctl(0x1022, &features) ? 0 : features; /* ARCH_GET_XCOMP_PERM */
}
static void moei_permit_amx(void) { moei_arch_prctl(0x1023, (void *)(uintptr_t)18); } /* ARCH_REQ_XCOMP_PERM, tile data */
#else
static uint64_t moei_permitted(void) { return 0; }
static void moei_permit_amx(void) {}
#endif
static void moei_cpuid_get(moei_cpuid *id) {
    uint32_t r[4];
    memset(id, 0, sizeof *id);
    moei_cpuid_read(0, 0, r);
    if (r[0] < 7) return;
    moei_cpuid_read(1, 0, r);
    id->leaf1_ecx = r[2];
    if (id->leaf1_ecx >> 27 & 1) id->xcr0 = moei_xcr0();
    moei_cpuid_read(7, 0, r);
    id->leaf7_ebx = r[1], id->leaf7_ecx = r[2], id->leaf7_edx = r[3];
    if (r[0] >= 1) moei_cpuid_read(7, 1, r), id->leaf7_1_eax = r[0];
    if (id->leaf7_edx >> 24 & 1) id->permitted = moei_permitted();
}
MOEI_UNUSED static uint32_t moei_cpu(void) {
    moei_cpuid id;
    moei_cpuid_get(&id);
    return moei_cpu_decide(&id) & MOEI_TIERS_BUILT;
}
MOE_API int moe_enable_amx(void) {
    moei_cpuid id;
    moei_cpuid_get(&id);
    if (!(id.leaf7_edx >> 24 & 1)) return 0;
    moei_permit_amx();
    id.permitted = moei_permitted();
    return (moei_cpu_decide(&id) >> MOE_TIER_AMX & 1) != 0;
}
#else
#if MOEI_HAVE_NEON && defined(__linux__)
#include <sys/auxv.h>
MOEI_UNUSED static uint32_t moei_cpu(void) { return moei_cpu_decide_arm(getauxval(16), getauxval(26)) & MOEI_TIERS_BUILT; }
#else
MOEI_UNUSED static uint32_t moei_cpu(void) { return moei_cpu_decide_arm(0, 0) & MOEI_TIERS_BUILT; }
#endif
MOE_API int moe_enable_amx(void) { return 0; }
#endif

MOE_API uint32_t moe_tiers(void) { return moei_cpu(); }
MOE_API const char *moe_tier_name(uint32_t tier) {
    static const char *const names[] = {
#define MOE_X(id, name) name,
        MOE_TIERS(MOE_X)
#undef MOE_X
    };
    return tier < MOE_TIER_COUNT ? names[tier] : "?";
}
MOEI_UNUSED static int moei_same_name(const char *a, const char *b) { /* ASCII, case-insensitive, whatever the locale */
    for (;; a++, b++) {
        int x = *a >= 'A' && *a <= 'Z' ? *a + 32 : *a, y = *b >= 'A' && *b <= 'Z' ? *b + 32 : *b;
        if (x != y) return 0;
        if (!x) return 1;
    }
}
MOE_API uint32_t moe_tier_by_name(const char *name) {
    uint32_t tier = 0;
    while (tier < MOE_TIER_COUNT && (!name || !moei_same_name(name, moe_tier_name(tier)))) tier++;
    return tier;
}
MOE_API uint32_t moe_tier_mask(uint32_t tier) {
    const uint32_t c = MOE_TIER_BIT(MOE_TIER_C), avx2 = c | MOE_TIER_BIT(MOE_TIER_AVX2), avx512 = avx2 | MOE_TIER_BIT(MOE_TIER_AVX512);
    const uint32_t vnni = avx512 | MOE_TIER_BIT(MOE_TIER_VNNI), bf16 = vnni | MOE_TIER_BIT(MOE_TIER_AVX512BF16);
    const uint32_t neon = c | MOE_TIER_BIT(MOE_TIER_NEON), dotprod = neon | MOE_TIER_BIT(MOE_TIER_DOTPROD);
    const uint32_t i8mm = dotprod | MOE_TIER_BIT(MOE_TIER_I8MM);
    switch (tier) {
    case MOE_TIER_C: return c;
    case MOE_TIER_AVX2: return avx2;
    case MOE_TIER_AVXVNNI: return avx2 | MOE_TIER_BIT(MOE_TIER_AVXVNNI);
    case MOE_TIER_AVX512: return avx512;
    case MOE_TIER_VNNI: return vnni;
    case MOE_TIER_AVX512BF16: return bf16;
    case MOE_TIER_AMX: return bf16 | MOE_TIER_BIT(MOE_TIER_AMX);
    case MOE_TIER_NEON: return neon;
    case MOE_TIER_DOTPROD: return dotprod;
    case MOE_TIER_I8MM: return i8mm;
    case MOE_TIER_NEONBF16: return i8mm | MOE_TIER_BIT(MOE_TIER_NEONBF16);
    default: return 0;
    }
}

/* ==== >>route: logits to ids and weights =============================================================================== */

/* ==== >>presets: every family's knobs ================================================================================== */

/* ==== >>choose: kernels for a layer ==================================================================================== */

/* ==== >>validate: a desc becomes a layer =============================================================================== */

/* ==== >>layout: the workspace ========================================================================================== */

/* ==== >>phases: the work ================================================================================================ */

/* ==== >>api: the rest of the public functions ========================================================================== */

#ifdef __cplusplus
}
#endif
#endif /* MOEI_ONCE */
#endif /* MOE_IMPLEMENTATION */

/* MIT licence: see the file LICENSE, or https://opensource.org/license/mit. Copyright (c) 2026 the moe.h authors. */
