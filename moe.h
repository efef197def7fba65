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

/* ==== >>avx2: F32 on AVX2 + FMA + F16C ================================================================================= */

/* ==== >>avx512: F32 on AVX-512 F/BW/DQ/VL ============================================================================== */

/* ==== >>bf16: BF16 on AVX512-BF16 ====================================================================================== */

/* ==== >>q8: Q8 on AVX2 and AVX512-VNNI =================================================================================
   LAYOUT      A step is 8 blocks of 32 weights of one row, and lane b of every vector of 8 belongs to block b. Its weights come as
               bytes, unsigned with a constant offset (on AVX2 wide formats signed), 1 block per register on AVX2, 2 on AVX-512; its
               scales as moei_q8s, the same on both.
   DEFINITION  acc = fma((float)isum, D * d_x, acc) per block, 8 accumulators by block mod 8, tree 4 2 1, + 0.0f; see >>reference.
               isum is exact, so it may be computed in any way: unsigned weights give sum(u q) - offset * sum(q), and the sums of
               q come with the prepared row.
   LIMITS      vpmaddubsw saturates when two products exceed 32767: unsigned weights up to 129 are safe, 8-bit weights and the
               IQ4 table are not and go as |w| x sign(q, w). Of u <= 63 two products fit 16 bits twice over, of u <= 32 four times. */
#if MOEI_HAVE_AVX2

typedef struct moei_q8s { /* of a step; unused ones stay undefined */
    __m256 d, m;      /* scale; minimum (added times s_x), or scale of the second 16; Q2_K: -dmin */
    __m256i sub, min; /* 16 int16: integer scales and minima per 16, in the order of moei_q8.sum16 */
    __m256i zero;     /* 8 int32 */
} moei_q8s;

/* What a format needs beyond unsigned weights and one scale: all constants once inlined. */
MOEI_FORCE int moei_q8_has_min(uint32_t f) {
    return f == MOE_FORMAT_Q4_1 || f == MOE_FORMAT_Q5_1 || f == MOE_FORMAT_Q4_K || f == MOE_FORMAT_Q5_K;
}
MOEI_FORCE int moei_q8_has_sub(uint32_t f) {
    return f == MOE_FORMAT_Q2_K || f == MOE_FORMAT_Q3_K || f == MOE_FORMAT_Q6_K;
}
MOEI_FORCE int moei_q8_is_nvfp4(uint32_t f) { return f == MOE_FORMAT_NVFP4 || f == MOE_FORMAT_NVFP4_HF; }
MOEI_FORCE int moei_q8_is_e2m1(uint32_t f) {
    return moei_q8_is_nvfp4(f) || f == MOE_FORMAT_MXFP4 || f == MOE_FORMAT_MXFP4_HF;
}
MOEI_FORCE int moei_q8_is_wide(uint32_t f) { /* needs all 8 bits */
    return f == MOE_FORMAT_Q8_0 || f == MOE_FORMAT_INT8_CHANNEL || f == MOE_FORMAT_IQ4_NL || f == MOE_FORMAT_IQ4_XS;
}
MOEI_FORCE int moei_q8_has_side(uint32_t f) { /* scales live apart */
    return f == MOE_FORMAT_MXFP4_HF || f == MOE_FORMAT_NVFP4_HF || f == MOE_FORMAT_INT8_CHANNEL || f == MOE_FORMAT_INT4_GROUP;
}
/* What was added to make the weights unsigned. */
MOEI_FORCE int moei_q8_offset(uint32_t f) {
    if (moei_q8_is_wide(f)) return 128;
    return f == MOE_FORMAT_Q6_K ? 32 : f == MOE_FORMAT_Q5_0 || moei_q8_is_e2m1(f) ? 16 : f == MOE_FORMAT_Q4_0 ? 8 : f == MOE_FORMAT_Q3_K ? 4 : 0;
}
/* Bytes of a step. */
MOEI_FORCE size_t moei_q8_step_bytes(uint32_t f) {
    switch (f) {
    case MOE_FORMAT_Q8_0: return 272;
    case MOE_FORMAT_Q4_0:
    case MOE_FORMAT_IQ4_NL:
    case MOE_FORMAT_NVFP4:
    case MOE_FORMAT_Q4_K: return 144;
    case MOE_FORMAT_Q4_1: return 160;
    case MOE_FORMAT_Q5_0:
    case MOE_FORMAT_Q5_K: return 176;
    case MOE_FORMAT_Q5_1: return 192;
    case MOE_FORMAT_Q2_K: return 84;
    case MOE_FORMAT_Q3_K: return 110;
    case MOE_FORMAT_Q6_K: return 210;
    case MOE_FORMAT_IQ4_XS:
    case MOE_FORMAT_MXFP4: return 136;
    case MOE_FORMAT_INT8_CHANNEL: return 256;
    default: return 128;
    }
}

/* ---- loads and small vectors (x86 is little-endian) ---- */

MOEI_FORCE uint32_t moei_q8_u16(const void *p) { uint16_t v; memcpy(&v, p, 2); return v; }
MOEI_FORCE uint32_t moei_q8_u32(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }

MOEI_FORCE MOEI_AVX2 __m128i moei_q8_ld128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_ld256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
MOEI_FORCE MOEI_AVX2 __m128i moei_q8_ld64(const void *p) { return _mm_loadl_epi64((const __m128i *)p); }
MOEI_FORCE MOEI_AVX2 __m128i moei_q8_ld32(const void *p) { return _mm_cvtsi32_si128((int)moei_q8_u32(p)); }
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_and(__m256i v, int mask) { return _mm256_and_si256(v, _mm256_set1_epi8((char)mask)); }
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_i8f(__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)); } /* 8 int8 to f32 */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_both(__m128i v) { return _mm256_broadcastsi128_si256(v); }

/* ---- scales ---- */

/* 8 half-precision scales `stride` bytes apart. */
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_half8(const uint8_t *p, size_t stride) {
    uint64_t lo = 0, hi = 0;
    MOEI_UNROLL for (size_t i = 0; i < 4; i++) {
        lo |= (uint64_t)moei_q8_u16(p + i * stride) << (16 * i);
        hi |= (uint64_t)moei_q8_u16(p + (i + 4) * stride) << (16 * i);
    }
    return _mm256_cvtph_ps(_mm_insert_epi64(_mm_cvtsi64_si128((long long)lo), (long long)hi, 1));
}
/* 8 pairs of halves. */
MOEI_FORCE MOEI_AVX2 void moei_q8_half8x2(const uint8_t *p, size_t stride, __m256 *a, __m256 *b) {
    __m128i lo = moei_q8_ld32(p), hi = moei_q8_ld32(p + 2 * stride); /* blocks 0 1 4 5, 2 3 6 7 */
    lo = _mm_insert_epi32(lo, (int)moei_q8_u32(p + 1 * stride), 1), hi = _mm_insert_epi32(hi, (int)moei_q8_u32(p + 3 * stride), 1);
    lo = _mm_insert_epi32(lo, (int)moei_q8_u32(p + 4 * stride), 2), hi = _mm_insert_epi32(hi, (int)moei_q8_u32(p + 6 * stride), 2);
    lo = _mm_insert_epi32(lo, (int)moei_q8_u32(p + 5 * stride), 3), hi = _mm_insert_epi32(hi, (int)moei_q8_u32(p + 7 * stride), 3);
    __m256 l = _mm256_cvtph_ps(lo), h = _mm256_cvtph_ps(hi);
    *a = _mm256_shuffle_ps(l, h, 0x88), *b = _mm256_shuffle_ps(l, h, 0xdd);
}
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_half1(const uint8_t *p) { return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128((int)moei_q8_u16(p)))); }

/* Q4_K and Q5_K: d, dmin and 12 bytes with eight 6-bit scales and minima. The minimum is negated. */
MOEI_FORCE MOEI_AVX2 void moei_q8_scales_k(const uint8_t *p, __m256 *d, __m256 *m) {
    uint32_t a = moei_q8_u32(p + 4), b = moei_q8_u32(p + 8), c = moei_q8_u32(p + 12);
    uint64_t s = (a & 0x3f3f3f3fu) | (uint64_t)((c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u)) << 32;
    uint64_t n = (b & 0x3f3f3f3fu) | (uint64_t)((c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u)) << 32;
    __m128 h = _mm_cvtph_ps(moei_q8_ld32(p));
    *d = _mm256_mul_ps(_mm256_broadcastss_ps(h), moei_q8_i8f(_mm_cvtsi64_si128((long long)s)));
    h = _mm_xor_ps(_mm_movehdup_ps(h), _mm_set1_ps(-0.0f));
    *m = _mm256_mul_ps(_mm256_broadcastss_ps(h), moei_q8_i8f(_mm_cvtsi64_si128((long long)n)));
}
/* Q3_K: 16 6-bit scales, - 32, as int16. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_scales_q3(const uint8_t *p) {
    __m128i b = moei_q8_ld64(p), low = _mm_unpacklo_epi64(b, _mm_srli_epi16(b, 4));
    __m128i high = _mm_srlv_epi32(_mm_set1_epi32((int)moei_q8_u32(p + 8)), _mm_setr_epi32(0, 2, 4, 6));
    low = _mm_and_si128(low, _mm_set1_epi8(15)), high = _mm_slli_epi16(_mm_and_si128(high, _mm_set1_epi8(3)), 4);
    return _mm256_cvtepi8_epi16(_mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32)));
}
/* IQ4_XS: d times eight 6-bit scales - 32. */
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_scales_iq4xs(const uint8_t *p) {
    __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32((int)moei_q8_u32(p + 4)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32((int)moei_q8_u16(p + 2)), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    low = _mm256_and_si256(low, _mm256_set1_epi32(15)), high = _mm256_and_si256(high, _mm256_set1_epi32(3));
    low = _mm256_sub_epi32(_mm256_or_si256(low, _mm256_slli_epi32(high, 4)), _mm256_set1_epi32(32));
    return _mm256_mul_ps(moei_q8_half1(p), _mm256_cvtepi32_ps(low));
}
/* 2^(e - 128) for 8 exponents, subnormal below 2. */
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_half_e8m0(__m256i e) {
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x200000), _mm256_min_epi32(e, _mm256_set1_epi32(2)));
    return _mm256_castsi256_ps(_mm256_max_epi32(normal, tiny));
}
/* Half of 8 E4M3 magnitudes: as half floats they are 2^-8 too small. */
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_half_e4m3(__m128i b) {
    __m128i h = _mm_slli_epi16(_mm_and_si128(b, _mm_set1_epi16(0x7f)), 7);
    return _mm256_mul_ps(_mm256_cvtph_ps(h), _mm256_set1_ps(128.0f));
}

