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

/* log(1 + u) for 0 <= u <= 1, and softplus, log(1 + exp(x)): 2 ULP while exp(-|x|) is normal; NaN passes.
   log1p(u) = 2 atanh(s) with s = u / (2 + u), and 2s = u - u * s. */
MOEI_FORCE float moei_log1p(float u) {
    float s = u / (2.0f + u), z = s * s, t = moei_fma(-u, s, u), p = 0.140122294f;
    p = moei_fma(p, z, 0.139995709f);
    p = moei_fma(p, z, 0.200108498f);
    p = moei_fma(p, z, 0.333332062f);
    return moei_fma(t * z, p, t);
}
MOEI_FORCE float moei_log1p_exp(float x) {
    return (x > 0.0f ? x : 0.0f) + moei_log1p(moei_exp(x > 0.0f ? -x : x));
}

/* tanh, 2 ULP: an odd polynomial near 0 (keeps -0 and tiny values), 1 - 2 / (exp(2|x|) + 1) beyond. */
MOEI_FORCE float moei_tanh(float x) {
    float a = moei_float(moei_bits(x) & 0x7fffffffu), z = a * a, p = -0.00590586725f;
    p = moei_fma(p, z, 0.0208053831f);
    p = moei_fma(p, z, -0.0537866838f);
    p = moei_fma(p, z, 0.133319587f);
    p = moei_fma(p, z, -0.333332986f);
    p = a < 0.6f ? moei_fma(a * z, p, a) : 1.0f - 2.0f / (moei_exp(a + a) + 1.0f); /* NaN comes through exp */
    return moei_float(moei_bits(p) | (moei_bits(x) & 0x80000000u));
}

/* The normal distribution function, 0.5 erfc(-x / sqrt 2), 3.5e-7 relative for x > -13: its tail is exp(-x^2 / 2) t
   P(t - 1/2) with t = 1 / (1 + 3/8 |x|). Rounding x^2 would cost x^2 / 2 ULP: an fma finds that error and the next
   one puts it back. */
MOEI_FORCE float moei_phi(float x) {
    float a = x < 0.0f ? -x : x, b = a > 15.0f ? 15.0f : a, h = b * b, lo = moei_fma(b, b, -h) * 0.5f;
    float t = 1.0f / moei_fma(b, 0.375f, 1.0f), v = t - 0.5f, e = moei_exp(h * -0.5f), p = 0.020548784f;
    p = moei_fma(p, v, -0.0397007674f);
    p = moei_fma(p, v, -0.00302236135f);
    p = moei_fma(p, v, 0.0642930641f);
    p = moei_fma(p, v, -0.0195016328f);
    p = moei_fma(p, v, -0.102586075f);
    p = moei_fma(p, v, 0.021935775f);
    p = moei_fma(p, v, 0.248706771f);
    p = moei_fma(p, v, 0.346108161f);
    p = moei_fma(p, v, 0.268182284f);
    p *= t;
    p = moei_fma(-lo, p, p);
    return x < 0.0f ? p * e : moei_fma(-p, e, 1.0f);
}
MOEI_FORCE float moei_gelu_erf(float x) { return (x < -15.0f ? -15.0f : x) * moei_phi(x); } /* -Inf gives -0 */

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

/* ==== >>q8: Q8 on AVX2 and AVX512-VNNI ================================================================================= */

/* ==== >>neon: F32 on aarch64 =========================================================================================== */

/* ==== >>cpu: what this machine can do ================================================================================== */

/* ==== >>route: logits to ids and weights ===========================================================================
   One function over data routes a token: moei_select_token does R2 .. R9 for every model (the formulas stand at
   moe_router). Begin with moei_router_begin, which resolves the zeros of a desc and decodes its arrays once for many
   tokens. All of it is f32; keys are formed in f32 (s + bias), as every model's own code does, because selection
   depends on that rounding (GLM-5: biases of 12 against scores of 1e-8). May call numerics and, through moei_vec, a
   tier. Any bits of logits and biases give distinct ids in range, with any compiler flags: what decides is integers.
   A NaN logit counts as -Inf: its expert is taken only when fewer than k others are left, and its score is 0. A NaN
   key (a NaN bias) counts as -Inf too. Logits of +Inf share the mass. Where a sum of weights is 0, its weights are 0.
   Ties: the lowest id. */

MOEI_FORCE float moei_inf(void) { return moei_float(0x7f800000u); } /* a literal is undefined under -ffast-math */

/* Order of floats as unsigned order of integers: -0 equals +0, NaN equals -Inf. */
MOEI_FORCE uint32_t moei_key(float f) {
    uint32_t u = moei_bits(f), key = u >> 31 ? 0u - u : u | 0x80000000u;
    return key > 0xff800000u || key < 0x00800000u ? 0x00800000u : key;
}

/* One element of a vector that has one expert, or of expert 0. */
MOEI_FORCE float moei_route_array(const moe_array *a, size_t i) {
    const uint8_t *p = (const uint8_t *)(a->expert ? a->expert[0] : a->data) + a->offset;
    size_t size = a->type == MOE_TYPE_F32 ? 4 : 2;
    p += i * (a->stride ? a->stride : size);
    if (a->type == MOE_TYPE_F32) return moei_loadf32(p);
    return a->type == MOE_TYPE_F16 ? moei_f16(moei_load16(p)) : moei_bf16(moei_load16(p));
}

/* A desc's routing, ready for many tokens; one per task. */
typedef struct moei_router {
    const moe_desc *d;
    const moei_vec *vec;
    uint32_t n_ids, n_sink;       /* rows of the router: n_ids that may be selected, then the shared experts' */
    uint32_t hold;                /* 1: leave weights to moei_capacity (set if the desc has a capacity) */
    uint32_t logits_only;         /* 1: nothing needs scores (gpt-oss, Granite) */
    float routed_scale, jitter;
    float *l, *s, *q;             /* [n_ids + n_sink] logits, scores, [n_ids] selection keys, of the last token */
    uint32_t *key;                /* [n_ids] order of q */
    uint64_t *best;               /* [n_ids] the selection: order << 32 | ~index */
    float *bias, *scale;          /* [n_ids] or NULL: select_bias, expert_scale */
} moei_router;

MOEI_FORCE uint32_t moei_sink_rows(const moe_desc *d) {
    const moe_shared *s = &d->shared;
    return s->gate_kind != MOE_SHARED_ROUTER_SINK ? 0 : s->count ? s->count : s->d_ff != 0;
}
MOEI_FORCE size_t moei_route_rows(const moe_desc *d) {
    return (size_t)d->n_experts + d->n_zero_experts + moei_sink_rows(d);
}

/* Bytes of scratch (any alignment) that a moei_router needs for tokens of up to k slots; SIZE_MAX on overflow. */
static MOEI_UNUSED size_t moei_select_scratch(const moe_desc *d, uint32_t k) {
    size_t rows = moei_route_rows(d);
    if (rows < k) rows = k;
    return rows < (SIZE_MAX - 64) / 32 ? rows * (6 * 4 + 8) + 64 : SIZE_MAX;
}