/* ---- scales and zero points that live apart ---- */

enum { MOEI_Q8_CHUNK = 8 }; /* steps between two fills of moei_q8side */
typedef struct moei_q8side {
    int32_t d[16 * MOEI_Q8_CHUNK]; /* floats' bits: per block, or per half block for NVFP4 */
    int32_t zero[8 * MOEI_Q8_CHUNK];
} moei_q8side;

/* 8 consecutive values as f32 times `factor`, or zero points as int32; `shift`: of the row's nibble in U4X8. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_side8(uint32_t type, const uint8_t *p, float factor, int shift) {
    __m256i v = _mm256_setzero_si256(), nan = v;
    switch (type) {
    case MOE_TYPE_U8: return _mm256_cvtepu8_epi32(_mm_min_epu8(moei_q8_ld64(p), _mm_set1_epi8(127))); /* as the reference */
    case MOE_TYPE_U4X8: return _mm256_and_si256(_mm256_srl_epi32(moei_q8_ld256(p), _mm_cvtsi32_si128(shift)), _mm256_set1_epi32(15));
    case MOE_TYPE_F32: v = moei_q8_ld256(p); break;
    case MOE_TYPE_F16: v = _mm256_castps_si256(_mm256_cvtph_ps(moei_q8_ld128(p))); break;
    case MOE_TYPE_BF16: v = _mm256_slli_epi32(_mm256_cvtepu16_epi32(moei_q8_ld128(p)), 16); break;
    case MOE_TYPE_E8M0:
        v = _mm256_cvtepu8_epi32(moei_q8_ld64(p)), nan = _mm256_cmpeq_epi32(v, _mm256_set1_epi32(255));
        v = _mm256_max_epi32(_mm256_slli_epi32(v, 23), _mm256_set1_epi32(0x400000));
        break;
    default: { /* E4M3: as half floats 2^-8 too small */
        __m128i b = _mm_cvtepu8_epi16(moei_q8_ld64(p)), a = _mm_and_si128(b, _mm_set1_epi16(0x7f));
        nan = _mm256_cvtepi16_epi32(_mm_cmpeq_epi16(a, _mm_set1_epi16(0x7f)));
        b = _mm_or_si128(_mm_slli_epi16(a, 7), _mm_slli_epi16(_mm_and_si128(b, _mm_set1_epi16(0x80)), 8));
        v = _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtph_ps(b), _mm256_set1_ps(256.0f)));
    }
    }
    v = _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(v), _mm256_set1_ps(factor)));
    return _mm256_or_si256(v, nan);
}
MOEI_FORCE size_t moei_q8_side_bytes(uint32_t type) {
    return type == MOE_TYPE_F32 || type == MOE_TYPE_U4X8 ? 4 : type == MOE_TYPE_F16 || type == MOE_TYPE_BF16 ? 2 : 1;
}
/* out[0 .. n) = the row's values for units of `unit` weights from unit i on; up to out[n + 7] is written. The grid's cols is a
   multiple of unit; a power of two of units (and i a multiple of it) is spread by permutation, others one by one. */
MOEI_FORCE MOEI_AVX2 void moei_q8_side_fill(uint32_t type, const moei_side *s, size_t row, size_t unit, size_t i, size_t n,
                                            float factor, int32_t *out) {
    const size_t size = moei_q8_side_bytes(type), per = s->cols / unit, line = row / s->rows, fast = (per & (per - 1)) == 0 && i % per == 0;
    const uint8_t *p = s->data + (type == MOE_TYPE_U4X8 ? line / 8 : line) * s->row_stride + i / per * size;
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    size_t left = (i + n - 1) / per + 1 - i / per, skip = i % per, log2 = 0;
    for (int32_t *end = out + n; out < end; p += 8 * size, left -= 8) {
        uint8_t tail[32] = {0};
        __m256i v = moei_q8_side8(type, left < 8 ? (const uint8_t *)memcpy(tail, p, left * size) : p, factor, (int)(4 * (line % 8)));
        if (fast) {
            while (per >> log2 > 1) log2++;
            for (size_t j = 0; j < per && out < end; j++, out += 8) {
                __m256i from = _mm256_srl_epi32(_mm256_add_epi32(lane, _mm256_set1_epi32((int)(8 * j))), _mm_cvtsi32_si128((int)log2));
                _mm256_storeu_si256((__m256i *)out, _mm256_permutevar8x32_epi32(v, from));
            }
            continue;
        }
        int32_t x[8];
        _mm256_storeu_si256((__m256i *)x, v);
        for (size_t j = 0; j < 8; j++, skip = 0)
            for (size_t c = skip; c < per && out < end; c++) *out++ = x[j];
    }
}
static MOEI_AVX2 MOEI_NOINLINE void moei_q8_side_values(const moei_side *s, size_t row, size_t unit, size_t i, size_t n, float factor,
                                                     int32_t *out) {
    switch (s->type) {
    case MOE_TYPE_F32: moei_q8_side_fill(MOE_TYPE_F32, s, row, unit, i, n, factor, out); break;
    case MOE_TYPE_F16: moei_q8_side_fill(MOE_TYPE_F16, s, row, unit, i, n, factor, out); break;
    case MOE_TYPE_BF16: moei_q8_side_fill(MOE_TYPE_BF16, s, row, unit, i, n, factor, out); break;
    case MOE_TYPE_E8M0: moei_q8_side_fill(MOE_TYPE_E8M0, s, row, unit, i, n, factor, out); break;
    case MOE_TYPE_E4M3: moei_q8_side_fill(MOE_TYPE_E4M3, s, row, unit, i, n, factor, out); break;
    case MOE_TYPE_U8: moei_q8_side_fill(MOE_TYPE_U8, s, row, unit, i, n, factor, out); break;
    default: moei_q8_side_fill(MOE_TYPE_U4X8, s, row, unit, i, n, factor, out);
    }
}
/* Scales and zero points of MOEI_Q8_CHUNK steps from step i of row r; what is beyond the row's end counts as 1 (8). */
MOEI_FORCE MOEI_AVX2 void moei_q8_sides(uint32_t f, const moei_rows *w, size_t r, size_t i, moei_q8side *side) {
    const size_t unit = moei_q8_is_nvfp4(f) ? 16 : 32, first = i * 256 / unit, room = MOEI_Q8_CHUNK * 256 / unit, all = w->k / unit - first;
    const size_t n = all < room ? all : room, padded = (n + 256 / unit - 1) & ~(256 / unit - 1);
    const float factor = moei_q8_is_e2m1(f) ? 0.5f : 1.0f;
    if (w->scale.data) moei_q8_side_values(&w->scale, w->row0 + r, unit, first, n, factor, side->d);
    for (size_t j = w->scale.data ? n : 0; j < padded; j++) side->d[j] = (int32_t)moei_bits(factor);
    if (f != MOE_FORMAT_INT4_GROUP) return;
    if (w->zero.data) moei_q8_side_values(&w->zero, w->row0 + r, unit, first, n, factor, side->zero);
    for (size_t j = w->zero.data ? n : 0; j < padded; j++) side->zero[j] = 8;
}

/* ---- the scales of one step, every format ---- */

MOEI_FORCE MOEI_AVX2 __m256 moei_q8_minus(__m256 v) { return _mm256_xor_ps(v, _mm256_set1_ps(-0.0f)); }
MOEI_FORCE MOEI_AVX2 void moei_q8_scales_q2(const uint8_t *p, moei_q8s *s) {
    const __m128i b = moei_q8_ld128(p), low = _mm_set1_epi8(15);
    s->d = moei_q8_half1(p + 80), s->m = moei_q8_minus(moei_q8_half1(p + 82));
    s->sub = _mm256_cvtepu8_epi16(_mm_and_si128(b, low));
    s->min = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(b, 4), low));
}
MOEI_FORCE MOEI_AVX2 void moei_q8_scales_mxfp4(const uint8_t *p, moei_q8s *s) {
    uint64_t e = 0;
    MOEI_UNROLL for (size_t b = 0; b < 8; b++) e |= (uint64_t)p[17 * b] << (8 * b);
    s->d = moei_q8_half_e8m0(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)e)));
}
MOEI_FORCE MOEI_AVX2 void moei_q8_scales_nvfp4(const uint8_t *p, moei_q8s *s) {
    __m128i b = moei_q8_ld32(p);
    b = _mm_insert_epi32(b, (int)moei_q8_u32(p + 36), 1), b = _mm_insert_epi32(b, (int)moei_q8_u32(p + 72), 2);
    b = _mm_insert_epi32(b, (int)moei_q8_u32(p + 108), 3);
    b = _mm_andnot_si128(_mm_cmpeq_epi8(b, _mm_set1_epi8(0x7f)), b); /* as ggml: the sign is ignored, 0x7f is 0 */
    s->d = moei_q8_half_e4m3(b), s->m = moei_q8_half_e4m3(_mm_srli_epi16(b, 8));
}
MOEI_FORCE MOEI_AVX2 void moei_q8_scales_nvfp4_hf(const int32_t *d, moei_q8s *s) {
    __m256 x = _mm256_castsi256_ps(moei_q8_ld256(d)), y = _mm256_castsi256_ps(moei_q8_ld256(d + 8));
    __m256 a = _mm256_permute2f128_ps(x, y, 0x20), b = _mm256_permute2f128_ps(x, y, 0x31);
    s->d = _mm256_shuffle_ps(a, b, 0x88), s->m = _mm256_shuffle_ps(a, b, 0xdd);
}
MOEI_FORCE MOEI_AVX2 void moei_q8_scales(uint32_t f, const uint8_t *p, const moei_q8side *side, size_t j, moei_q8s *s) {
    switch (f) { /* j: step of the chunk in side */
    case MOE_FORMAT_Q4_1: moei_q8_half8x2(p, 20, &s->d, &s->m); break;
    case MOE_FORMAT_Q5_1: moei_q8_half8x2(p, 24, &s->d, &s->m); break;
    case MOE_FORMAT_Q4_K:
    case MOE_FORMAT_Q5_K: moei_q8_scales_k(p, &s->d, &s->m); break;
    case MOE_FORMAT_Q2_K: moei_q8_scales_q2(p, s); break;
    case MOE_FORMAT_Q3_K: s->d = moei_q8_half1(p + 108), s->sub = moei_q8_scales_q3(p + 96); break;
    case MOE_FORMAT_Q6_K: s->d = moei_q8_half1(p + 208), s->sub = _mm256_cvtepi8_epi16(moei_q8_ld128(p + 192)); break;
    case MOE_FORMAT_IQ4_XS: s->d = moei_q8_scales_iq4xs(p); break;
    case MOE_FORMAT_MXFP4: moei_q8_scales_mxfp4(p, s); break;
    case MOE_FORMAT_NVFP4: moei_q8_scales_nvfp4(p, s); break;
    case MOE_FORMAT_NVFP4_HF: moei_q8_scales_nvfp4_hf(side->d + 16 * j, s); break;
    case MOE_FORMAT_MXFP4_HF:
    case MOE_FORMAT_INT8_CHANNEL:
    case MOE_FORMAT_INT4_GROUP:
        s->d = _mm256_castsi256_ps(moei_q8_ld256(side->d + 8 * j));
        if (f == MOE_FORMAT_INT4_GROUP) s->zero = moei_q8_ld256(side->zero + 8 * j);
        break;
    default: s->d = moei_q8_half8(p, moei_q8_step_bytes(f) / 8);
    }
}

/* ---- from integer sums to the accumulators ---- */

MOEI_FORCE MOEI_AVX2 __m256i moei_q8_times(__m256i v, int c) {
    return _mm256_slli_epi32(v, c == 128 ? 7 : c == 32 ? 5 : c == 16 ? 4 : c == 8 ? 3 : 2);
}
/* acc + one step: h0, h1 are the sums over the first and second 16 of every block; offset is what is still in the weights. */
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_add(uint32_t f, int offset, const moei_q8s *s, __m256i h0, __m256i h1, const moei_q8 *x, __m256 acc) {
    const __m256i sum16 = moei_q8_ld256(x->sum16);
    const __m256 dx = _mm256_loadu_ps(x->d);
    if (moei_q8_is_nvfp4(f)) {
        h0 = _mm256_sub_epi32(h0, moei_q8_times(_mm256_srai_epi32(_mm256_slli_epi32(sum16, 16), 16), offset));
        h1 = _mm256_sub_epi32(h1, moei_q8_times(_mm256_srai_epi32(sum16, 16), offset));
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(h0), _mm256_mul_ps(s->d, dx), acc);
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(h1), _mm256_mul_ps(s->m, dx), acc);
    }
    __m256i n = _mm256_add_epi32(h0, h1), sum = moei_q8_has_sub(f) ? _mm256_madd_epi16(s->sub, sum16) : moei_q8_ld256(x->sum);
    if (f == MOE_FORMAT_INT4_GROUP) n = _mm256_sub_epi32(n, _mm256_mullo_epi32(s->zero, sum));
    else if (offset) n = _mm256_sub_epi32(n, moei_q8_times(sum, offset));
    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(n), _mm256_mul_ps(s->d, dx), acc);
    if (moei_q8_has_min(f)) acc = _mm256_fmadd_ps(s->m, _mm256_loadu_ps(x->s), acc);
    if (f == MOE_FORMAT_Q2_K) acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(s->min, sum16)), _mm256_mul_ps(s->m, dx), acc);
    return acc;
}
MOEI_FORCE MOEI_AVX2 float moei_q8_tree(__m256 v) {
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a))) + 0.0f;
}
/* The last, partial step of a row, padded with zeros. */
MOEI_FORCE const uint8_t *moei_q8_tail(uint32_t f, const moei_rows *w, const uint8_t *p, uint8_t *tail) {
    memset(tail, 0, moei_q8_step_bytes(f));
    return (const uint8_t *)memcpy(tail, p, w->k % 256 / 32 * (moei_q8_step_bytes(f) / 8));
}
MOEI_FORCE void moei_q8_prefetch(const moei_rows *w, size_t part, size_t parts) {
    if (!w->prefetch) return;
    for (size_t i = part * w->prefetch_bytes / parts / 64, end = (part + 1) * w->prefetch_bytes / parts / 64; i < end; i++)
        MOEI_PREFETCH(w->prefetch + 64 * i);
}

/* ---- AVX2: the weights of one step ---- */