/* d may have its zeros resolved or not. */
static MOEI_UNUSED void moei_router_begin(moei_router *r, const moe_desc *d, const moei_vec *vec, uint32_t slots,
                                          void *scratch) {
    const moe_router *k = &d->router;
    size_t rows = moei_route_rows(d), n = rows > slots ? rows : slots, i;
    memset(r, 0, sizeof *r);
    r->d = d, r->vec = vec;
    r->n_sink = moei_sink_rows(d), r->n_ids = (uint32_t)rows - r->n_sink;
    r->hold = k->capacity != 0 || k->capacity_factor > 0.0f;
    r->logits_only = k->weight_from == MOE_WEIGHT_SOFTMAX_SELECTED && k->select_on == MOE_SELECT_LOGIT &&
                     !r->n_sink && !k->capacity_by_score;
    r->routed_scale = k->routed_scale != 0.0f ? k->routed_scale : 1.0f;
    r->jitter = k->jitter != 0.0f ? k->jitter : 0.01f;
    r->best = (uint64_t *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    r->key = (uint32_t *)(r->best + n);
    r->l = (float *)(r->key + n), r->s = r->l + n, r->q = r->s + n;
    if (k->select_bias.type) r->bias = r->q + n;
    if (k->expert_scale.type) r->scale = r->q + 2 * n;
    for (i = 0; r->bias && i < r->n_ids; i++) r->bias[i] = moei_route_array(&k->select_bias, i);
    for (i = 0; r->scale && i < r->n_ids; i++) r->scale[i] = moei_route_array(&k->expert_scale, i);
}

/* ---- the k largest ---- */

/* best[0 .. k) = order << 32 | ~index of the k <= n largest keys, descending: the smallest index first among equals.
   A sorted list: an element is compared with its last entry and seldom gets in (about k ln(n / k) times). */
static void moei_top_few(const uint32_t *key, uint32_t n, uint32_t k, uint64_t *best) {
    uint32_t i, j, count = 0, least = 0;
    for (i = 0; i < n; i++) {
        if (count == k && key[i] <= least) continue;
        uint64_t v = (uint64_t)key[i] << 32 | (uint32_t)~i;
        for (j = count < k ? count++ : k - 1; j > 0 && best[j - 1] < v; j--) best[j] = best[j - 1];
        best[j] = v;
        least = (uint32_t)(best[count - 1] >> 32);
    }
}

/* Sinks best[i] in a heap with the least entry on top. */
static void moei_sink_down(uint64_t *best, uint32_t i, uint32_t n) {
    uint64_t v = best[i];
    for (uint32_t c = 2 * i + 1; c < n; c = 2 * i + 1) {
        c += c + 1 < n && best[c + 1] < best[c];
        if (best[c] >= v) break;
        best[i] = best[c];
        i = c;
    }
    best[i] = v;
}

/* The same by a heap, for many. */
static void moei_top_many(const uint32_t *key, uint32_t n, uint32_t k, uint64_t *best) {
    uint32_t i;
    for (i = 0; i < k; i++) best[i] = (uint64_t)key[i] << 32 | (uint32_t)~i;
    for (i = k / 2; i-- > 0;) moei_sink_down(best, i, k);
    for (i = k; i < n; i++) {
        if (key[i] <= (uint32_t)(best[0] >> 32)) continue;
        best[0] = (uint64_t)key[i] << 32 | (uint32_t)~i;
        moei_sink_down(best, 0, k);
    }
    for (i = k; i-- > 1;) {
        uint64_t least = best[0];
        best[0] = best[i], best[i] = least;
        moei_sink_down(best, 0, i);
    }
}
static void moei_top_k(const uint32_t *key, uint32_t n, uint32_t k, uint64_t *best) {
    if (k <= 32) moei_top_few(key, n, k, best);
    else moei_top_many(key, n, k, best);
}
MOEI_FORCE uint32_t moei_top_index(uint64_t entry) { return ~(uint32_t)entry; }

/* ---- R1, R2: logits ---- */

static void moei_clean_logits(const moei_router *r, const float *logits) {
    uint32_t i, n = r->n_ids + r->n_sink;
    float cap = r->d->router.softcap;
    for (i = 0; i < n; i++) r->l[i] = moei_is_nan(logits[i]) ? -moei_inf() : logits[i];
    for (i = 0; r->d->router.logit_bf16 && i < n; i++) r->l[i] = moei_bf16(moei_to_bf16(r->l[i]));
    for (i = 0; cap > 0.0f && i < n; i++) r->l[i] = cap * moei_tanh(r->l[i] / cap); /* Grok */
}

/* ---- R3: scores ---- */

/* Sum by 8 accumulators, then a tree: short chains, and the same bits from every compiler. */
static float moei_route_sum(const float *x, uint32_t n) {
    float a[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    uint32_t i, j, whole = n & ~7u;
    for (i = 0; i < whole; i += 8)
        for (j = 0; j < 8; j++) a[j] += x[i + j];
    for (; i < n; i++) a[i & 7] += x[i];
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}
static float moei_route_max(const float *x, uint32_t n) {
    float a[8];
    uint32_t i, j, whole = n & ~7u;
    for (j = 0; j < 8; j++) a[j] = x[0];
    for (i = 0; i < whole; i += 8)
        for (j = 0; j < 8; j++) a[j] = x[i + j] > a[j] ? x[i + j] : a[j];
    for (; i < n; i++) a[0] = x[i] > a[0] ? x[i] : a[0];
    for (j = 1; j < 8; j++) a[0] = a[j] > a[0] ? a[j] : a[0];
    return a[0];
}

/* y = softmax(x); y may be x. +Inf share the mass, all -Inf give zeros. */
static void moei_softmax(const moei_router *r, float *y, const float *x, uint32_t n) {
    float top = n ? moei_route_max(x, n) : 0.0f, sum;
    uint32_t i, bits = moei_bits(top);
    if (bits == 0x7f800000u) {
        for (i = 0; i < n; i++) y[i] = moei_bits(x[i]) == bits ? 1.0f : 0.0f;
    } else if (bits == 0xff800000u) {
        for (i = 0; i < n; i++) y[i] = 0.0f;
        return;
    } else {
        for (i = 0; i < n; i++) y[i] = x[i] - top;
        r->vec->exp(y, y, n);
    }
    sum = moei_route_sum(y, n);
    for (i = 0; i < n; i++) y[i] /= sum;
}

/* sqrt(softplus), with moei_log1p_exp's exp done by the tier */
static void moei_sqrt_softplus(const moei_router *r, float *y, const float *x, uint32_t n) {
    uint32_t i;
    for (i = 0; i < n; i++) y[i] = moei_float(moei_bits(x[i]) | 0x80000000u);
    r->vec->exp(y, y, n);
    for (i = 0; i < n; i++) y[i] = sqrtf((x[i] > 0.0f ? x[i] : 0.0f) + moei_log1p(y[i]));
}

static void moei_scores(const moei_router *r) {
    uint32_t n = r->n_ids + r->n_sink;
    switch (r->d->router.score) {
    case MOE_SCORE_SIGMOID: r->vec->sigmoid(r->s, r->l, 1.0f, n); break;
    case MOE_SCORE_SQRT_SOFTPLUS: moei_sqrt_softplus(r, r->s, r->l, n); break;
    default: /* the shared experts' rows take their share of a softmax over all rows, the others don't see them */
        if (r->n_sink) moei_softmax(r, r->s, r->l, n);
        moei_softmax(r, r->s, r->l, r->n_ids);
    }
}

/* ---- R4, R5: keys and groups ---- */

static void moei_keys(const moei_router *r) {
    const float *from = r->d->router.select_on == MOE_SELECT_LOGIT ? r->l : r->s;
    uint32_t i;
    if (r->bias)
        for (i = 0; i < r->n_ids; i++) r->q[i] = from[i] + r->bias[i];
    else
        for (i = 0; i < r->n_ids; i++) r->q[i] = from[i];
}
static void moei_order(const moei_router *r) {
    for (uint32_t i = 0; i < r->n_ids; i++) r->key[i] = moei_key(r->q[i]);
}

/* A group's best key (DeepSeek-V2), or the sum of its two best (DeepSeek-V3). */
static float moei_group_score(const float *q, uint32_t n, uint32_t two) {
    float a = q[0], b = -moei_inf();
    for (uint32_t i = 1; i < n; i++) {
        b = q[i] > a ? a : q[i] > b ? q[i] : b;
        a = q[i] > a ? q[i] : a;
    }
    return two && n > 1 ? a + b : a;
}

/* Masks the keys of all groups but the topk_group best: with -Inf, or with 0 as some code once did. */
static void moei_limit_groups(const moei_router *r) {
    const moe_router *k = &r->d->router;
    uint32_t g, i, size = r->n_ids / k->n_group;
    float mask = k->group_mask_zero ? 0.0f : -moei_inf();
    for (i = 0; i < r->n_ids; i++) r->q[i] = moei_is_nan(r->q[i]) ? -moei_inf() : r->q[i];
    for (g = 0; g < k->n_group; g++)
        r->key[g] = moei_key(moei_group_score(r->q + g * size, size, k->group == MOE_GROUP_TOP2_SUM));
    moei_top_k(r->key, k->n_group, k->topk_group, r->best);
    for (g = 0; g < k->topk_group; g++) r->key[moei_top_index(r->best[g])] = 0; /* no key is 0 */
    for (g = 0; g < k->n_group; g++)
        for (i = 0; r->key[g] && i < size; i++) r->q[g * size + i] = mask;
}

/* ---- R6: ids ---- */

static void moei_pick_top(const moei_router *r, uint32_t k, int32_t *ids) {
    const moe_router *p = &r->d->router;
    uint32_t g, j, parts = p->group == MOE_GROUP_PER_GROUP ? p->n_group : 1;
    uint32_t size = r->n_ids / parts, each = k / parts;
    int limited = p->group == MOE_GROUP_MAX || p->group == MOE_GROUP_TOP2_SUM;
    if (limited && p->topk_group < p->n_group) moei_limit_groups(r);
    moei_order(r);
    for (g = 0; g < parts; g++) {
        moei_top_k(r->key + g * size, size, each, r->best);
        for (j = 0; j < each; j++) ids[g * each + j] = (int32_t)(g * size + moei_top_index(r->best[j]));
    }
}

/* Phi-3.5-MoE: the best expert's share of those within the threshold, then the same without it. The threshold is
   relative to the expert's own logit, the masked one included. Weights usually are 1 and 1. given: ids instead of the
   best. */
static void moei_sparsemixer(const moei_router *r, const int32_t *given, uint32_t k, int32_t *ids, float *w) {
    uint32_t i, j, n = r->n_ids;
    float *m = r->q, *e = r->s, limit = 2.0f * r->jitter;
    memcpy(m, r->l, n * sizeof *m);
    for (j = 0; j < k; j++) {
        for (i = 0; i < n; i++) r->key[i] = moei_key(m[i]);
        for (i = 0; i < j; i++)
            if (ids[i] >= 0) r->key[ids[i]] = 0; /* a masked expert comes after all, even those of -Inf */
        moei_top_k(r->key, n, 1, r->best);
        float t = r->l[moei_top_index(r->best[0])];
        ids[j] = given ? given[j] : (int32_t)moei_top_index(r->best[0]);
        for (i = 0; i < n; i++) {
            float a = r->l[i] < 0.0f ? -r->l[i] : r->l[i];
            e[i] = (t - r->l[i]) / (a > t ? a : t) > limit ? -moei_inf() : m[i];
        }
        moei_softmax(r, e, e, n);
        w[j] = ids[j] < 0 ? 0.0f : e[ids[j]];
        if (ids[j] >= 0) m[ids[j]] = -moei_inf();
    }
}

/* ---- R7, R8, R9: weights ---- */

static void moei_gather(const moei_router *r, uint32_t k, const int32_t *ids, float *w) {
    uint32_t from = r->d->router.weight_from, j;
    const float *v = from == MOE_WEIGHT_BIASED ? r->q : from == MOE_WEIGHT_SOFTMAX_SELECTED ? r->l : r->s;
    float none = from == MOE_WEIGHT_SOFTMAX_SELECTED ? -moei_inf() : 0.0f; /* a skipped slot */
    for (j = 0; j < k; j++) w[j] = ids[j] < 0 ? none : v[ids[j]];
    if (from == MOE_WEIGHT_SOFTMAX_SELECTED) moei_softmax(r, w, w, k);
}

/* Infinite scores (of sqrt(softplus)) share the mass, as +Inf logits do in the others. */
static void moei_share(float *w, uint32_t k) {
    for (uint32_t j = 0; j < k; j++) w[j] = moei_bits(w[j]) == 0x7f800000u ? 1.0f : 0.0f;
}

static void moei_normalise(const moei_router *r, uint32_t k, float *w, float *sink) {
    const moe_router *p = &r->d->router;
    uint32_t j, n_sink = p->norm == MOE_NORM_SUM_WITH_SHARED ? r->n_sink : 0;
    float sum = 0.0f;
    if (p->norm == MOE_NORM_NONE || (p->norm_skip_k1 && r->d->top_k == 1)) return;
    for (j = 0; j < k + n_sink; j++) sum += j < k ? w[j] : sink[j - k];
    if (moei_bits(sum) == 0x7f800000u) {
        moei_share(w, k);
        moei_share(sink, n_sink);
        for (sum = 0.0f, j = 0; j < k + n_sink; j++) sum += j < k ? w[j] : sink[j - k];
    }
    sum += p->norm_eps;
    sum = sum > p->norm_min ? sum : p->norm_min;
    for (j = 0; j < k; j++) w[j] = sum > 0.0f ? w[j] / sum : 0.0f;
    for (j = 0; j < n_sink; j++) sink[j] = sum > 0.0f ? sink[j] / sum : 0.0f;
}

/* Drops weights that are small against the largest, or beyond a share of the sum. Returns how many were not 0. */
static uint32_t moei_drop_small(const moei_router *r, uint32_t k, float *w) {
    const moe_router *p = &r->d->router;
    uint32_t j, saved = 0, keep = p->min_keep ? p->min_keep : 1;
    float sum = 0.0f, before = 0.0f, least, most;
    if (!(p->drop_below > 0.0f) && !(p->top_p > 0.0f)) return 0;
    for (j = 0; j < k; j++) r->key[j] = moei_key(w[j]);
    moei_top_k(r->key, k, k, r->best);
    for (j = 0; j < k; j++) sum += w[moei_top_index(r->best[j])];
    least = w[moei_top_index(r->best[0])] * p->drop_below, most = sum * p->top_p;
    if (!(p->top_p > 0.0f && p->top_p < 1.0f)) most = moei_inf();
    for (j = 0; j < k; j++) {
        float *v = w + moei_top_index(r->best[j]), old = *v;
        if (j >= keep && (old < least || before >= most) && old != 0.0f) *v = 0.0f, saved++;
        before += old;
    }
    return saved;
}

/* What follows normalisation; expert_scale comes last, so that folding it into the experts changes nothing else. */
static uint32_t moei_scale_weights(const moei_router *r, uint32_t k, const int32_t *ids, float *w, float *sink) {
    uint32_t j, saved = moei_drop_small(r, k, w);
    for (j = 0; j < k; j++) w[j] *= r->routed_scale;
    for (j = 0; r->scale && j < k; j++) w[j] *= ids[j] < 0 ? 0.0f : r->scale[ids[j]];
    for (j = 0; j < r->n_sink; j++) sink[j] *= r->routed_scale;
    return saved;
}

/* Routes one token. logits [rows] as W x + bias; given [k] ids of a table or the caller (-1 = skip), or NULL: select;
   writes ids [k] (may be `given`), weights [k] and sink [n_sink] (the shared experts' weights; NULL if not wanted).
   Returns how many slots drop_below and top_p saved: their weights are 0. r->hold: moei_capacity has to follow. */
static MOEI_UNUSED uint32_t moei_select_token(const moei_router *r, const float *logits, const int32_t *given,
                                              uint32_t k, int32_t *ids, float *weights, float *sink) {
    const moe_router *p = &r->d->router;
    moei_clean_logits(r, logits);
    if (p->pick == MOE_PICK_SPARSEMIXER) {
        moei_sparsemixer(r, given, k, ids, weights);
    } else {
        if (!r->logits_only) moei_scores(r);
        moei_keys(r);
        if (given) memmove(ids, given, k * sizeof *ids);
        else moei_pick_top(r, k, ids);
        moei_gather(r, k, ids, weights);
    }
    if (!sink) sink = r->s + r->n_ids;
    else memcpy(sink, r->s + r->n_ids, r->n_sink * sizeof *sink);
    if (!r->hold || !p->capacity_norm_after) moei_normalise(r, k, weights, sink);
    return r->hold ? 0 : moei_scale_weights(r, k, ids, weights, sink);
}

/* The best score of the token last routed, for a capacity queue in order of scores. */
MOEI_FORCE float moei_best_score(const moei_router *r) { return moei_route_max(r->s, r->n_ids); }


/* ---- Tables, capacity, statistics ---- */

/* ids [k] of a token in the routing table; ids NULL: only checks. -1 in a table skips the slot. */
static MOEI_UNUSED moe_status moei_table_row(const moe_desc *d, int32_t token, uint32_t k, int32_t *ids) {
    const moe_router *p = &d->router;
    size_t size = p->table_bytes == 8 ? 8 : 4, stride = p->table_stride ? p->table_stride : d->top_k * size;
    if (token < 0 || (uint32_t)token >= p->table_rows) return MOE_ERR_TOKEN_ID;
    const uint8_t *row = (const uint8_t *)p->table + (size_t)(uint32_t)token * stride;
    for (uint32_t j = 0; j < k; j++, row += size) {
        uint32_t id = moei_load32(row), high = size == 8 ? moei_load32(row + 4) : id == UINT32_MAX ? id : 0;
        int skip = id == UINT32_MAX && high == UINT32_MAX;
        if (!skip && (high || id >= d->n_experts + d->n_zero_experts)) return MOE_ERR_EXPERT_ID;
        if (ids) ids[j] = skip ? -1 : (int32_t)id;
    }
    return MOE_OK;
}

/* Places per expert in a call of n tokens; SIZE_MAX = no limit. The product is rounded to float on purpose: 0.1f is a
   little more than 0.1, and 10 tokens at 0.1 are one place, not two. */
static MOEI_UNUSED size_t moei_capacity_places(const moe_desc *d, size_t n_tokens) {
    float want = (float)n_tokens * d->router.capacity_factor;
    size_t places = want < 4e9f ? (size_t)want : SIZE_MAX;
    if (d->router.capacity) return d->router.capacity;
    if (!(want > 0.0f) || places == SIZE_MAX) return SIZE_MAX;
    return places + ((float)places < want);
}
/* Bytes of scratch (any alignment) for moei_capacity; n_tokens < 2^32. */
static MOEI_UNUSED size_t moei_capacity_scratch(const moe_desc *d, size_t n_tokens) {
    size_t n = (size_t)d->n_experts + d->n_zero_experts;
    return (d->router.capacity_by_score ? n_tokens * 12 : 0) + n * 4 + 64;
}

typedef struct moei_held {  /* the held weights of a call, as moei_select_token left them */
    size_t n_tokens;
    uint32_t k;
    const int32_t *ids;     /* [n_tokens][k] */
    float *weights;         /* [n_tokens][k] */
    float *sink;            /* [n_tokens][n_sink]; NULL if n_sink is 0 */
    const float *best;      /* [n_tokens] moei_best_score; needed with capacity_by_score only */
    float *pass;            /* [n_tokens][k] or NULL: gets w of dropped slots for MOE_DROP_PASS_THROUGH, else 0 */
    uint64_t dropped, saved;
} moei_held;

/* Weights of slots beyond an expert's places become 0. All first choices queue before all second choices. */
static void moei_drop_over(const moei_router *r, moei_held *h, size_t places, const uint64_t *order, uint32_t *used) {
    memset(used, 0, r->n_ids * sizeof *used);
    for (uint32_t j = 0; j < h->k; j++) {
        for (size_t i = 0; i < h->n_tokens; i++) {
            size_t at = (order ? moei_top_index(order[i]) : i) * h->k + j;
            if (h->pass) h->pass[at] = 0.0f;
            if (h->ids[at] < 0 || used[h->ids[at]]++ < places) continue;
            if (h->pass) h->pass[at] = h->weights[at] * r->routed_scale;
            h->weights[at] = 0.0f;
            h->dropped++;
        }
    }
}

/* Capacity (Switch, GShard, NLLB) of a whole call: drops, then does what moei_select_token held back: normalisation
   if it comes after dropping, and the scales. */
static MOEI_UNUSED void moei_capacity(const moei_router *r, moei_held *h, void *scratch) {
    const moe_router *p = &r->d->router;
    uint64_t *order = (uint64_t *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    uint32_t n = p->capacity_by_score ? (uint32_t)h->n_tokens : 0, *key = (uint32_t *)(order + n);
    for (uint32_t t = 0; t < n; t++) key[t] = moei_key(h->best[t]);
    if (n) moei_top_many(key, n, n, order);
    moei_drop_over(r, h, moei_capacity_places(r->d, h->n_tokens), n ? order : NULL, key + n);
    for (size_t t = 0; t < h->n_tokens; t++) {
        float *w = h->weights + t * h->k, *sink = h->sink ? h->sink + t * r->n_sink : NULL;
        if (p->capacity_norm_after) moei_normalise(r, h->k, w, sink);
        h->saved += moei_scale_weights(r, h->k, h->ids + t * h->k, w, sink);
    }
}

/* Adds a token's scores and its logsumexp(W x + bias)^2. */
static MOEI_UNUSED void moei_route_stats(const moei_router *r, const float *logits, moe_stats *stats) {
    uint32_t i;
    double sum = 0.0, top;
    moei_clean_logits(r, logits);
    moei_scores(r);
    for (i = 0; stats->score && i < r->n_ids; i++) stats->score[i] += (double)r->s[i];
    for (i = 0; i < r->n_ids; i++) r->q[i] = moei_is_nan(logits[i]) ? -moei_inf() : logits[i];
    top = (double)moei_route_max(r->q, r->n_ids);
    if (!moei_is_finite((float)top)) return;
    for (i = 0; i < r->n_ids; i++) r->q[i] -= (float)top;
    r->vec->exp(r->q, r->q, r->n_ids);
    for (i = 0; i < r->n_ids; i++) sum += (double)r->q[i];
    top += log(sum);
    stats->z += top * top;
}

/* ---- Checks ---- */

static MOEI_UNUSED moe_status moei_fail(moe_error *e, moe_status status, const char *field, uint64_t got,
                                        uint64_t want) {
    if (e) e->status = status, e->field = field, e->got = got, e->want = want;
    return status;
}

typedef struct moei_knob_range {
    const char *field;
    size_t offset;   /* in moe_desc */
    uint32_t count;  /* values 0 .. count - 1 */
} moei_knob_range;
#define MOEI_KNOB(field, count) {#field, offsetof(moe_desc, field), (uint32_t)(count)}
static const moei_knob_range moei_router_knobs[] = {
    MOEI_KNOB(router.score, MOE_SCORE_COUNT), MOEI_KNOB(router.select_on, MOE_SELECT_COUNT),
    MOEI_KNOB(router.pick, MOE_PICK_COUNT), MOEI_KNOB(router.weight_from, MOE_WEIGHT_COUNT),
    MOEI_KNOB(router.norm, MOE_NORM_COUNT), MOEI_KNOB(router.group, MOE_GROUP_COUNT),
    MOEI_KNOB(router.group_mask_zero, 2), MOEI_KNOB(router.norm_skip_k1, 2), MOEI_KNOB(router.logit_bf16, 2),
    MOEI_KNOB(router.capacity_drop, MOE_DROP_COUNT), MOEI_KNOB(router.capacity_by_score, 2),
    MOEI_KNOB(router.capacity_norm_after, 2), MOEI_KNOB(shared.gate_kind, MOE_SHARED_COUNT)};
/* count 0: any finite value; 1: 0 .. 1; 2: not negative */
static const moei_knob_range moei_router_floats[] = {
    MOEI_KNOB(router.softcap, 2), MOEI_KNOB(router.jitter, 2), MOEI_KNOB(router.norm_eps, 2),
    MOEI_KNOB(router.norm_min, 2), MOEI_KNOB(router.routed_scale, 0), MOEI_KNOB(router.capacity_factor, 2),
    MOEI_KNOB(router.drop_below, 1), MOEI_KNOB(router.top_p, 1)};

static moe_status moei_check_knobs(const moe_desc *d, const moei_knob_range *list, size_t n, moe_error *error) {
    for (size_t i = 0; i < n; i++) {
        uint32_t v;
        memcpy(&v, (const char *)d + list[i].offset, 4);
        if (v >= list[i].count) return moei_fail(error, MOE_ERR_KNOB, list[i].field, v, list[i].count - 1);
    }
    return MOE_OK;
}
static moe_status moei_check_floats(const moe_desc *d, const moei_knob_range *list, size_t n, moe_error *error) {
    for (size_t i = 0; i < n; i++) {
        float v;
        memcpy(&v, (const char *)d + list[i].offset, 4);
        if (!moei_is_finite(v)) return moei_fail(error, MOE_ERR_VALUE, list[i].field, moei_bits(v), 0);
        if (list[i].count && (v < 0.0f || (list[i].count == 1 && v > 1.0f)))
            return moei_fail(error, MOE_ERR_KNOB, list[i].field, moei_bits(v), 0);
    }
    return MOE_OK;
}
static moe_status moei_check_vector(const moe_array *a, const char *field, moe_error *error) {
    if (a->type == MOE_TYPE_NONE) return MOE_OK;
    if (a->type != MOE_TYPE_F32 && a->type != MOE_TYPE_F16 && a->type != MOE_TYPE_BF16)
        return moei_fail(error, MOE_ERR_TYPE, field, a->type, MOE_TYPE_F32);
    if (a->expert ? !a->expert[0] : !a->data) return moei_fail(error, MOE_ERR_NULL, field, 0, 0);
    return MOE_OK;
}

static moe_status moei_check_groups(const moe_desc *d, moe_error *error) {
    const moe_router *p = &d->router;
    uint32_t n = d->n_experts + d->n_zero_experts, size;
    if (p->group == MOE_GROUP_NONE) return MOE_OK;
    if (!p->n_group || n % p->n_group) return moei_fail(error, MOE_ERR_KNOB, "router.n_group", p->n_group, n);
    size = n / p->n_group;
    if (p->group == MOE_GROUP_PER_GROUP) {
        if (d->top_k % p->n_group || d->top_k / p->n_group > size)
            return moei_fail(error, MOE_ERR_KNOB, "router.n_group", p->n_group, d->top_k);
    } else if (!p->topk_group || p->topk_group > p->n_group || (uint64_t)p->topk_group * size < d->top_k) {
        return moei_fail(error, MOE_ERR_KNOB, "router.topk_group", p->topk_group, p->n_group);
    }
    return MOE_OK;
}

static moe_status moei_check_pick(const moe_desc *d, moe_error *error) {
    const moe_router *p = &d->router;
    if (p->pick == MOE_PICK_TABLE) {
        size_t size = p->table_bytes == 8 ? 8 : 4;
        if (!p->table) return moei_fail(error, MOE_ERR_NULL, "router.table", 0, 0);
        if (p->table_bytes && p->table_bytes != 4 && p->table_bytes != 8)
            return moei_fail(error, MOE_ERR_KNOB, "router.table_bytes", p->table_bytes, 4);
        if (p->table_stride && p->table_stride < d->top_k * size)
            return moei_fail(error, MOE_ERR_STRIDE, "router.table_stride", p->table_stride, d->top_k * size);
    }
    if (p->pick == MOE_PICK_SPARSEMIXER) { /* defined for two experts, and for logits alone */
        if (d->top_k > 2) return moei_fail(error, MOE_ERR_KNOB, "top_k", d->top_k, 2);
        if (p->group) return moei_fail(error, MOE_ERR_KNOB, "router.group", p->group, MOE_GROUP_NONE);
        if (p->select_bias.type) return moei_fail(error, MOE_ERR_KNOB, "router.select_bias", p->select_bias.type, 0);
        if (p->capacity_by_score) return moei_fail(error, MOE_ERR_KNOB, "router.capacity_by_score", 1, 0);
        if (moei_sink_rows(d)) return moei_fail(error, MOE_ERR_KNOB, "shared.gate_kind", d->shared.gate_kind, 0);
    }
    return MOE_OK;
}

/* Everything that routing reads of a desc. */
static moe_status moei_check_router(const moe_desc *d, moe_error *error) {
    uint64_t n = (uint64_t)d->n_experts + d->n_zero_experts;
    moe_status status;
    if (!d->n_experts || n + d->shared.count > INT32_MAX)
        return moei_fail(error, MOE_ERR_SIZE, "n_experts", n, INT32_MAX);
    if (!d->top_k || d->top_k > n) return moei_fail(error, MOE_ERR_SIZE, "top_k", d->top_k, n);
    status = moei_check_knobs(d, moei_router_knobs, MOEI_COUNT(moei_router_knobs), error);
    if (!status) status = moei_check_floats(d, moei_router_floats, MOEI_COUNT(moei_router_floats), error);
    if (!status) status = moei_check_vector(&d->router.select_bias, "router.select_bias", error);
    if (!status) status = moei_check_vector(&d->router.expert_scale, "router.expert_scale", error);
    if (!status) status = moei_check_groups(d, error);
    if (!status) status = moei_check_pick(d, error);
    if (!status && d->router.norm == MOE_NORM_SUM_WITH_SHARED && !moei_sink_rows(d))
        status = moei_fail(error, MOE_ERR_KNOB, "router.norm", d->router.norm, MOE_NORM_SUM);
    return status;
}

/* ---- moe_select ---- */

#define MOEI_SELECT_ROWS 2048 /* its scratch is on the stack: 64 KiB */

static void moei_route_exp(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = moei_exp(x[i]);
}
static void moei_route_sigmoid(float *y, const float *x, float a, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = moei_sigmoid(a * x[i]);
}
static const moei_vec moei_route_vec = {moei_route_exp, moei_route_sigmoid, NULL, NULL};

static moe_status moei_check_select(const moe_desc *d, const float *logits, size_t n_tokens, const int32_t *token_ids,
                                    const int32_t *ids, const float *weights, moe_error *error) {
    const char *missing = !d ? "desc" : !logits ? "logits" : !ids ? "ids" : !weights ? "weights" : NULL;
    if (!d || (n_tokens && missing)) return moei_fail(error, MOE_ERR_NULL, missing, 0, 0);
    if (d->begin_ != MOE_CANARY) return moei_fail(error, MOE_ERR_DESC, "begin_", d->begin_, MOE_CANARY);
    if (d->end_ != MOE_CANARY) return moei_fail(error, MOE_ERR_DESC, "end_", d->end_, MOE_CANARY);
    moe_status status = moei_check_router(d, error);
    if (status) return status;
    if (moei_route_rows(d) > MOEI_SELECT_ROWS)
        return moei_fail(error, MOE_ERR_SIZE, "n_experts", moei_route_rows(d), MOEI_SELECT_ROWS);
    if (d->router.pick != MOE_PICK_TABLE) return MOE_OK;
    if (n_tokens && !token_ids) return moei_fail(error, MOE_ERR_TOKEN_ID, "token_ids", 0, 0);
    for (size_t t = 0; t < n_tokens; t++) {
        status = moei_table_row(d, token_ids[t], d->top_k, NULL);
        if (status == MOE_ERR_TOKEN_ID)
            return moei_fail(error, status, "token_ids", (uint32_t)token_ids[t], d->router.table_rows);
        if (status) return moei_fail(error, status, "router.table", t, d->n_experts + d->n_zero_experts);
    }
    return MOE_OK;
}

MOE_API moe_status moe_select(const moe_desc *desc, const float *logits, size_t n_tokens, const int32_t *token_ids,
                              int32_t *ids, float *weights, moe_error *error) {
    uint64_t scratch[MOEI_SELECT_ROWS * 4 + 8];
    moei_router r;
    moe_status status = moei_check_select(desc, logits, n_tokens, token_ids, ids, weights, error);
    if (status) return status;
    moei_router_begin(&r, desc, &moei_route_vec, desc->top_k, scratch);
    r.hold = 0;
    for (size_t t = 0; t < n_tokens; t++, logits += r.n_ids + r.n_sink, ids += desc->top_k, weights += desc->top_k) {
        int given = desc->router.pick == MOE_PICK_TABLE;
        if (given) moei_table_row(desc, token_ids[t], desc->top_k, ids);
        moei_select_token(&r, logits, given ? ids : NULL, desc->top_k, ids, weights, NULL);
    }
    return moei_fail(error, MOE_OK, "", 0, 0);
}

/* ==== >>presets: every family's knobs, names, counts ===============================================================
   A row per family: its names (Hugging Face model_type and GGUF architecture; case and - _ . don't matter), words for
   the knobs that differ from zero, and the numbers. Read from the models' own code and configs; M = from memory,
   check before relying on it. Numbers are those of the largest release: a checkpoint's config wins. Families of
   DeepSeek-V3's class say top2 with 1 group: the statistic is the code's, the number of groups is the config's. */

typedef struct moei_word {
    const char *word;
    size_t offset; /* in moe_desc, of a uint32_t, or of a float if real is not 0 */
    uint32_t value;
    float real;
} moei_word;
#define MOEI_WORD(word, field, value) {word, offsetof(moe_desc, field), (uint32_t)(value), 0.0f}
#define MOEI_REAL(word, field, real) {word, offsetof(moe_desc, field), 0, real}
static const moei_word moei_words[] = {
    MOEI_WORD("sigmoid", router.score, MOE_SCORE_SIGMOID),
    MOEI_WORD("sqrtsoftplus", router.score, MOE_SCORE_SQRT_SOFTPLUS),
    MOEI_WORD("logit", router.select_on, MOE_SELECT_LOGIT),
    MOEI_WORD("sparsemixer", router.pick, MOE_PICK_SPARSEMIXER),
    MOEI_WORD("selected", router.weight_from, MOE_WEIGHT_SOFTMAX_SELECTED),
    MOEI_WORD("sum", router.norm, MOE_NORM_SUM),
    MOEI_WORD("sum+shared", router.norm, MOE_NORM_SUM_WITH_SHARED),
    MOEI_WORD("max", router.group, MOE_GROUP_MAX),
    MOEI_WORD("top2", router.group, MOE_GROUP_TOP2_SUM),
    MOEI_WORD("pergroup", router.group, MOE_GROUP_PER_GROUP),
    MOEI_WORD("skip_k1", router.norm_skip_k1, 1),
    MOEI_WORD("norm_after", router.capacity_norm_after, 1),
    MOEI_REAL("floor1e-12", router.norm_min, 1e-12f),
    MOEI_REAL("floor_eps", router.norm_min, 1.1920929e-7f),
    MOEI_REAL("softcap30", router.softcap, 30.0f),
    MOEI_REAL("rms1e-6", router.input_norm_eps, 1e-6f),
    MOEI_WORD("gelu_tanh", ffn.activation, MOE_ACT_GELU_TANH),
    MOEI_WORD("gelu_erf", ffn.activation, MOE_ACT_GELU_ERF),
    MOEI_WORD("relu", ffn.activation, MOE_ACT_RELU),
    MOEI_WORD("relu2", ffn.activation, MOE_ACT_RELU2),
    MOEI_WORD("oai", ffn.activation, MOE_ACT_OAI),
    MOEI_WORD("situ", ffn.activation, MOE_ACT_SITU),
    MOEI_WORD("ungated", ffn.ungated, 1),
    MOEI_WORD("pre", ffn.clamp, MOE_CLAMP_PRE),
    MOEI_WORD("pre", shared.clamp, MOE_CLAMP_PRE),
    MOEI_WORD("input", ffn.weight_at, MOE_WEIGHT_AT_INPUT),
    MOEI_WORD("hidden", ffn.weight_at, MOE_WEIGHT_AT_HIDDEN),
    MOEI_REAL("out0.8", ffn.expert_out_scale, 0.8f),
    MOEI_REAL("sqrt_half", ffn.combine_scale, 0.707106769f),
    MOEI_WORD("shared_sigmoid", shared.gate_kind, MOE_SHARED_SIGMOID),
    MOEI_WORD("shared_softmax", shared.gate_kind, MOE_SHARED_SOFTMAX2),
    MOEI_WORD("sink", shared.gate_kind, MOE_SHARED_ROUTER_SINK)};

typedef struct moei_family {
    const char *names;                   /* each ends with a 0 */
    const char *words;                   /* NULL = it can't be expressed */
    float norm_eps, routed_scale, limit; /* limit: of ffn and shared */
    uint32_t n_group, topk_group;
} moei_family;
#define MOEI_PLAIN 0.0f, 0.0f, 0.0f, 0, 0
static const moei_family moei_families[] = {
    /* Mixtral's own code takes the softmax over the selected logits: the same in exact arithmetic. GGUF calls it
       llama. */
    {"mixtral\0llama\0", "sum", MOEI_PLAIN},
    /* norm_topk_prob is false in Qwen2's releases, true in Qwen3's whatever the class's default, absent from 3.5's
       and on */
    {"qwen2_moe\0qwen2moe\0", "shared_sigmoid", MOEI_PLAIN},
    {"qwen3_moe\0qwen3moe\0qwen3_vl_moe\0qwen3_vl_moe_text\0qwen3vlmoe\0qwen3_omni_moe\0qwen3_omni_moe_text\0"
     "qwen3_omni_moe_thinker\0",
     "sum", MOEI_PLAIN},
    {"qwen3_next\0qwen3next\0qwen3_5_moe\0qwen3_5_moe_text\0qwen35moe\0", "sum shared_sigmoid", MOEI_PLAIN},
    /* softmax over all, not renormalised */
    {"olmoe\0flex_olmo\0jamba\0llada_moe\0", "", MOEI_PLAIN},
    {"deepseek\0deepseek_moe\0deepseek_v2_lite\0", "max", 0.0f, 0.0f, 0.0f, 1, 1},
    /* The 236B. Lite has the same model_type, topk_method "greedy" (no groups) and scale 1. */
    {"deepseek_v2\0", "max", 0.0f, 16.0f, 0.0f, 8, 3},
    /* GGUF has one name for V2, V3, Kimi-K2 and GLM-4.7-Flash: its keys tell them apart. No expert_gating_func means
       V2; with sigmoid start from deepseek_v3, because the groups' statistic has no key. */
    {"deepseek2\0", "max", 0.0f, 0.0f, 0.0f, 1, 1},
    {"deepseek_v3\0deepseek_v32\0deepseek_r1\0", "sigmoid sum top2", 1e-20f, 2.5f, 0.0f, 8, 4},
    /* Flash; Pro scales by 2.5. The first three layers pick by a table; their weights are the learned gate's all the
       same. */
    {"deepseek_v4\0deepseek4\0", "sqrtsoftplus sum pre", 1e-20f, 1.5f, 10.0f, 0, 0},
    {"kimi_k2\0kimi_k25\0kimi_k2_5\0", "sigmoid sum top2", 1e-20f, 2.827f, 0.0f, 1, 1},
    /* Scale: config. Its own code weighs by score + bias by mistake: MOE_WEIGHT_BIASED for parity with that. */
    {"kimi_linear\0", "sigmoid sum top2", 1e-20f, 0.0f, 0.0f, 1, 1},
    /* latent with an RMSNorm of the routed sum; scale: M */
    {"kimi_k3\0", "sigmoid sum situ", 1e-20f, 0.0f, 0.0f, 0, 0},
    {"moonlight\0", "sigmoid sum top2", 1e-20f, 2.446f, 0.0f, 1, 1}, /* its model_type is deepseek_v3 */
    {"glm4_moe\0glm4moe\0glm4v_moe\0", "sigmoid sum top2", 1e-20f, 2.5f, 0.0f, 1, 1}, /* Air scales by 1 */
    /* some GGUFs lack the gating key: not softmax */
    {"glm4_moe_lite\0", "sigmoid sum top2", 1e-20f, 1.8f, 0.0f, 1, 1},
    /* biases of 12 against scores of 1e-8 */
    {"glm_moe_dsa\0glm_dsa\0", "sigmoid sum top2", 1e-20f, 2.5f, 0.0f, 1, 1},
    {"llama4\0llama4_text\0", "sigmoid logit input", MOEI_PLAIN},
    {"gpt_oss\0", "logit selected oai pre", 0.0f, 0.0f, 7.0f, 0, 0},
    {"phimoe\0", "logit sparsemixer", MOEI_PLAIN}, /* weights sum to about 2 */
    {"dbrx\0", "sum", MOEI_PLAIN}, /* an L1 norm of positive numbers */
    /* Grok-1's code has no softcap; some serve it with 30. Grok-2 is known from serving code: its dense MLP goes in
       as a shared expert, (moe + mlp) / sqrt 2. */
    {"grok_1\0grok1\0grok\0", "gelu_tanh", MOEI_PLAIN},
    {"grok_2\0grok2\0", "gelu_tanh softcap30 sqrt_half", MOEI_PLAIN},
    {"granitemoe\0granitemoeshared\0granitemoehybrid\0granitehybrid\0", "logit selected", MOEI_PLAIN},
    {"arctic\0", "sum", MOEI_PLAIN}, /* reads the norm of the layer's input, not of the attention's output */
    /* No capacity here though configs have one (64 tokens): with it a token depends on its company. */
    {"switch_transformers\0switch\0", "relu ungated", MOEI_PLAIN},
    {"gshard\0", "sum relu ungated", 1e-9f, 0.0f, 0.0f, 0, 0},
    {"glam\0", "sum gelu_tanh ungated", 1e-9f, 0.0f, 0.0f, 0, 0}, /* M: no public weights */
    /* 1 - moe_token_dropout scales the experts at evaluation too. Normalised after dropping: M. */
    {"nllb_moe\0", "sum floor_eps norm_after relu ungated out0.8", MOEI_PLAIN},
    /* Shazeer et al. 2017, without its training noise */
    {"shazeer2017\0", "logit selected relu ungated", MOEI_PLAIN},
    {"jacobs1991\0", "relu ungated", MOEI_PLAIN}, /* Jacobs et al. 1991: top_k = n_experts */
    {"minimax\0minimax_text_01\0minimax_m1\0", "sum", MOEI_PLAIN},
    {"minimax_m2\0", "sigmoid sum", MOEI_PLAIN},
    {"minimax_m3\0", "sigmoid sum oai pre", 0.0f, 2.0f, 7.0f, 0, 0},
    {"ernie4_5_moe\0ernie4_5_vl_moe\0", "sum floor1e-12", MOEI_PLAIN}, /* softmax, and yet a selection bias */
    {"hunyuan_v1_moe\0hunyuan_moe\0hunyuan\0", "sum skip_k1", MOEI_PLAIN},
    {"hy_v3\0hy_mt2\0", "sigmoid sum", MOEI_PLAIN}, /* scale: config */
    {"dots1\0", "sigmoid sum top2", 1e-20f, 2.5f, 0.0f, 1, 1}, /* scale: M */
    {"longcat_flash\0", "", 0.0f, 6.0f, 0.0f, 0, 0}, /* zero experts are the identity; scale: M */
    {"bailing_moe\0bailingmoe\0", "sum", MOEI_PLAIN}, /* Ling, Ring */
    {"bailing_moe_v2\0bailingmoe2\0", "sigmoid sum top2", 1e-20f, 2.5f, 0.0f, 8, 4}, /* Ling 2; scale: M */
    {"bailing_hybrid\0", "sigmoid sum top2", 0.0f, 0.0f, 0.0f, 8, 4}, /* Ling 3: late layers clamp POST, by config */
    {"afmoe\0", "sigmoid sum top2", 1e-20f, 2.826f, 0.0f, 1, 1}, /* Trinity */
    /* Super, Ultra: 5 */
    {"nemotron_h\0nemotron_h_moe\0", "sigmoid sum top2 relu2 ungated", 1e-20f, 2.5f, 0.0f, 1, 1},
    {"jetmoe\0", "logit selected", MOEI_PLAIN}, /* its FFN: its attention is a mixture too */
    {"gemma4\0gemma4_text\0", "sum gelu_tanh rms1e-6", MOEI_PLAIN}, /* has input_scale and expert_scale */
    {"step3\0step3_text\0step3_vl\0", "", MOEI_PLAIN},
    {"step3p5\0step35\0step3p7\0", "sigmoid sum", 1e-20f, 3.0f, 0.0f, 0, 0}, /* last layers clamp POST, by config */
    {"mimo_v2_flash\0mimo2\0", "sigmoid sum top2", 1e-20f, 0.0f, 0.0f, 1, 1},
    {"exaone_moe\0", "sigmoid sum top2", 1e-20f, 2.5f, 0.0f, 1, 1}, /* some layers clamp PRE, by config */
    {"axk1\0a.x_k1\0", "sigmoid sum top2", 1e-20f, 0.0f, 0.0f, 8, 4}, /* scale: config */
    /* DeepSeek-V3's class; scale: config */
    {"solar_open\0param2\0param2moe\0sarvam\0sarvam_moe\0openpangu\0pangu_ultra_moe\0joyai\0joyai_llm_flash\0",
     "sigmoid sum top2", 1e-20f, 0.0f, 0.0f, 1, 1},
    {"lfm2_moe\0lfm2moe\0", "sigmoid sum", 1e-6f, 0.0f, 0.0f, 0, 0},
    /* DeepSeek-V3's shape with softmax: the groups' statistic can't be derived from the score */
    {"mistral4\0mistral_large_3\0mistral3_large\0mistral3\0", "sum top2", 1e-20f, 0.0f, 0.0f, 1, 1},
    {"cohere2_moe\0cohere2moe\0", "sigmoid sum", MOEI_PLAIN}, /* combine_scale 0.5 where the config says "average" */
    {"laguna\0", "sigmoid sum", MOEI_PLAIN}, /* configs may say sqrtsoftplus, a softcap, weights on the input */
    {"klear\0", "sigmoid sum shared_softmax", MOEI_PLAIN},
    {"inkling\0", "sigmoid sum+shared sink hidden", 0.0f, 8.0f, 0.0f, 0, 0}, /* times global_scale */
    {"interns1_pro\0intern_s1_pro\0", "sum pergroup", 0.0f, 0.0f, 0.0f, 1, 1}, /* number of groups: config */
    {"smallthinker\0", "sum relu", MOEI_PLAIN}, /* gated ReLU; configs may say sigmoid */
    {"aria\0aria_text\0mellum\0rnd1\0", "sum", MOEI_PLAIN},
    {"nomic_bert_moe\0", "gelu_erf ungated", MOEI_PLAIN}, /* which GELU: M */
    {"grovemoe\0soft_moe\0expert_choice\0", NULL, MOEI_PLAIN}};

/* Equal but for case; - _ . are one letter. */
static int moei_same_family(const char *a, const char *b) {
    for (;; a++, b++) {
        char c = *a >= 'A' && *a <= 'Z' ? (char)(*a + 32) : *a == '-' || *a == '.' ? '_' : *a;
        char d = *b >= 'A' && *b <= 'Z' ? (char)(*b + 32) : *b == '-' || *b == '.' ? '_' : *b;
        if (c != d) return 0;
        if (!c) return 1;
    }
}

static void moei_apply_word(moe_desc *desc, const char *word, size_t n) {
    for (size_t i = 0; i < MOEI_COUNT(moei_words); i++) {
        const moei_word *w = &moei_words[i];
        if (strncmp(w->word, word, n) || w->word[n]) continue;
        if (w->real != 0.0f) memcpy((char *)desc + w->offset, &w->real, sizeof w->real);
        else memcpy((char *)desc + w->offset, &w->value, sizeof w->value);
    }
}

static moe_status moei_apply_family(moe_desc *desc, const moei_family *f) {
    if (!f->words) return MOE_ERR_UNSUPPORTED;
    for (const char *w = f->words; *w;) {
        size_t n = strcspn(w, " ");
        moei_apply_word(desc, w, n);
        w += n + (w[n] == ' ');
    }
    desc->router.norm_eps = f->norm_eps, desc->router.routed_scale = f->routed_scale;
    desc->router.n_group = f->n_group, desc->router.topk_group = f->topk_group;
    desc->ffn.limit = f->limit, desc->shared.limit = f->limit;
    return MOE_OK;
}

MOE_API moe_status moe_preset(moe_desc *desc, const char *model_type) {
    if (!desc || !model_type) return MOE_ERR_NULL;
    for (size_t i = 0; i < MOEI_COUNT(moei_families); i++)
        for (const char *name = moei_families[i].names; *name; name += strlen(name) + 1)
            if (moei_same_family(name, model_type)) return moei_apply_family(desc, &moei_families[i]);
    return MOE_ERR_MODEL;
}

MOE_API const char *moe_preset_name(uint32_t index) {
    for (size_t i = 0; i < MOEI_COUNT(moei_families); i++)
        for (const char *name = moei_families[i].names; *name; name += strlen(name) + 1)
            if (!index--) return name;
    return NULL;
}

/* ---- names and sizes ---- */

MOE_API uint32_t moe_version(void) { return MOE_VERSION; }

MOE_API size_t moe_sizeof(const char *struct_name) {
    static const struct {
        const char *name;
        size_t size;
    } list[] = {
#define MOEI_SIZE(type) {#type, sizeof(type)}
        MOEI_SIZE(moe_array),    MOEI_SIZE(moe_grid),    MOEI_SIZE(moe_matrix), MOEI_SIZE(moe_router),
        MOEI_SIZE(moe_ffn),      MOEI_SIZE(moe_shared),  MOEI_SIZE(moe_latent), MOEI_SIZE(moe_desc),
        MOEI_SIZE(moe_error),    MOEI_SIZE(moe_experts), MOEI_SIZE(moe_io),     MOEI_SIZE(moe_layer),
        MOEI_SIZE(moe_parallel), MOEI_SIZE(moe_stats),   MOEI_SIZE(moe_counts), MOEI_SIZE(moe_balance)
#undef MOEI_SIZE
    };
    for (size_t i = 0; struct_name && i < MOEI_COUNT(list); i++)
        if (!strcmp(list[i].name, struct_name)) return list[i].size;
    return 0;
}

MOE_API const char *moe_status_text(moe_status status) {
    static const char *const text[] = {
#define MOE_X(id, words) words,
        MOE_STATUSES(MOE_X)
#undef MOE_X
    };
    return (uint32_t)status < MOE_STATUS_COUNT ? text[(uint32_t)status] : "unknown status";
}

static const char *const moei_compute_names[] = {"default", "f32", "bf16", "q8"};
MOE_API const char *moe_compute_name(uint32_t compute) {
    return compute < MOE_COMPUTE_COUNT ? moei_compute_names[compute] : "?";
}
MOE_API uint32_t moe_compute_by_name(const char *name) {
    uint32_t i = 0;
    if (!name) return MOE_COMPUTE_COUNT;
    while (i < MOE_COMPUTE_COUNT && !moei_same_family(moei_compute_names[i], name)) i++;
    return i;
}

/* ---- counts: every matrix and vector that the desc has, of the whole layer even if this process holds a part
   ---- */

static const uint8_t moei_type_size[] = {0,
#define MOE_X(id, name, bytes) bytes,
                                         MOE_TYPES(MOE_X)
#undef MOE_X
};
static const uint32_t moei_scale_shape[][2] = {{0, 0},
#define MOE_X(id, name, n, bytes, rows, cols) {rows, cols},
                                               MOE_FORMATS(MOE_X)
#undef MOE_X
};

static uint64_t moei_count_grid(const moe_grid *g, uint32_t format, uint64_t rows, uint64_t k) {
    uint64_t r = g->rows ? g->rows : moei_scale_shape[format][0], c = g->cols ? g->cols : moei_scale_shape[format][1];
    if (!g->type || !r || !c) return 0;
    r = (rows + r - 1) / r, c = (k + c - 1) / c;
    if (g->type == MOE_TYPE_U4X8) r = (r + 7) / 8; /* a word for eight rows */
    return r * c * moei_type_size[g->type];
}
static void moei_count_vector(moe_counts *c, const moe_array *a, uint64_t n, uint64_t used, uint64_t length) {
    if (!a->type) return;
    uint64_t bytes = length * moei_type_size[a->type];
    c->params_total += n * length, c->params_active += used * length;
    c->bytes_total += n * bytes, c->bytes_active += used * bytes;
}
/* n matrices of which a token uses some */
static void moei_count_matrix(moe_counts *c, const moe_matrix *m, uint64_t n, uint64_t used, uint64_t rows,
                              uint64_t k) {
    if (!m->format) return;
    uint64_t bytes = rows * moe_row_bytes(m->format, (size_t)k) + moei_count_grid(&m->scale, m->format, rows, k) +
                     moei_count_grid(&m->zero, m->format, rows, k) + moei_type_size[m->scale2.type];
    c->params_total += n * rows * k, c->params_active += used * rows * k;
    c->bytes_total += n * bytes, c->bytes_active += used * bytes;
    c->flops_token += 2 * used * rows * k, c->flops_dense += 2 * n * rows * k;
    moei_count_vector(c, &m->bias, n, used, rows);
}

/* Parameters are weights and vectors (biases, norms, router's), not scales; bytes are all of them. A token uses top_k
   experts, zero experts counted as real ones; flops are those of the matrices. */
MOE_API void moe_layer_counts(const moe_layer *layer, moe_counts *counts) {
    moe_counts c = {0, 0, 0, 0, 0, 0};
    if (!counts) return;
    if (layer) {
        const moe_desc *d = &layer->desc;
        uint64_t n = d->n_experts, used = d->top_k < n ? d->top_k : n, in = d->latent.d ? d->latent.d : d->d_model;
        uint64_t ns = d->shared.d_ff ? d->shared.count ? d->shared.count : 1 : 0, ids = n + d->n_zero_experts;
        uint64_t gates = d->shared.gate_kind == MOE_SHARED_SOFTMAX2 ? 2 : 1;
        moei_count_matrix(&c, &d->gate, n, used, d->d_ff, in);
        moei_count_matrix(&c, &d->up, n, used, d->d_ff, in);
        moei_count_matrix(&c, &d->down, n, used, in, d->d_ff);
        moei_count_matrix(&c, &d->shared.gate, ns, ns, d->shared.d_ff, d->d_model);
        moei_count_matrix(&c, &d->shared.up, ns, ns, d->shared.d_ff, d->d_model);
        moei_count_matrix(&c, &d->shared.down, ns, ns, d->d_model, d->shared.d_ff);
        moei_count_matrix(&c, &d->shared.gate_weight, ns != 0, ns != 0, gates, d->d_model);
        moei_count_matrix(&c, &d->latent.in, 1, 1, in, d->d_model);
        moei_count_matrix(&c, &d->latent.out, 1, 1, d->d_model, in);
        moei_count_matrix(&c, &d->router.weight, 1, 1, moei_route_rows(d), d->d_model);
        moei_count_vector(&c, &d->router.bias, 1, 1, moei_route_rows(d));
        moei_count_vector(&c, &d->router.select_bias, 1, 1, ids);
        moei_count_vector(&c, &d->router.expert_scale, 1, 1, ids);
        moei_count_vector(&c, &d->router.input_scale, 1, 1, d->d_model);
        moei_count_vector(&c, &d->latent.norm, 1, 1, in);
        moei_count_vector(&c, &d->ffn.out_bias, 1, 1, d->d_model);
    }
    *counts = c;
}

/* ---- what a moe_stats says ---- */

MOE_API void moe_stats_balance(const moe_stats *stats, uint32_t n_experts, moe_balance *balance) {
    moe_balance b = {0.0, 0.0, 0.0, 0.0, 0.0};
    double total = 0.0, most = 0.0, square = 0.0, n = (double)n_experts;
    if (!balance) return;
    *balance = b;
    if (!stats || !n_experts || !stats->n_tokens) return;
    b.z_loss = stats->z / (double)stats->n_tokens;
    for (uint32_t i = 0; stats->tokens && i < n_experts; i++) {
        double load = (double)stats->tokens[i];
        total += load;
        most = load > most ? load : most;
    }
    for (uint32_t i = 0; total > 0.0 && i < n_experts; i++) {
        double share = (double)stats->tokens[i] / total, off = share * n - 1.0;
        square += off * off;
        if (share > 0.0 && n_experts > 1) b.entropy -= share * log(share) / log(n);
        if (stats->score) b.aux_loss += n * share * stats->score[i] / (double)stats->n_tokens;
    }
    if (total > 0.0) b.imbalance = most * n / total, b.variation = sqrt(square / n);
    if (total > 0.0 && n_experts == 1) b.entropy = 1.0;
    *balance = b;
}

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