/* 16 bytes of nibbles to 32 bytes. GGUF: low nibbles are the first 16 weights; HF: nibbles in order. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_nibbles(const uint8_t *p) {
    const __m256i shift = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
    return moei_q8_and(_mm256_srlv_epi32(moei_q8_both(moei_q8_ld128(p)), shift), 15);
}
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_nibbles_hf(const uint8_t *p) {
    __m256i w = _mm256_cvtepu8_epi16(moei_q8_ld128(p)); /* 0000 hhhh llll: the two ends stay after (w << 4 | w) & 0f0f */
    return moei_q8_and(_mm256_or_si256(w, _mm256_slli_epi16(w, 4)), 15);
}
/* NVFP4: 8 bytes per 16 weights. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_nibbles_nv(const uint8_t *p) {
    __m128i b = moei_q8_ld128(p), lo = _mm_and_si128(b, _mm_set1_epi8(15)), hi = _mm_and_si128(_mm_srli_epi16(b, 4), _mm_set1_epi8(15));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi64(lo, hi)), _mm_unpackhi_epi64(lo, hi), 1);
}
/* Bit i of 32 to value v in byte i. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_bits(const uint8_t *p, int v) {
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    __m256i b = _mm256_shuffle_epi8(_mm256_set1_epi32((int)moei_q8_u32(p)), byte);
    return moei_q8_and(_mm256_cmpeq_epi8(_mm256_and_si256(b, bit), bit), v);
}
/* E2M1 codes, doubled, + 12; the IQ4 table. */
MOEI_FORCE MOEI_AVX2 __m128i moei_q8_e2m1_table(void) { return _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4); }
MOEI_FORCE MOEI_AVX2 __m128i moei_q8_iq4_table(void) {
    return _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
}
MOEI_FORCE MOEI_AVX2 void moei_q8_bytes_q6k_avx2(const uint8_t *p, __m256i v[8]) {
    MOEI_UNROLL for (int h = 0; h < 8; h += 4) {
        __m256i a = moei_q8_ld256(p + 16 * h), b = moei_q8_ld256(p + 16 * h + 32), c = moei_q8_ld256(p + 128 + 8 * h);
        v[h] = _mm256_or_si256(moei_q8_and(a, 15), moei_q8_and(_mm256_slli_epi16(c, 4), 0x30));
        v[h + 1] = _mm256_or_si256(moei_q8_and(b, 15), moei_q8_and(_mm256_slli_epi16(c, 2), 0x30));
        v[h + 2] = _mm256_or_si256(moei_q8_and(_mm256_srli_epi16(a, 4), 15), moei_q8_and(c, 0x30));
        v[h + 3] = _mm256_or_si256(moei_q8_and(_mm256_srli_epi16(b, 4), 15), moei_q8_and(_mm256_srli_epi16(c, 2), 0x30));
    }
}
/* Bit b of every byte of h to position `to`. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_plane(__m256i h, int b, int to) {
    return moei_q8_and(b < to ? _mm256_slli_epi16(h, b < to ? to - b : 0) : _mm256_srli_epi16(h, b < to ? 0 : b - to), 1 << to);
}
MOEI_FORCE MOEI_AVX2 void moei_q8_bytes_avx2(uint32_t f, const uint8_t *p, __m256i v[8]) {
    const size_t size = moei_q8_step_bytes(f) / 8; /* of a block, where blocks are of 32 */
    const int five = f == MOE_FORMAT_Q5_0 || f == MOE_FORMAT_Q5_1;
    if (f == MOE_FORMAT_Q6_K) moei_q8_bytes_q6k_avx2(p, v);
    MOEI_UNROLL for (size_t b = 0; b < 8; b++) switch (f) {
        case MOE_FORMAT_Q8_0: v[b] = moei_q8_ld256(p + 34 * b + 2); break;
        case MOE_FORMAT_INT8_CHANNEL: v[b] = moei_q8_ld256(p + 32 * b); break;
        case MOE_FORMAT_Q2_K: v[b] = moei_q8_and(_mm256_srli_epi16(moei_q8_ld256(p + 16 + b / 4 * 32), (int)(2 * (b % 4))), 3); break;
        case MOE_FORMAT_Q3_K:
            v[b] = moei_q8_and(_mm256_srli_epi16(moei_q8_ld256(p + 32 + b / 4 * 32), (int)(2 * (b % 4))), 3);
            v[b] = _mm256_or_si256(v[b], moei_q8_plane(moei_q8_ld256(p), (int)b, 2));
            break;
        case MOE_FORMAT_Q4_K:
        case MOE_FORMAT_Q5_K:
            v[b] = moei_q8_and(_mm256_srli_epi16(moei_q8_ld256(p + (f == MOE_FORMAT_Q5_K ? 48 : 16) + b / 2 * 32), (int)(4 * (b % 2))), 15);
            if (f == MOE_FORMAT_Q5_K) v[b] = _mm256_or_si256(v[b], moei_q8_plane(moei_q8_ld256(p + 16), (int)b, 4));
            break;
        case MOE_FORMAT_Q6_K: break;
        case MOE_FORMAT_NVFP4: v[b] = moei_q8_nibbles_nv(p + 36 * (b / 2) + 4 + 16 * (b % 2)); break;
        case MOE_FORMAT_IQ4_XS: v[b] = moei_q8_nibbles(p + 8 + 16 * b); break;
        case MOE_FORMAT_MXFP4_HF:
        case MOE_FORMAT_NVFP4_HF:
        case MOE_FORMAT_INT4_GROUP: v[b] = moei_q8_nibbles_hf(p + 16 * b); break;
        default:
            v[b] = moei_q8_nibbles(p + size * b + size - 16);
            if (five) v[b] = _mm256_or_si256(v[b], moei_q8_bits(p + size * b + size - 20, 16));
        }
    MOEI_UNROLL for (size_t b = 0; b < 8; b++) {
        if (moei_q8_is_e2m1(f)) v[b] = _mm256_shuffle_epi8(moei_q8_both(moei_q8_e2m1_table()), v[b]);
        if (f == MOE_FORMAT_IQ4_NL || f == MOE_FORMAT_IQ4_XS) v[b] = _mm256_shuffle_epi8(moei_q8_both(moei_q8_iq4_table()), v[b]);
    }
}

/* ---- AVX2: straight from the rows ---- */

/* Integer scales [block][half] to 4 vectors, one per two blocks: twice 2 x each, first halves in the low lane. */
MOEI_FORCE MOEI_AVX2 void moei_q8_spread_avx2(__m256i sub, __m256i pair[4]) {
    const __m256i split = moei_q8_both(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    const __m256i twice = moei_q8_both(_mm_setr_epi8(0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3));
    sub = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(sub, split), 0xd8);
    MOEI_UNROLL for (int i = 0; i < 4; i++)
        pair[i] = _mm256_shuffle_epi8(sub, _mm256_add_epi8(twice, _mm256_set1_epi8((char)(4 * i))));
}
#define MOEI_Q8_FOLD(add, bits, a, b) _mm256_add_##add(_mm256_unpacklo_##bits(a, b), _mm256_unpackhi_##bits(a, b))
/* 4 blocks: [sums over the first 16 | over the second 16]. 16-bit sums as long as they fit (LIMITS). */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_dot4_avx2(uint32_t f, const __m256i v[4], const __m256i *pair, const int8_t (*q)[32]) {
    const __m256i one = _mm256_set1_epi16(1);
    __m256i m[4], a, b;
    MOEI_UNROLL for (int i = 0; i < 4; i++) {
        const __m256i x = moei_q8_ld256(q[i]);
        if (moei_q8_is_wide(f)) m[i] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(v[i]), _mm256_sign_epi8(x, v[i])), one);
        else m[i] = _mm256_maddubs_epi16(v[i], x);
    }
    if (moei_q8_is_wide(f)) {
        a = MOEI_Q8_FOLD(epi32, epi32, m[0], m[1]), b = MOEI_Q8_FOLD(epi32, epi32, m[2], m[3]);
        return MOEI_Q8_FOLD(epi32, epi64, a, b);
    }
    a = MOEI_Q8_FOLD(epi16, epi32, m[0], m[1]), b = MOEI_Q8_FOLD(epi16, epi32, m[2], m[3]);
    if (!moei_q8_has_sub(f)) return _mm256_madd_epi16(MOEI_Q8_FOLD(epi16, epi64, a, b), one);
    a = _mm256_madd_epi16(a, pair[0]), b = _mm256_madd_epi16(b, pair[1]);
    return MOEI_Q8_FOLD(epi32, epi64, a, b);
}

enum { MOEI_Q8_GROUP = 8 }; /* tokens that share an unpacked step */

/* One row times n tokens: n is the constant 1, or at most MOEI_Q8_GROUP. REGISTERS: 8 of weights and the fold's; with several
   tokens the accumulators live in L1 (a load and a store of about 40 micro-ops). */
MOEI_FORCE MOEI_AVX2 void moei_q8_row_avx2(uint32_t f, const moei_rows *w, size_t r, const void *const *x, uint32_t n, float *out,
                                           size_t out_stride) {
    const size_t full = w->k / 256, steps = (w->k + 255) / 256;
    const uint8_t *p = moei_row(w, r);
    uint8_t tail[272];
    moei_q8side side;
    __m256 acc[MOEI_Q8_GROUP];
    for (uint32_t t = 0; t < n; t++) acc[t] = _mm256_setzero_ps();
    for (size_t i = 0; i < steps; i++, p += moei_q8_step_bytes(f)) {
        __m256i v[8], pair[4], a, b;
        moei_q8s s;
        if (i == full) p = moei_q8_tail(f, w, p, tail);
        if (moei_q8_has_side(f) && i % MOEI_Q8_CHUNK == 0) moei_q8_sides(f, w, r, i, &side);
        moei_q8_scales(f, p, &side, i % MOEI_Q8_CHUNK, &s);
        moei_q8_bytes_avx2(f, p, v);
        if (moei_q8_has_sub(f)) moei_q8_spread_avx2(s.sub, pair);
        for (uint32_t t = 0; t < n; t++) {
            const moei_q8 *q = (const moei_q8 *)x[t] + i;
            a = moei_q8_dot4_avx2(f, v, pair, q->q), b = moei_q8_dot4_avx2(f, v + 4, pair + 2, q->q + 4);
            acc[t] = moei_q8_add(f, moei_q8_is_wide(f) ? 0 : moei_q8_offset(f), &s, _mm256_permute2x128_si256(a, b, 0x20),
                                 _mm256_permute2x128_si256(a, b, 0x31), q, acc[t]);
        }
    }
    for (uint32_t t = 0; t < n; t++) out[t * out_stride] = moei_q8_tree(acc[t]);
}
MOEI_FORCE MOEI_AVX2 void moei_q8_dot_avx2(uint32_t f, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                                           float *out, size_t out_stride) {
    for (uint32_t r = 0; r < n_rows; r++) {
        moei_q8_prefetch(w, r, n_rows);
        if (n_tokens == 1) moei_q8_row_avx2(f, w, r, x, 1, out + r, out_stride);
        else
            for (uint32_t t = 0; t < n_tokens; t += MOEI_Q8_GROUP)
                moei_q8_row_avx2(f, w, r, x + t, n_tokens - t < MOEI_Q8_GROUP ? n_tokens - t : MOEI_Q8_GROUP,
                                 out + t * out_stride + r, out_stride);
    }
}

#define MOEI_Q8_DOT(isa, target, f)                                                                                      \
    static target void moei_q8_dot_##isa##_##f(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, \
        float *out, size_t out_stride) { moei_q8_dot_##isa(MOE_FORMAT_##f, w, n_rows, x, n_tokens, out, out_stride); }
#define MOEI_Q8_FORMATS(X, isa, target)                                                                                  \
    X(isa, target, Q8_0) X(isa, target, Q4_0) X(isa, target, Q4_1) X(isa, target, Q5_0) X(isa, target, Q5_1)             \
    X(isa, target, Q2_K) X(isa, target, Q3_K) X(isa, target, Q4_K) X(isa, target, Q5_K) X(isa, target, Q6_K)             \
    X(isa, target, IQ4_NL) X(isa, target, IQ4_XS) X(isa, target, MXFP4) X(isa, target, NVFP4) X(isa, target, MXFP4_HF)   \
    X(isa, target, NVFP4_HF) X(isa, target, INT8_CHANNEL) X(isa, target, INT4_GROUP)
MOEI_Q8_FORMATS(MOEI_Q8_DOT, avx2, MOEI_AVX2)

/* ---- activations ---- */

static size_t moei_q8_prepared_bytes(size_t k) { return (k + 255) / 256 * sizeof(moei_q8); }

/* One block of 32. The integer comes out of the fma's low bits: 12582912 + q. */
MOEI_FORCE MOEI_AVX2 void moei_q8_block(moei_q8 *row, size_t b, const float *x) {
    moei_q8 *to = row + b / 8;
    __m256 v[4];
    __m256i a = _mm256_setzero_si256(), i[4];
    MOEI_UNROLL for (int j = 0; j < 4; j++) {
        v[j] = _mm256_loadu_ps(x + 8 * j);
        a = _mm256_max_epi32(a, _mm256_and_si256(_mm256_castps_si256(v[j]), _mm256_set1_epi32(0x7fffffff)));
    }
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e)), m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    const uint32_t bits = (uint32_t)_mm_cvtsi128_si32(m);
    const float amax = moei_float(bits);
    const int nan = bits >= 0x7f800000u, zero = nan || amax < 1.26217745e-29f; /* 2^-96 */
    const float id = zero ? 0.0f : 127.0f / amax;
    MOEI_UNROLL for (int j = 0; j < 4; j++) {
        if (zero) v[j] = _mm256_setzero_ps();
        __m256 q = _mm256_fmadd_ps(v[j], _mm256_set1_ps(id), _mm256_set1_ps(MOEI_MAGIC));
        i[j] = _mm256_sub_epi32(_mm256_castps_si256(q), _mm256_set1_epi32(MOEI_MAGIC_BITS));
    }
    __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
    p = _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)to->q[b % 8], p);
    p = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), p), _mm256_set1_epi16(1)); /* 4 sums of each half */
    p = _mm256_add_epi32(p, _mm256_shuffle_epi32(p, 0x4e)), p = _mm256_add_epi32(p, _mm256_shuffle_epi32(p, 0xb1));
    const int lo = _mm256_cvtsi256_si32(p), hi = _mm_cvtsi128_si32(_mm256_extracti128_si256(p, 1));
    const float d = nan ? moei_float(0x7fc00000u) : zero ? 0.0f : amax / 127.0f;
    to->sum16[b % 8][0] = (int16_t)lo, to->sum16[b % 8][1] = (int16_t)hi, to->sum[b % 8] = lo + hi;
    to->d[b % 8] = d, to->s[b % 8] = d * (float)(lo + hi);
}
static MOEI_AVX2 void moei_q8_prepare(void *row, const float *x, size_t k0, size_t n, size_t k) {
    const float none[32] = {0};
    for (size_t b = 0; b < n / 32; b++) moei_q8_block((moei_q8 *)row, k0 / 32 + b, x + 32 * b);
    if (k0 + n == k)
        for (size_t b = k / 32; b % 8; b++) moei_q8_block((moei_q8 *)row, b, none);
}

#define MOEI_Q8_DIRECT(isa, f) {moei_q8_dot_##isa##_##f, NULL, UINT32_MAX}
#define MOEI_Q8_BOTH(isa, f) {moei_q8_dot_##isa##_##f, moei_q8_decode_##isa##_##f, 8}
#define MOEI_Q8_NONE {NULL, NULL, 0}
/* clang-format off */
MOEI_UNUSED static const moei_arith moei_q8_avx2 = {
    MOE_COMPUTE_Q8, MOE_TIER_AVX2, moei_q8_prepared_bytes, moei_q8_prepare, NULL, NULL,
    {MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, /* NONE F32 F16 BF16 */
     MOEI_Q8_DIRECT(avx2, Q8_0), MOEI_Q8_DIRECT(avx2, Q4_0), MOEI_Q8_DIRECT(avx2, Q4_1), MOEI_Q8_DIRECT(avx2, Q5_0),
     MOEI_Q8_DIRECT(avx2, Q5_1), MOEI_Q8_DIRECT(avx2, Q2_K), MOEI_Q8_DIRECT(avx2, Q3_K), MOEI_Q8_DIRECT(avx2, Q4_K),
     MOEI_Q8_DIRECT(avx2, Q5_K), MOEI_Q8_DIRECT(avx2, Q6_K), MOEI_Q8_DIRECT(avx2, IQ4_NL), MOEI_Q8_DIRECT(avx2, IQ4_XS),
     MOEI_Q8_DIRECT(avx2, MXFP4), MOEI_Q8_DIRECT(avx2, NVFP4), MOEI_Q8_DIRECT(avx2, MXFP4_HF), MOEI_Q8_DIRECT(avx2, NVFP4_HF),
     MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, /* MXFP8 FP8_BLOCK FP8_CHANNEL */
     MOEI_Q8_DIRECT(avx2, INT8_CHANNEL), MOEI_Q8_DIRECT(avx2, INT4_GROUP)}};
/* clang-format on */

#if MOEI_HAVE_VNNI
/* ---- AVX512-VNNI: the weights of one step, 2 blocks per register ---- */

MOEI_FORCE MOEI_VNNI __m512i moei_q8_ld512(const void *p) { return _mm512_loadu_si512(p); }
MOEI_FORCE MOEI_VNNI __m512i moei_q8_z256(const void *p) { return _mm512_broadcast_i64x4(moei_q8_ld256(p)); }
MOEI_FORCE MOEI_VNNI __m512i moei_q8_z128(__m128i v) { return _mm512_broadcast_i32x4(v); }
MOEI_FORCE MOEI_VNNI __m512i moei_q8_zand(__m512i v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi8((char)mask)); }
/* v | (w & mask), in one instruction */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_zput(__m512i v, __m512i w, int mask) {
    return _mm512_ternarylogic_epi32(v, w, _mm512_set1_epi8((char)mask), 0xf8);
}
/* Dword shifts, a and b right in the first and second block of 32 bytes. Bits that cross bytes are masked away by the callers. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_zshift(__m512i v, int a, int b) {
    return _mm512_srlv_epi32(v, _mm512_inserti64x4(_mm512_set1_epi32(a), _mm256_set1_epi32(b), 1));
}
MOEI_FORCE MOEI_VNNI __m512i moei_q8_zrotate(__m512i v, int a, int b) {
    return _mm512_rorv_epi32(v, _mm512_inserti64x4(_mm512_set1_epi32(a), _mm256_set1_epi32(b), 1));
}
/* Nibbles of two blocks at p and p + size. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_znibbles(const uint8_t *p, size_t size) {
    const __m512i shift = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
    __m512i b = _mm512_mask_broadcast_i32x4(moei_q8_z128(moei_q8_ld128(p)), 0xff00, moei_q8_ld128(p + size));
    return moei_q8_zand(_mm512_srlv_epi32(b, shift), 15);
}
MOEI_FORCE MOEI_VNNI __m512i moei_q8_znibbles_hf(const uint8_t *p) {
    __m512i w = _mm512_cvtepu8_epi16(moei_q8_ld256(p)); /* as on AVX2: (w | w << 4) & 0f0f */
    return _mm512_ternarylogic_epi32(w, _mm512_slli_epi16(w, 4), _mm512_set1_epi8(15), 0xa8);
}
MOEI_FORCE MOEI_VNNI __m512i moei_q8_znibbles_nv(const uint8_t *p) {
    const __m512i twice = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3), shift = _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4);
    return moei_q8_zand(_mm512_srlv_epi64(_mm512_permutexvar_epi64(twice, _mm512_castsi256_si512(moei_q8_ld256(p))), shift), 15);
}
MOEI_FORCE MOEI_VNNI void moei_q8_bytes_vnni(uint32_t f, const uint8_t *p, __m512i v[4]) {
    const size_t size = moei_q8_step_bytes(f) / 8, head = size - 16;
    const int five = f == MOE_FORMAT_Q5_0 || f == MOE_FORMAT_Q5_1;
    MOEI_UNROLL for (int i = 0; i < 4; i++) {
        const uint8_t *b = p + 2 * size * (size_t)i;
        const size_t half = (size_t)i / 2;
        switch (f) {
        case MOE_FORMAT_Q8_0: v[i] = _mm512_inserti64x4(_mm512_castsi256_si512(moei_q8_ld256(b + 2)), moei_q8_ld256(b + 36), 1); break;
        case MOE_FORMAT_INT8_CHANNEL: v[i] = moei_q8_ld512(b); break;
        case MOE_FORMAT_Q2_K: v[i] = moei_q8_zand(moei_q8_zshift(moei_q8_z256(p + 16 + 32 * half), i % 2 * 4, i % 2 * 4 + 2), 3); break;
        case MOE_FORMAT_Q3_K:
            v[i] = moei_q8_zand(moei_q8_zshift(moei_q8_z256(p + 32 + 32 * half), i % 2 * 4, i % 2 * 4 + 2), 3);
            v[i] = moei_q8_zput(v[i], moei_q8_zrotate(moei_q8_z256(p), 2 * i - 2, 2 * i - 1), 4);
            break;
        case MOE_FORMAT_Q4_K:
        case MOE_FORMAT_Q5_K:
            v[i] = moei_q8_zand(moei_q8_zshift(moei_q8_z256(p + (f == MOE_FORMAT_Q5_K ? 48 : 16) + 32 * i), 0, 4), 15);
            if (f == MOE_FORMAT_Q5_K) v[i] = moei_q8_zput(v[i], moei_q8_zrotate(moei_q8_z256(p + 16), 2 * i - 4, 2 * i - 3), 16);
            break;
        case MOE_FORMAT_Q6_K: /* two bits at 4: of the second 64 weights they are there, or at 6 */
            v[i] = moei_q8_zand(_mm512_srli_epi16(moei_q8_ld512(p + 64 * half), i % 2 ? 4 : 0), 15);
            v[i] = moei_q8_zput(v[i], moei_q8_zrotate(moei_q8_z256(p + 128 + 32 * half), i % 2 ? 0 : -4, i % 2 ? 2 : -2), 0x30);
            break;
        case MOE_FORMAT_NVFP4: v[i] = moei_q8_znibbles_nv(p + 36 * i + 4); break;
        case MOE_FORMAT_IQ4_XS: v[i] = moei_q8_znibbles(p + 8 + 32 * i, 16); break;
        case MOE_FORMAT_MXFP4_HF:
        case MOE_FORMAT_NVFP4_HF:
        case MOE_FORMAT_INT4_GROUP: v[i] = moei_q8_znibbles_hf(b); break;
        default:
            v[i] = moei_q8_znibbles(b + head, size);
            if (five) {
                __mmask64 high = moei_q8_u32(b + head - 4) | (uint64_t)moei_q8_u32(b + size + head - 4) << 32;
                v[i] = _mm512_mask_add_epi8(v[i], high, v[i], _mm512_set1_epi8(16));
            }
        }
        if (f == MOE_FORMAT_Q8_0 || f == MOE_FORMAT_INT8_CHANNEL) v[i] = _mm512_xor_si512(v[i], _mm512_set1_epi8(-128));
        if (moei_q8_is_e2m1(f)) v[i] = _mm512_shuffle_epi8(moei_q8_z128(moei_q8_e2m1_table()), v[i]);
        if (f == MOE_FORMAT_IQ4_NL || f == MOE_FORMAT_IQ4_XS)
            v[i] = _mm512_shuffle_epi8(moei_q8_z128(_mm_xor_si128(moei_q8_iq4_table(), _mm_set1_epi8(-128))), v[i]);
    }
}

/* ---- AVX512-VNNI: straight from the rows ---- */

/* Integer scales [block][half] to the order of packs(blocks 0 1, blocks 2 3): each 4 times, b0 b2 | second halves | b1 b3 | ... */
MOEI_FORCE MOEI_VNNI void moei_q8_spread_vnni(__m256i sub, __m512i pair[2]) {
    const __m512i from = _mm512_setr_epi64(0, 0x0004000400040004, 0x0001000100010001, 0x0005000500050005, 0x0002000200020002,
                                           0x0006000600060006, 0x0003000300030003, 0x0007000700070007);
    pair[0] = _mm512_permutexvar_epi16(from, _mm512_castsi256_si512(sub));
    pair[1] = _mm512_permutexvar_epi16(_mm512_add_epi16(from, _mm512_set1_epi16(8)), _mm512_castsi256_si512(sub));
}
/* 8 blocks: lanes [b0 b2 b4 b6 over the first 16 | over the second 16 | b1 b3 b5 b7 | ...]. Sums of 4 products fit 16 bits but
   for wide formats. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_dot8_vnni(uint32_t f, const __m512i v[4], const __m512i *pair, const int8_t (*q)[32]) {
    const __m512i one = _mm512_set1_epi16(1);
    __m512i s[4], a, b;
    MOEI_UNROLL for (int i = 0; i < 4; i++) s[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), v[i], moei_q8_ld512(q[2 * i]));
    if (moei_q8_is_wide(f)) {
        a = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]), _mm512_unpackhi_epi32(s[0], s[1]));
        b = _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]), _mm512_unpackhi_epi32(s[2], s[3]));
        return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    a = _mm512_madd_epi16(_mm512_packs_epi32(s[0], s[1]), moei_q8_has_sub(f) ? pair[0] : one);
    b = _mm512_madd_epi16(_mm512_packs_epi32(s[2], s[3]), moei_q8_has_sub(f) ? pair[1] : one);
    if (!moei_q8_has_sub(f)) return _mm512_madd_epi16(_mm512_packs_epi32(a, b), one);
    const __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
}
MOEI_FORCE MOEI_VNNI void moei_q8_row_vnni(uint32_t f, const moei_rows *w, size_t r, const void *const *x, uint32_t n, float *out,
                                           size_t out_stride) {
    const __m512i first = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(4));
    const size_t full = w->k / 256, steps = (w->k + 255) / 256;
    const uint8_t *p = moei_row(w, r);
    uint8_t tail[272];
    moei_q8side side;
    __m256 acc[MOEI_Q8_GROUP];
    for (uint32_t t = 0; t < n; t++) acc[t] = _mm256_setzero_ps();
    for (size_t i = 0; i < steps; i++, p += moei_q8_step_bytes(f)) {
        __m512i v[4], pair[2];
        moei_q8s s;
        if (i == full) p = moei_q8_tail(f, w, p, tail);
        if (moei_q8_has_side(f) && i % MOEI_Q8_CHUNK == 0) moei_q8_sides(f, w, r, i, &side);
        moei_q8_scales(f, p, &side, i % MOEI_Q8_CHUNK, &s);
        moei_q8_bytes_vnni(f, p, v);
        if (moei_q8_has_sub(f)) moei_q8_spread_vnni(s.sub, pair);
        for (uint32_t t = 0; t < n; t++) {
            const moei_q8 *q = (const moei_q8 *)x[t] + i;
            const __m512i h = moei_q8_dot8_vnni(f, v, pair, q->q);
            acc[t] = moei_q8_add(f, moei_q8_offset(f), &s, _mm512_castsi512_si256(_mm512_permutexvar_epi32(first, h)),
                                 _mm512_castsi512_si256(_mm512_permutexvar_epi32(second, h)), q, acc[t]);
        }
    }
    for (uint32_t t = 0; t < n; t++) out[t * out_stride] = moei_q8_tree(acc[t]);
}
MOEI_FORCE MOEI_VNNI void moei_q8_dot_vnni(uint32_t f, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                                           float *out, size_t out_stride) {
    for (uint32_t r = 0; r < n_rows; r++) {
        moei_q8_prefetch(w, r, n_rows);
        if (n_tokens == 1) moei_q8_row_vnni(f, w, r, x, 1, out + r, out_stride);
        else
            for (uint32_t t = 0; t < n_tokens; t += MOEI_Q8_GROUP)
                moei_q8_row_vnni(f, w, r, x + t, n_tokens - t < MOEI_Q8_GROUP ? n_tokens - t : MOEI_Q8_GROUP,
                                 out + t * out_stride + r, out_stride);
    }
}

MOEI_Q8_FORMATS(MOEI_Q8_DOT, vnni, MOEI_VNNI)

/* ---- AVX512-VNNI: many tokens ----
   LAYOUT      A panel is groups of 32 rows, for every block of 32 weights one entry: vectors of one dword (or float) per row, rows
               0-15 and 16-31 in two registers: 8 pairs of weights (4 consecutive k each), the scale, and what else the kind has.
   DEFINITION  as everywhere: a tile of 32 rows x C tokens walks one lane's blocks (b, b + 8, ...) with the accumulators in
               registers, lane after lane in the order 0 4 2 6 1 5 3 7, which makes the tree a binary counter.
   REGISTERS   2 x C integer sums, 2 x C accumulators, 2 of weights, 1 broadcast activation that both use: C = 6 fills 27 of 32. The
               integer scales per 16 need 2 x C more: C = 4.
   LIMITS      per block, row vector and token 8 dot products, 1 multiplication, 1 fma on two ports: at most 80 % of the peak; a
               minimum or integer scales make it 73 and 67 %. */

enum { MOEI_Q8_ROWS = 32 };

/* Entry of a block: pairs of vectors. */
MOEI_FORCE size_t moei_q8_entry(uint32_t f) {
    size_t pairs = 9; /* weights, d */
    if (moei_q8_has_min(f) || moei_q8_is_nvfp4(f)) pairs = 10;    /* m */
    if (moei_q8_has_sub(f)) pairs = f == MOE_FORMAT_Q2_K ? 13 : 11; /* scale 0, scale 1; Q2_K: m, minima as two int16 */
    return pairs * 128;
}
static size_t moei_q8_panel_bytes(uint32_t n_rows, size_t k) {
    return (n_rows + MOEI_Q8_ROWS - 1) / MOEI_Q8_ROWS * (k / 32) * moei_q8_entry(MOE_FORMAT_Q2_K);
}
/* What the tile needs to know of a format: formats of a kind share its code. */
MOEI_FORCE uint32_t moei_q8_kind(uint32_t f) {
    return moei_q8_has_min(f) ? MOE_FORMAT_Q4_K : moei_q8_is_nvfp4(f) ? MOE_FORMAT_NVFP4 : f == MOE_FORMAT_Q2_K ? f
           : moei_q8_has_sub(f) ? MOE_FORMAT_Q6_K : MOE_FORMAT_Q8_0;
}
MOEI_FORCE MOEI_VNNI __m512 moei_q8_set1(const float *p) { return _mm512_set1_ps(*p); }
/* -(sum << shift), the start of an integer sum that takes the weights' offset away. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_start(__m512i sum, __m128i shift) {
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_sll_epi32(sum, shift));
}
/* 4 x n dot products of n / 4 ... of half h of a block into s. */
MOEI_FORCE MOEI_VNNI void moei_q8_dots(const uint8_t *w, const moei_q8 *const *x, size_t lane, int j0, int j1, int c, __m512i s[][2]) {
    MOEI_UNROLL for (int j = j0; j < j1; j++) {
        const __m512i w0 = moei_q8_ld512(w + 128 * j), w1 = moei_q8_ld512(w + 128 * j + 64);
        MOEI_UNROLL for (int t = 0; t < c; t++) {
            __m512i q = _mm512_set1_epi32((int)moei_q8_u32(x[t]->q[lane] + 4 * j));
            s[t][0] = _mm512_dpbusd_epi32(s[t][0], w0, q), s[t][1] = _mm512_dpbusd_epi32(s[t][1], w1, q);
        }
    }
}
/* One block times c tokens. */
MOEI_FORCE MOEI_VNNI void moei_q8_entry_vnni(uint32_t kind, int c, const uint8_t *w, const moei_q8 *const *x, size_t lane, __m128i shift,
                                             __m512 acc[][2]) {
    const float *d = (const float *)(const void *)(w + 1024), *m = d + (kind == MOE_FORMAT_Q2_K ? 96 : 32);
    __m512i s[6][2], h[6][2];
    MOEI_UNROLL for (int t = 0; t < c; t++) {
        if (kind == MOE_FORMAT_Q8_0) s[t][0] = moei_q8_start(_mm512_set1_epi32(x[t]->sum[lane]), shift);
        else if (kind == MOE_FORMAT_Q4_K || kind == MOE_FORMAT_Q2_K) s[t][0] = _mm512_setzero_si512();
        else s[t][0] = moei_q8_start(_mm512_set1_epi32(x[t]->sum16[lane][0]), shift);
        s[t][1] = s[t][0];
    }
    if (kind == MOE_FORMAT_Q8_0 || kind == MOE_FORMAT_Q4_K) moei_q8_dots(w, x, lane, 0, 8, c, s);
    else {
        moei_q8_dots(w, x, lane, 0, 4, c, s);
        MOEI_UNROLL for (int t = 0; t < c; t++)
            MOEI_UNROLL for (int r = 0; r < 2; r++) {
                if (kind == MOE_FORMAT_NVFP4)
                    acc[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[t][r]), _mm512_mul_ps(_mm512_loadu_ps(d + 16 * r), moei_q8_set1(&x[t]->d[lane])), acc[t][r]);
                else h[t][r] = _mm512_mullo_epi32(s[t][r], moei_q8_ld512(d + 32 + 16 * r));
                s[t][r] = kind == MOE_FORMAT_Q2_K ? _mm512_setzero_si512() : r ? s[t][0] : moei_q8_start(_mm512_set1_epi32(x[t]->sum16[lane][1]), shift);
            }
        moei_q8_dots(w, x, lane, 4, 8, c, s);
        if (kind == MOE_FORMAT_NVFP4) d = m;
        else
            MOEI_UNROLL for (int t = 0; t < c; t++)
                MOEI_UNROLL for (int r = 0; r < 2; r++)
                    s[t][r] = _mm512_add_epi32(h[t][r], _mm512_mullo_epi32(s[t][r], moei_q8_ld512(d + 64 + 16 * r)));
    }
    MOEI_UNROLL for (int t = 0; t < c; t++)
        MOEI_UNROLL for (int r = 0; r < 2; r++) {
            const __m512 dx = moei_q8_set1(&x[t]->d[lane]), mr = _mm512_loadu_ps(m + 16 * r);
            acc[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[t][r]), _mm512_mul_ps(_mm512_loadu_ps(d + 16 * r), dx), acc[t][r]);
            if (kind == MOE_FORMAT_Q4_K) acc[t][r] = _mm512_fmadd_ps(mr, moei_q8_set1(&x[t]->s[lane]), acc[t][r]);
            if (kind != MOE_FORMAT_Q2_K) continue;
            __m512i sums = _mm512_set1_epi32((int)moei_q8_u32(x[t]->sum16[lane]));
            sums = _mm512_madd_epi16(moei_q8_ld512(m + 32 + 16 * r), sums);
            acc[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(mr, dx), acc[t][r]);
        }
}
/* 32 rows times c tokens, of which n are wanted. */
MOEI_FORCE MOEI_VNNI void moei_q8_tile_vnni(uint32_t kind, int c, const uint8_t *panel, size_t n_blocks, const void *const *x, int n,
                                            __m128i shift, uint32_t mask, float *out, size_t out_stride) {
    static const uint8_t order[8] = {0, 4, 2, 6, 1, 5, 3, 7};
    __m512 saved[4][6][2];
    for (int v = 0; v < 8; v++) {
        const size_t lane = order[v];
        const moei_q8 *q[6];
        __m512 acc[6][2];
        MOEI_UNROLL for (int t = 0; t < c; t++)
            q[t] = (const moei_q8 *)x[t < n ? t : n - 1], acc[t][0] = acc[t][1] = _mm512_setzero_ps();
        for (size_t b = lane; b < n_blocks; b += 8) {
            moei_q8_entry_vnni(kind, c, panel + b * moei_q8_entry(kind), q, lane, shift, acc);
            MOEI_UNROLL for (int t = 0; t < c; t++) q[t]++;
        }
        int level = 0;
        for (; v >> level & 1; level++)
            MOEI_UNROLL for (int t = 0; t < c; t++)
                MOEI_UNROLL for (int r = 0; r < 2; r++) acc[t][r] = _mm512_add_ps(saved[level][t][r], acc[t][r]);
        MOEI_UNROLL for (int t = 0; t < c; t++)
            MOEI_UNROLL for (int r = 0; r < 2; r++) saved[level][t][r] = acc[t][r];
    }
    for (int t = 0; t < n; t++)
        for (int r = 0; r < 2; r++)
            _mm512_mask_storeu_ps(out + (size_t)t * out_stride + 16 * r, (__mmask16)(mask >> 16 * r),
                                  _mm512_add_ps(saved[3][t][r], _mm512_setzero_ps()));
}
MOEI_FORCE MOEI_VNNI void moei_q8_panel_kind(uint32_t kind, const uint8_t *panel, const moei_rows *w, uint32_t n_rows, const void *const *x,
                                             uint32_t n_tokens, float *out, size_t out_stride) {
    const size_t n_blocks = w->k / 32, most = kind == MOE_FORMAT_Q6_K || kind == MOE_FORMAT_Q2_K ? 4 : 6;
    const size_t groups = (n_tokens + most - 1) / most, n_panels = (n_rows + MOEI_Q8_ROWS - 1) / MOEI_Q8_ROWS;
    int offset = w->format == MOE_FORMAT_INT4_GROUP ? 128 : moei_q8_offset(w->format), log2 = 0;
    while (offset >> log2 > 1) log2++;
    const __m128i shift = _mm_cvtsi32_si128(log2);
    for (size_t p = 0; p < n_panels; p++, panel += n_blocks * moei_q8_entry(kind), out += MOEI_Q8_ROWS) {
        const uint32_t rows = n_rows - (uint32_t)p * MOEI_Q8_ROWS, mask = rows < 32 ? (1u << rows) - 1 : 0xffffffffu;
        for (size_t g = 0; g < groups; g++) {
            const size_t t0 = n_tokens * g / groups, n = n_tokens * (g + 1) / groups - t0;
            moei_q8_prefetch(w, p * groups + g, n_panels * groups);
            if (n == 6) moei_q8_tile_vnni(kind, 6, panel, n_blocks, x + t0, (int)n, shift, mask, out + t0 * out_stride, out_stride);
            else if (n == 5) moei_q8_tile_vnni(kind, 5, panel, n_blocks, x + t0, (int)n, shift, mask, out + t0 * out_stride, out_stride);
            else moei_q8_tile_vnni(kind, 4, panel, n_blocks, x + t0, (int)n, shift, mask, out + t0 * out_stride, out_stride);
        }
    }
}
#define MOEI_Q8_KIND(f)                                                                                                  \
    static MOEI_VNNI void moei_q8_panel_##f(const uint8_t *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, \
        uint32_t n, float *out, size_t stride) { moei_q8_panel_kind(MOE_FORMAT_##f, panel, w, n_rows, x, n, out, stride); }
MOEI_Q8_KIND(Q8_0) MOEI_Q8_KIND(Q4_K) MOEI_Q8_KIND(Q6_K) MOEI_Q8_KIND(Q2_K) MOEI_Q8_KIND(NVFP4)
static MOEI_VNNI void moei_q8_panel_vnni(const void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                                         float *out, size_t out_stride) {
    const uint8_t *p = (const uint8_t *)panel;
    switch (moei_q8_kind(w->format)) {
    case MOE_FORMAT_Q4_K: moei_q8_panel_Q4_K(p, w, n_rows, x, n_tokens, out, out_stride); break;
    case MOE_FORMAT_Q6_K: moei_q8_panel_Q6_K(p, w, n_rows, x, n_tokens, out, out_stride); break;
    case MOE_FORMAT_Q2_K: moei_q8_panel_Q2_K(p, w, n_rows, x, n_tokens, out, out_stride); break;
    case MOE_FORMAT_NVFP4: moei_q8_panel_NVFP4(p, w, n_rows, x, n_tokens, out, out_stride); break;
    default: moei_q8_panel_Q8_0(p, w, n_rows, x, n_tokens, out, out_stride);
    }
}

/* ---- AVX512-VNNI: decoding a panel ---- */

/* 16 rows of 16 dwords to v[e] = dword e of every row. */
MOEI_FORCE MOEI_VNNI void moei_q8_transpose16(const uint8_t *rows, size_t stride, __m512i v[16]) {
    __m512i a[16], b[16];
    MOEI_UNROLL for (int i = 0; i < 16; i += 2) {
        const __m512i x = moei_q8_ld512(rows + (size_t)i * stride), y = moei_q8_ld512(rows + (size_t)(i + 1) * stride);
        a[i] = _mm512_unpacklo_epi32(x, y), a[i + 1] = _mm512_unpackhi_epi32(x, y);
    }
    MOEI_UNROLL for (int i = 0; i < 16; i += 4) /* b[i + j]: lane q has dword 4 q + j of rows i .. i + 3 */
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]), b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]),
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]), b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    MOEI_UNROLL for (int j = 0; j < 4; j++) {
        const __m512i e = _mm512_shuffle_i32x4(b[j], b[j + 4], 0x88), o = _mm512_shuffle_i32x4(b[j], b[j + 4], 0xdd);
        const __m512i g = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0x88), h = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0xdd);
        v[j] = _mm512_shuffle_i32x4(e, g, 0x88), v[j + 8] = _mm512_shuffle_i32x4(e, g, 0xdd);
        v[j + 4] = _mm512_shuffle_i32x4(o, h, 0x88), v[j + 12] = _mm512_shuffle_i32x4(o, h, 0xdd);
    }
}
/* Zero points of INT4_GROUP go into the weights, which so get the offset 128. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_minus_zero(__m512i v, __m256i zero, int i) {
    const __m512i from = _mm512_inserti64x4(_mm512_set1_epi32(2 * i), _mm256_set1_epi32(2 * i + 1), 1);
    const __m512i low = moei_q8_z128(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    __m512i z = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(from, _mm512_castsi256_si512(zero)), low);
    return _mm512_sub_epi8(_mm512_xor_si512(v, _mm512_set1_epi8(-128)), z);
}
typedef struct moei_q8rows { /* one step of 16 rows, decoded; then transposed */
    __m512i v[16][4], dm[16], sub[16], min[16]; /* dm: d and m; min: in the low half */
} moei_q8rows;
MOEI_FORCE MOEI_VNNI void moei_q8_decode_row(uint32_t f, const uint8_t *p, const moei_q8side *side, size_t j, moei_q8rows *to, int r) {
    __m512i v[4];
    moei_q8s s;
    s.d = s.m = _mm256_setzero_ps();
    moei_q8_scales(f, p, side, j, &s);
    moei_q8_bytes_vnni(f, p, v);
    MOEI_UNROLL for (int i = 0; i < 4; i++) to->v[r][i] = f == MOE_FORMAT_INT4_GROUP ? moei_q8_minus_zero(v[i], s.zero, i) : v[i];
    to->dm[r] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_castps_si256(s.d)), _mm256_castps_si256(s.m), 1);
    if (moei_q8_has_sub(f)) to->sub[r] = _mm512_cvtepi16_epi32(s.sub);
    if (f == MOE_FORMAT_Q2_K) to->min[r] = _mm512_castsi256_si512(s.min);
}
MOEI_FORCE MOEI_VNNI void moei_q8_decode_store(uint32_t f, const moei_q8rows *from, size_t n_blocks, uint8_t *to) {
    const size_t entry = moei_q8_entry(f);
    __m512i v[16];
    for (size_t i = 0; i < 4; i++) {
        moei_q8_transpose16((const uint8_t *)&from->v[0][i], sizeof from->v[0], v);
        MOEI_UNROLL for (size_t e = 0; e < 16; e++)
            if (2 * i + e / 8 < n_blocks) _mm512_storeu_si512(to + (2 * i + e / 8) * entry + e % 8 * 128, v[e]);
    }
    moei_q8_transpose16((const uint8_t *)from->dm, 64, v);
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t *m = to + b * entry + (f == MOE_FORMAT_Q2_K ? 11 : 9) * 128;
        _mm512_storeu_si512(to + b * entry + 1024, v[b]);
        if (moei_q8_has_min(f) || moei_q8_is_nvfp4(f) || f == MOE_FORMAT_Q2_K) _mm512_storeu_si512(m, v[b + 8]);
    }
    if (moei_q8_has_sub(f)) moei_q8_transpose16((const uint8_t *)from->sub, 64, v);
    for (size_t b = 0; moei_q8_has_sub(f) && b < n_blocks; b++)
        _mm512_storeu_si512(to + b * entry + 9 * 128, v[2 * b]), _mm512_storeu_si512(to + b * entry + 10 * 128, v[2 * b + 1]);
    if (f == MOE_FORMAT_Q2_K) moei_q8_transpose16((const uint8_t *)from->min, 64, v);
    for (size_t b = 0; f == MOE_FORMAT_Q2_K && b < n_blocks; b++) _mm512_storeu_si512(to + b * entry + 12 * 128, v[b]);
}
/* 16 rows from row r; beyond the view's end the last one again. */
MOEI_FORCE MOEI_VNNI void moei_q8_decode16(uint32_t f, const moei_rows *w, size_t r, size_t n_rows, uint8_t *to) {
    const size_t step = moei_q8_step_bytes(f), n_blocks = w->k / 32;
    moei_q8side side[16];
    moei_q8rows rows;
    for (size_t i = 0; 8 * i < n_blocks; i++, to += 8 * moei_q8_entry(f)) {
        const size_t n = n_blocks - 8 * i < 8 ? n_blocks - 8 * i : 8;
        for (size_t j = 0; j < 16; j++) {
            const size_t row = r + j < n_rows ? r + j : n_rows - 1;
            const uint8_t *p = moei_row(w, row) + i * step;
            uint8_t tail[272];
            if (n < 8) p = moei_q8_tail(f, w, p, tail);
            if (moei_q8_has_side(f) && i % MOEI_Q8_CHUNK == 0) moei_q8_sides(f, w, row, i, &side[j]);
            moei_q8_decode_row(f, p, &side[j], i % MOEI_Q8_CHUNK, &rows, (int)j);
        }
        moei_q8_decode_store(f, &rows, n, to);
    }
}
MOEI_FORCE MOEI_VNNI void moei_q8_decode(uint32_t f, const moei_rows *w, uint32_t n_rows, void *panel) {
    uint8_t *to = (uint8_t *)panel;
    for (uint32_t r = 0; r < n_rows; r += MOEI_Q8_ROWS, to += w->k / 32 * moei_q8_entry(f))
        moei_q8_decode16(f, w, r, n_rows, to), moei_q8_decode16(f, w, r + 16, n_rows, to + 64);
}
#define MOEI_Q8_DECODE(isa, target, f)                                                                                   \
    static target void moei_q8_decode_##isa##_##f(const moei_rows *w, uint32_t n_rows, void *panel) {                    \
        moei_q8_decode(MOE_FORMAT_##f, w, n_rows, panel); }
MOEI_Q8_FORMATS(MOEI_Q8_DECODE, vnni, MOEI_VNNI)
/* clang-format off */
MOEI_UNUSED static const moei_arith moei_q8_vnni = {
    MOE_COMPUTE_Q8, MOE_TIER_VNNI, moei_q8_prepared_bytes, moei_q8_prepare, moei_q8_panel_bytes, moei_q8_panel_vnni,
    {MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, /* NONE F32 F16 BF16 */
     MOEI_Q8_BOTH(vnni, Q8_0), MOEI_Q8_BOTH(vnni, Q4_0), MOEI_Q8_BOTH(vnni, Q4_1), MOEI_Q8_BOTH(vnni, Q5_0),
     MOEI_Q8_BOTH(vnni, Q5_1), MOEI_Q8_BOTH(vnni, Q2_K), MOEI_Q8_BOTH(vnni, Q3_K), MOEI_Q8_BOTH(vnni, Q4_K),
     MOEI_Q8_BOTH(vnni, Q5_K), MOEI_Q8_BOTH(vnni, Q6_K), MOEI_Q8_BOTH(vnni, IQ4_NL), MOEI_Q8_BOTH(vnni, IQ4_XS),
     MOEI_Q8_BOTH(vnni, MXFP4), MOEI_Q8_BOTH(vnni, NVFP4), MOEI_Q8_BOTH(vnni, MXFP4_HF), MOEI_Q8_BOTH(vnni, NVFP4_HF),
     MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, /* MXFP8 FP8_BLOCK FP8_CHANNEL */
     MOEI_Q8_BOTH(vnni, INT8_CHANNEL), MOEI_Q8_BOTH(vnni, INT4_GROUP)}};
/* clang-format on */
#endif
#endif

/* ==== >>neon: F32 on aarch64 =========================================================================================== */

/* ==== >>cpu: what this machine can do ================================================================================== */

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
