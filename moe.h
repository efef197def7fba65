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

/* Fused multiply-add. Where the target has no fast one, libm's is slow (a call), so: the product of two floats is exact
   in double, the sum s is rounded to odd there (TwoSum gives its error e; if there is one, the truncated sum's last bit
   becomes 1), and the final rounding to float is then right. No branches, so that compilers can vectorise it; an
   infinite or undefined s has e = NaN, which counts as none. */
MOEI_FORCE float moei_fma_emulated(float a, float b, float c) {
    double p = (double)a * (double)b, q = (double)c, s = p + q, t = s - p, e = (p - (s - t)) + (q - t);
    uint64_t u, v, inexact = (uint64_t)(e < 0.0) | (uint64_t)(e > 0.0);
    memcpy(&u, &s, 8);
    memcpy(&v, &e, 8);
    u = (u - ((u ^ v) >> 63 & inexact)) | inexact;
    memcpy(&s, &u, 8);
    return (float)s;
}
MOEI_FORCE float moei_fma(float a, float b, float c) {
#if defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__)
    return fmaf(a, b, c);
#else
    return moei_fma_emulated(a, b, c);
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

/* ==== >>formats: what the bytes mean ===============================================================================
   Every integer format is unpacked, 32 consecutive weights at a time, into one form (moei_block); the others are
   dense: one value after another. One table says which functions and which peculiarities a format has; nothing else
   may depend on a format's number but the tiers' own tables. Provides moei_view, moei_row_scale, moei_array_at (from
   what the caller described to one expert), moei_unpack, moei_decode_row, moei_decode_tile, and part 4 of the API. */

/* 32 weights. Weight i of half h = i / 16 is fma(d[h] * scale[h], q[i], -(dmin * min[h])). d * scale is exact in f32.
   A scale shared by all 32 is in both halves. */
typedef struct moei_block {
    int8_t q[32];
    int16_t scale[2], min[2];
    float d[2], dmin;
} moei_block;

/* p: the block; j: which 32 of its weights, in blocks of 64 and 256. */
typedef void moei_unpack_fn(const uint8_t *p, uint32_t j, moei_block *b);
/* n values, stride bytes apart, to out[0], out[step], ... */
typedef void moei_dense_fn(const uint8_t *p, size_t stride, size_t n, float *out, size_t step);

/* What is peculiar about a format. */
#define MOEI_MIN     1u   /* has a minimum: dmin and min                                                       */
#define MOEI_SUB16   2u   /* integer scales (and minima) per 16: inside the integer sum of Q8                  */
#define MOEI_TWO     4u   /* a float scale per 16: d[0] and d[1] differ                                        */
#define MOEI_DOUBLED 8u   /* q is twice the number (E2M1), d half the scale                                    */
#define MOEI_APART   16u  /* d comes from moei_rows.scale (1 if absent)                                        */
#define MOEI_ZEROS   32u  /* q is a nibble minus moei_rows.zero (8 if absent)                                  */
#define MOEI_OWN     64u  /* the shape of the scales is the format's: they never count as constant along a row */
#define MOEI_CUT     128u /* the last block of a row may be used in part                                       */

static const int8_t moei_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t moei_e2m1x2[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

MOEI_FORCE float moei_load_f16(const uint8_t *p) { return moei_f16(moei_load16(p)); }
MOEI_FORCE float moei_load_bf16(const uint8_t *p) { return moei_bf16(moei_load16(p)); }

/* ---- Blocks of 32: low nibbles are weights 0..15, high nibbles 16..31 */

MOEI_FORCE void moei_one_scale(moei_block *b, float d) {
    b->d[0] = b->d[1] = d, b->dmin = 0.0f;
    b->scale[0] = b->scale[1] = 1, b->min[0] = b->min[1] = 0;
}
MOEI_FORCE void moei_nibbles(moei_block *b, const uint8_t *qs, int bias) {
    for (int i = 0; i < 16; i++) {
        b->q[i] = (int8_t)((qs[i] & 15) - bias);
        b->q[i + 16] = (int8_t)((qs[i] >> 4) - bias);
    }
}
MOEI_FORCE void moei_nibbles_table(moei_block *b, const uint8_t *qs, const int8_t *table) {
    for (int i = 0; i < 16; i++) b->q[i] = table[qs[i] & 15], b->q[i + 16] = table[qs[i] >> 4];
}
MOEI_FORCE void moei_fifth_bits(moei_block *b, const uint8_t *qh) {
    uint32_t bits = moei_load32(qh);
    for (int i = 0; i < 32; i++) b->q[i] = (int8_t)(b->q[i] + (int)(bits >> i & 1) * 16);
}
MOEI_FORCE void moei_constant(moei_block *b, float m) { /* + m: a minimum of -1 times m */
    b->dmin = m;
    b->min[0] = b->min[1] = -1;
}

static void moei_unpack_q8_0(const uint8_t *p, uint32_t j, moei_block *b) {
    (void)j;
    moei_one_scale(b, moei_load_f16(p));
    memcpy(b->q, p + 2, 32);
}
static void moei_unpack_q4_0(const uint8_t *p, uint32_t j, moei_block *b) {
    (void)j;
    moei_one_scale(b, moei_load_f16(p));
    moei_nibbles(b, p + 2, 8);
}
static void moei_unpack_q4_1(const uint8_t *p, uint32_t j, moei_block *b) {
    (void)j;
    moei_one_scale(b, moei_load_f16(p));
    moei_constant(b, moei_load_f16(p + 2));
    moei_nibbles(b, p + 4, 0);
}
static void moei_unpack_q5_0(const uint8_t *p, uint32_t j, moei_block *b) {
    (void)j;
    moei_one_scale(b, moei_load_f16(p));
    moei_nibbles(b, p + 6, 16);
    moei_fifth_bits(b, p + 2);
}
static void moei_unpack_q5_1(const uint8_t *p, uint32_t j, moei_block *b) {
    (void)j;
    moei_one_scale(b, moei_load_f16(p));
    moei_constant(b, moei_load_f16(p + 2));
    moei_nibbles(b, p + 8, 0);
    moei_fifth_bits(b, p + 4);
}
static void moei_unpack_iq4_nl(const uint8_t *p, uint32_t j, moei_block *b) {
    (void)j;
    moei_one_scale(b, moei_load_f16(p));
    moei_nibbles_table(b, p + 2, moei_iq4);
}
/* 2^(e - 128), half of E8M0's scale. ggml has no NaN here: e = 255 is 2^127. */
static void moei_unpack_mxfp4(const uint8_t *p, uint32_t j, moei_block *b) {
    (void)j;
    moei_one_scale(b, moei_float(p[0] > 1 ? (uint32_t)(p[0] - 1) << 23 : 0x00200000u << p[0]));
    moei_nibbles_table(b, p + 1, moei_e2m1x2);
}
/* 64 weights, a scale per 16. ggml reads it without sign and 0x7f (not 0xff) as 0. Nibbles by 8. */
static void moei_unpack_nvfp4(const uint8_t *p, uint32_t j, moei_block *b) {
    moei_one_scale(b, 0.0f);
    for (uint32_t h = 0; h < 2; h++) {
        const uint8_t s = p[2 * j + h], *qs = p + 4 + 8 * (2 * j + h);
        b->d[h] = s == 0x7f ? 0.0f : s == 0xff ? 240.0f : 0.5f * moei_e4m3(s & 0x7f);
        for (uint32_t i = 0; i < 8; i++) {
            b->q[16 * h + i] = moei_e2m1x2[qs[i] & 15];
            b->q[16 * h + i + 8] = moei_e2m1x2[qs[i] >> 4];
        }
    }
}

/* ---- Blocks of 256: j is the sub-block of 32 */

static void moei_unpack_q2_k(const uint8_t *p, uint32_t j, moei_block *b) {
    const uint8_t *qs = p + 16 + 32 * (j >> 2);
    moei_one_scale(b, moei_load_f16(p + 80));
    b->dmin = moei_load_f16(p + 82);
    for (uint32_t h = 0; h < 2; h++) b->scale[h] = p[2 * j + h] & 15, b->min[h] = p[2 * j + h] >> 4;
    for (uint32_t i = 0; i < 32; i++) b->q[i] = (int8_t)(qs[i] >> 2 * (j & 3) & 3);
}
static void moei_unpack_q3_k(const uint8_t *p, uint32_t j, moei_block *b) {
    const uint8_t *qs = p + 32 + 32 * (j >> 2), *sc = p + 96;
    moei_one_scale(b, moei_load_f16(p + 108));
    for (uint32_t h = 0; h < 2; h++) {
        uint32_t s = 2 * j + h, low = s < 8 ? sc[s] & 15u : sc[s - 8] >> 4, high = sc[8 + s % 4] >> 2 * (s / 4) & 3u;
        b->scale[h] = (int16_t)((int)(low | high << 4) - 32);
    }
    for (uint32_t i = 0; i < 32; i++) b->q[i] = (int8_t)((qs[i] >> 2 * (j & 3) & 3) - (p[i] >> j & 1 ? 0 : 4));
}
MOEI_FORCE void moei_scales_k45(moei_block *b, const uint8_t *sc, uint32_t j) { /* 6 bits of scale, 6 of minimum */
    uint32_t s = j < 4 ? sc[j] & 63u : (sc[j + 4] & 15u) | (uint32_t)(sc[j - 4] >> 6) << 4;
    uint32_t m = j < 4 ? sc[j + 4] & 63u : (uint32_t)(sc[j + 4] >> 4) | (uint32_t)(sc[j] >> 6) << 4;
    b->scale[0] = b->scale[1] = (int16_t)s;
    b->min[0] = b->min[1] = (int16_t)m;
}
static void moei_unpack_q4_k(const uint8_t *p, uint32_t j, moei_block *b) {
    const uint8_t *qs = p + 16 + 32 * (j >> 1);
    moei_one_scale(b, moei_load_f16(p));
    b->dmin = moei_load_f16(p + 2);
    moei_scales_k45(b, p + 4, j);
    for (uint32_t i = 0; i < 32; i++) b->q[i] = (int8_t)(qs[i] >> 4 * (j & 1) & 15);
}
static void moei_unpack_q5_k(const uint8_t *p, uint32_t j, moei_block *b) {
    const uint8_t *qh = p + 16, *qs = p + 48 + 32 * (j >> 1);
    moei_one_scale(b, moei_load_f16(p));
    b->dmin = moei_load_f16(p + 2);
    moei_scales_k45(b, p + 4, j);
    for (uint32_t i = 0; i < 32; i++) b->q[i] = (int8_t)((qs[i] >> 4 * (j & 1) & 15) | (qh[i] >> j & 1) << 4);
}
static void moei_unpack_q6_k(const uint8_t *p, uint32_t j, moei_block *b) {
    const uint8_t *ql = p + 64 * (j >> 2) + 32 * (j & 1), *qh = p + 128 + 32 * (j >> 2);
    moei_one_scale(b, moei_load_f16(p + 208));
    for (uint32_t h = 0; h < 2; h++) b->scale[h] = (int8_t)p[192 + 2 * j + h];
    for (uint32_t i = 0; i < 32; i++) {
        int low = ql[i] >> 2 * (j & 2) & 15, high = qh[i] >> 2 * (j & 3) & 3;
        b->q[i] = (int8_t)((low | high << 4) - 32);
    }
}
static void moei_unpack_iq4_xs(const uint8_t *p, uint32_t j, moei_block *b) {
    uint32_t low = p[4 + (j >> 1)] >> 4 * (j & 1) & 15u, high = (uint32_t)moei_load16(p + 2) >> 2 * j & 3u;
    moei_one_scale(b, moei_load_f16(p));
    b->scale[0] = b->scale[1] = (int16_t)((int)(low | high << 4) - 32);
    moei_nibbles_table(b, p + 8 + 16 * j, moei_iq4);
}

/* ---- Hugging Face layouts: nibbles 2i and 2i + 1 share a byte; moei_unpack adds scales and zero points */

static void moei_unpack_e2m1_pairs(const uint8_t *p, uint32_t j, moei_block *b) {
    (void)j;
    moei_one_scale(b, 0.5f);
    for (int i = 0; i < 16; i++) b->q[2 * i] = moei_e2m1x2[p[i] & 15], b->q[2 * i + 1] = moei_e2m1x2[p[i] >> 4];
}
static void moei_unpack_int4(const uint8_t *p, uint32_t j, moei_block *b) {
    (void)j;
    moei_one_scale(b, 1.0f);
    for (int i = 0; i < 16; i++) b->q[2 * i] = p[i] & 15, b->q[2 * i + 1] = (int8_t)(p[i] >> 4);
}
static void moei_unpack_int8(const uint8_t *p, uint32_t j, moei_block *b) {
    (void)j;
    moei_one_scale(b, 1.0f);
    memcpy(b->q, p, 32);
}

/* ---- Dense formats */

static void moei_dense_f32(const uint8_t *p, size_t stride, size_t n, float *out, size_t step) {
    for (size_t i = 0; i < n; i++) out[i * step] = moei_loadf32(p + i * stride);
}
static void moei_dense_f16(const uint8_t *p, size_t stride, size_t n, float *out, size_t step) {
    for (size_t i = 0; i < n; i++) out[i * step] = moei_load_f16(p + i * stride);
}
static void moei_dense_bf16(const uint8_t *p, size_t stride, size_t n, float *out, size_t step) {
    for (size_t i = 0; i < n; i++) out[i * step] = moei_load_bf16(p + i * stride);
}
static void moei_dense_e4m3(const uint8_t *p, size_t stride, size_t n, float *out, size_t step) {
    for (size_t i = 0; i < n; i++) out[i * step] = moei_e4m3(p[i * stride]);
}

/* ---- The table: an integer format has unpack, a dense one has dense. In the order of MOE_FORMATS (checked below) */

// clang-format off
#define MOEI_CODECS(X)                                                                                               \
    X(F32,          NULL,                   moei_dense_f32,  0)                                                      \
    X(F16,          NULL,                   moei_dense_f16,  0)                                                      \
    X(BF16,         NULL,                   moei_dense_bf16, 0)                                                      \
    X(Q8_0,         moei_unpack_q8_0,       NULL,            0)                                                      \
    X(Q4_0,         moei_unpack_q4_0,       NULL,            0)                                                      \
    X(Q4_1,         moei_unpack_q4_1,       NULL,            MOEI_MIN)                                               \
    X(Q5_0,         moei_unpack_q5_0,       NULL,            0)                                                      \
    X(Q5_1,         moei_unpack_q5_1,       NULL,            MOEI_MIN)                                               \
    X(Q2_K,         moei_unpack_q2_k,       NULL,            MOEI_MIN | MOEI_SUB16)                                  \
    X(Q3_K,         moei_unpack_q3_k,       NULL,            MOEI_SUB16)                                             \
    X(Q4_K,         moei_unpack_q4_k,       NULL,            MOEI_MIN)                                               \
    X(Q5_K,         moei_unpack_q5_k,       NULL,            MOEI_MIN)                                               \
    X(Q6_K,         moei_unpack_q6_k,       NULL,            MOEI_SUB16)                                             \
    X(IQ4_NL,       moei_unpack_iq4_nl,     NULL,            0)                                                      \
    X(IQ4_XS,       moei_unpack_iq4_xs,     NULL,            0)                                                      \
    X(MXFP4,        moei_unpack_mxfp4,      NULL,            MOEI_DOUBLED)                                           \
    X(NVFP4,        moei_unpack_nvfp4,      NULL,            MOEI_DOUBLED | MOEI_TWO)                                \
    X(MXFP4_HF,     moei_unpack_e2m1_pairs, NULL,            MOEI_DOUBLED | MOEI_APART | MOEI_OWN)                   \
    X(NVFP4_HF,     moei_unpack_e2m1_pairs, NULL,            MOEI_DOUBLED | MOEI_APART | MOEI_OWN | MOEI_TWO)        \
    X(MXFP8,        NULL,                   moei_dense_e4m3, MOEI_APART | MOEI_OWN)                                  \
    X(FP8_BLOCK,    NULL,                   moei_dense_e4m3, MOEI_APART)                                             \
    X(FP8_CHANNEL,  NULL,                   moei_dense_e4m3, MOEI_APART)                                             \
    X(INT8_CHANNEL, moei_unpack_int8,       NULL,            MOEI_APART)                                             \
    X(INT4_GROUP,   moei_unpack_int4,       NULL,            MOEI_APART | MOEI_ZEROS | MOEI_CUT)

typedef struct moei_layout { /* MOE_FORMATS as data */
    const char *name;
    uint32_t n, bytes, rows, cols;
} moei_layout;
static const moei_layout moei_layouts[MOE_FORMAT_COUNT] = {
    {"none", 1, 0, 0, 0},
#define MOE_X(id, name, n, bytes, rows, cols) {name, n, bytes, rows, cols},
    MOE_FORMATS(MOE_X)
#undef MOE_X
};

typedef struct moei_codec {
    moei_unpack_fn *unpack;
    moei_dense_fn *dense;
    uint32_t flags;
} moei_codec;
static const moei_codec moei_codecs[MOE_FORMAT_COUNT] = {
    {NULL, NULL, 0},
#define MOE_X(id, unpack, dense, flags) {unpack, dense, flags},
    MOEI_CODECS(MOE_X)
#undef MOE_X
};
enum { /* the same order? a negative array size says no */
    MOEI_CODEC_NONE,
#define MOE_X(id, unpack, dense, flags) MOEI_CODEC_##id,
    MOEI_CODECS(MOE_X)
#undef MOE_X
#define MOE_X(id, name, n, bytes, rows, cols) \
    MOEI_ORDER_##id = sizeof(char[(int)MOEI_CODEC_##id == (int)MOE_FORMAT_##id ? 1 : -1]),
    MOE_FORMATS(MOE_X)
#undef MOE_X
    MOEI_ORDER_END
};

static const uint32_t moei_type_bytes[MOE_TYPE_COUNT] = {
    0,
#define MOE_X(id, name, bytes) bytes,
    MOE_TYPES(MOE_X)
#undef MOE_X
};
// clang-format on

MOEI_FORCE float moei_scalar(uint32_t type, const uint8_t *p) {
    switch (type) {
    case MOE_TYPE_F32: return moei_loadf32(p);
    case MOE_TYPE_F16: return moei_load_f16(p);
    case MOE_TYPE_BF16: return moei_load_bf16(p);
    case MOE_TYPE_E8M0: return moei_e8m0(*p);
    case MOE_TYPE_E4M3: return moei_e4m3(*p);
    default: return 1.0f;
    }
}

/* Bytes of k weights. Only int4_group's last word may be cut. */
MOE_API size_t moe_row_bytes(uint32_t format, size_t k) {
    if (format == MOE_FORMAT_NONE || format >= MOE_FORMAT_COUNT) return 0;
    const moei_layout *l = &moei_layouts[format];
    size_t blocks = k / l->n;
    if (k % l->n) {
        if (!(moei_codecs[format].flags & MOEI_CUT)) return 0;
        blocks++;
    }
    return blocks > SIZE_MAX / l->bytes ? 0 : blocks * l->bytes;
}

/* ---- Scales and zero points that live apart: row is the expert's row */

MOEI_FORCE const uint8_t *moei_side_at(const moei_side *s, size_t row, size_t k) {
    return s->data + row / s->rows * s->row_stride + k / s->cols * moei_type_bytes[s->type];
}
MOEI_FORCE float moei_scale_at(const moei_side *s, size_t row, size_t k) {
    return moei_scalar(s->type, moei_side_at(s, row, k));
}

/* U8 zero points above 127 are no zero points of 4-bit weights; limiting them keeps q in an int8. */
MOEI_FORCE int moei_zero_at(const moei_side *s, size_t row, size_t k) {
    if (!s->data) return 8;
    if (s->type == MOE_TYPE_U8) {
        uint8_t z = *moei_side_at(s, row, k);
        return z > 127 ? 127 : z;
    }
    size_t r = row / s->rows; /* U4X8 */
    return s->data[r / 8 * s->row_stride + k / s->cols * 4 + r % 8 / 2] >> r % 2 * 4 & 15;
}

/* ---- Rows to numbers */

/* The n (up to 32) weights from k0 (a multiple of 32) of row r of the view; integer formats. Beyond n: anything. */
static void moei_unpack(const moei_rows *w, uint32_t r, size_t k0, size_t n, moei_block *b) {
    const moei_layout *l = &moei_layouts[w->format];
    const moei_codec *c = &moei_codecs[w->format];
    const uint8_t *p = moei_row(w, r) + k0 / l->n * l->bytes;
    uint8_t cut[32] = {0};
    if (n < 32 && l->n < 32) p = (const uint8_t *)memcpy(cut, p, (n + l->n - 1) / l->n * l->bytes);
    c->unpack(p, (uint32_t)(k0 % l->n / 32), b);
    if (!(c->flags & MOEI_APART)) return;
    for (size_t h = 0; h < 2 && 16 * h < n; h++) {
        size_t row = w->row0 + r, k = k0 + 16 * h;
        if (w->scale.data) b->d[h] *= moei_scale_at(&w->scale, row, k);
        if (!(c->flags & MOEI_ZEROS)) continue;
        int zero = moei_zero_at(&w->zero, row, k);
        for (size_t i = 16 * h; i < 16 * h + 16; i++) b->q[i] = (int8_t)(b->q[i] - zero);
    }
}

/* The sum with a minimum is exact in double (f16 scales, small integers), so rounding it equals one fma in float. */
MOEI_FORCE void moei_block_values(const moei_block *b, uint32_t flags, float *out) {
    for (int h = 0; h < 2; h++) {
        float d = b->d[h] * (float)b->scale[h];
        double m = (double)b->dmin * (double)b->min[h];
        if (flags & MOEI_MIN)
            for (int i = 16 * h; i < 16 * h + 16; i++) out[i] = (float)((double)d * (double)b->q[i] - m);
        else
            for (int i = 16 * h; i < 16 * h + 16; i++) out[i] = d * (float)b->q[i];
    }
}

/* Multiplies out[0..n) (weights k0 .. of an expert's row) by their scales: one rounding. */
static void moei_apply_scales(const moei_side *s, size_t row, size_t k0, size_t n, float *out) {
    if (!s->data) return;
    for (size_t i = 0, end; i < n; i = end) {
        size_t to_next = s->cols - (k0 + i) % s->cols;
        float d = moei_scale_at(s, row, k0 + i);
        for (end = to_next < n - i ? i + to_next : n; i < end; i++) out[i] *= d;
    }
}

/* Weights k0 .. k0 + n of row r of the view as exact f32; k0 is a multiple of 32. */
static void moei_decode_row(const moei_rows *w, uint32_t r, size_t k0, size_t n, float *out) {
    const moei_codec *c = &moei_codecs[w->format];
    if (c->dense) {
        size_t step = w->k_stride ? w->k_stride : moei_layouts[w->format].bytes / moei_layouts[w->format].n;
        c->dense(moei_row(w, r) + k0 * step, step, n, out, 1);
        moei_apply_scales(&w->scale, w->row0 + r, k0, n, out);
        return;
    }
    for (size_t i = 0; i < n; i += 32) {
        moei_block b;
        float v[32];
        size_t m = n - i < 32 ? n - i : 32;
        moei_unpack(w, r, k0 + i, m, &b);
        moei_block_values(&b, c->flags, m < 32 ? v : out + i);
        if (m < 32) memcpy(out + i, v, m * sizeof *v);
    }
}

/* The same for rows r0 .. r0 + n_rows, row r to out + r * stride, in the order of storage. */
static void moei_decode_tile(const moei_rows *w, uint32_t r0, uint32_t n_rows, size_t k0, size_t n, float *out,
                             size_t stride) {
    if (!w->k_stride) {
        for (uint32_t r = 0; r < n_rows; r++) moei_decode_row(w, r0 + r, k0, n, out + r * stride);
        return;
    }
    const uint8_t *p = moei_row(w, r0) + k0 * w->k_stride;
    for (size_t i = 0; i < n; i++)
        moei_codecs[w->format].dense(p + i * w->k_stride, w->row_stride, n_rows, out + i, stride);
    for (uint32_t r = 0; r < n_rows; r++) moei_apply_scales(&w->scale, w->row0 + r0 + r, k0, n, out + r * stride);
}

/* ---- From the caller's description to one expert */

/* Per-call pointers stand in for the description's own. NULL = absent. */
MOEI_FORCE const uint8_t *moei_base(const void *data, const void *const *own, const void *const *call,
                                    uint32_t expert, size_t expert_stride, size_t offset) {
    const void *const *list = call ? call : own;
    const uint8_t *p = (const uint8_t *)(list ? list[expert] : data);
    if (!p) return NULL;
    return list ? p + offset : p + expert * expert_stride + offset;
}

static float moei_array_load(const moe_array *a, const void *const *call, uint32_t expert, size_t n_per_expert,
                             size_t i, float absent) {
    size_t stride = a->stride ? a->stride : a->type < MOE_TYPE_COUNT ? moei_type_bytes[a->type] : 0;
    size_t expert_stride = a->expert_stride ? a->expert_stride : n_per_expert * stride;
    const uint8_t *p = moei_base(a->data, a->expert, call, expert, expert_stride, a->offset);
    return p && a->type != MOE_TYPE_NONE ? moei_scalar(a->type, p + i * stride) : absent;
}
/* Element i of an expert's vector; 0 if there is none. */
MOEI_UNUSED static float moei_array_at(const moe_array *a, uint32_t expert, size_t n_per_expert, size_t i) {
    return moei_array_load(a, NULL, expert, n_per_expert, i, 0.0f);
}

/* One expert's grid, defaults resolved: rows and cols as `like`. */
static moei_side moei_side_of(const moe_grid *g, const void *const *call, uint32_t expert, size_t n_rows, size_t k,
                              const moei_side *like) {
    moei_side s = {NULL, 0, g->type, g->rows ? g->rows : like->rows, g->cols ? g->cols : like->cols};
    if (!s.rows) s.rows = 1;
    if (!s.cols) s.cols = UINT32_MAX;
    if (s.type == MOE_TYPE_NONE || s.type >= MOE_TYPE_COUNT) return s;
    size_t n_cols = s.cols >= k ? 1 : (k + s.cols - 1) / s.cols, lines = (n_rows + s.rows - 1) / s.rows;
    if (s.type == MOE_TYPE_U4X8) lines = (lines + 7) / 8;
    s.row_stride = g->row_stride ? g->row_stride : n_cols * moei_type_bytes[s.type];
    size_t expert_stride = g->expert_stride ? g->expert_stride : lines * s.row_stride;
    s.data = moei_base(g->data, g->expert, call, expert, expert_stride, g->offset);
    return s;
}
static moei_side moei_scale_of(const moe_matrix *m, const moe_experts *over, int which, uint32_t expert,
                               size_t n_rows, size_t k) {
    moei_side like = {NULL, 0, 0, moei_layouts[m->format].rows, moei_layouts[m->format].cols};
    return moei_side_of(&m->scale, over ? over->scale[which] : NULL, expert, n_rows, k, &like);
}
/* A scale that is the same all along a row is applied to the row's result, not to its weights. */
MOEI_FORCE int moei_row_constant(uint32_t format, const moei_side *s, size_t k) {
    return s->cols >= k && !(moei_codecs[format].flags & MOEI_OWN);
}

/* One expert's rows; data is NULL if the expert is absent. over: per-call pointers (`which` of them) that replace the
   matrix's, or NULL; offsets are added to either. A zero-point grid without a shape has that of the scales.
   Scales that are constant along a row are left out: see moei_row_scale. */
MOEI_UNUSED static void moei_view(const moe_matrix *m, const moe_experts *over, int which, uint32_t expert,
                                  size_t n_rows, size_t k, moei_rows *out) {
    size_t item = moei_layouts[m->format].bytes, tight = m->k_stride ? item : moe_row_bytes(m->format, k);
    memset(out, 0, sizeof *out);
    out->format = m->format;
    out->k = k;
    out->k_stride = m->k_stride;
    out->row_stride = m->row_stride ? m->row_stride : tight;
    size_t tight_expert = m->k_stride ? k * m->k_stride : n_rows * out->row_stride;
    out->data = moei_base(m->data, m->expert, over ? over->data[which] : NULL, expert,
                          m->expert_stride ? m->expert_stride : tight_expert, m->offset);
    out->scale = moei_scale_of(m, over, which, expert, n_rows, k);
    out->zero = moei_side_of(&m->zero, over ? over->zero[which] : NULL, expert, n_rows, k, &out->scale);
    if (moei_row_constant(m->format, &out->scale, k)) out->scale.data = NULL;
}

/* What a row's result must be multiplied, then divided by: the scale that is constant along the row, and scale2. */
typedef struct moei_factor {
    float multiply, divide;
} moei_factor;
MOEI_UNUSED static moei_factor moei_row_scale(const moe_matrix *m, const moe_experts *over, int which,
                                              uint32_t expert, size_t n_rows, size_t k, size_t row) {
    moei_factor f = {1.0f, 1.0f};
    moei_side s = moei_scale_of(m, over, which, expert, n_rows, k);
    float scale2 = moei_array_load(&m->scale2, over ? over->scale2[which] : NULL, expert, 1, 0, 1.0f);
    if (s.data && moei_row_constant(m->format, &s, k)) f.multiply = moei_scale_at(&s, row, 0);
    if (m->scale2_divides) f.divide = scale2;
    else f.multiply *= scale2;
    return f;
}

/* ---- Checks */

static moe_status moei_weights_error(moe_error *error, moe_status status, const char *field, uint64_t got,
                                     uint64_t want) {
    if (error) error->status = status, error->field = field, error->got = got, error->want = want;
    return status;
}

/* NULL, or the name of the field of a grid that is wrong. Integer formats need whole blocks of 32 under one scale. */
static const char *moei_scale_wrong(const moe_matrix *m, size_t k, moe_status *status) {
    const moei_layout *l = &moei_layouts[m->format];
    const moei_codec *c = &moei_codecs[m->format];
    const uint32_t type = m->scale.type, cols = m->scale.cols ? m->scale.cols : l->cols ? l->cols : UINT32_MAX;
    if (type == MOE_TYPE_NONE) return NULL;
    *status = MOE_ERR_TYPE;
    if (type >= MOE_TYPE_COUNT || type == MOE_TYPE_U8 || type == MOE_TYPE_U4X8) return "scale.type";
    *status = MOE_ERR_NULL;
    if (!m->scale.data && !m->scale.expert) return "scale.data";
    *status = MOE_ERR_SIZE;
    if ((c->flags & MOEI_OWN) && cols != l->cols) return "scale.cols";
    if (c->unpack && !(c->flags & MOEI_OWN) && cols < k && (!(c->flags & MOEI_APART) || cols % 32))
        return "scale.cols";
    return NULL;
}
static const char *moei_zero_wrong(const moe_matrix *m, size_t k, moe_status *status) {
    const uint32_t type = m->zero.type, cols = m->zero.cols ? m->zero.cols : UINT32_MAX;
    if (type == MOE_TYPE_NONE) return NULL;
    *status = MOE_ERR_TYPE;
    if ((type != MOE_TYPE_U8 && type != MOE_TYPE_U4X8) || !(moei_codecs[m->format].flags & MOEI_ZEROS))
        return "zero.type";
    *status = MOE_ERR_NULL;
    if (!m->zero.data && !m->zero.expert) return "zero.data";
    *status = MOE_ERR_SIZE;
    return cols < k && cols % 32 ? "zero.cols" : NULL;
}
/* Whether a product of sizes that addresses are made of does not overflow. */
static int moei_fits(size_t a, size_t b, size_t c) {
    return !b || !c || (a <= SIZE_MAX / b && a * b <= SIZE_MAX / c);
}

/* Whether a matrix can be read at all: formats, types, shapes and strides, not the numbers. */
static moe_status moei_check_matrix(const moe_matrix *m, size_t n_experts, size_t rows, size_t k, moe_error *error) {
    if (!m) return moei_weights_error(error, MOE_ERR_NULL, "matrix", 0, 0);
    if (m->format == MOE_FORMAT_NONE || m->format >= MOE_FORMAT_COUNT)
        return moei_weights_error(error, MOE_ERR_FORMAT, "format", m->format, 0);
    if (!m->data && !m->expert) return moei_weights_error(error, MOE_ERR_NULL, "data", 0, 0);
    if (!n_experts || !rows || !k || rows > UINT32_MAX || k > UINT32_MAX || n_experts > UINT32_MAX)
        return moei_weights_error(error, MOE_ERR_SIZE,
                                  !n_experts || n_experts > UINT32_MAX ? "n_experts" : "rows or k", 0, 1);
    const moei_layout *l = &moei_layouts[m->format];
    size_t need = moe_row_bytes(m->format, k);
    if (!need) return moei_weights_error(error, MOE_ERR_BLOCK, "k", k, l->n);
    if (m->k_stride && m->format != MOE_FORMAT_F32 && m->format != MOE_FORMAT_F16 && m->format != MOE_FORMAT_BF16)
        return moei_weights_error(error, MOE_ERR_FORMAT, "k_stride", m->k_stride, 0);
    if (m->k_stride) need = l->bytes;
    if (m->row_stride && m->row_stride < need)
        return moei_weights_error(error, MOE_ERR_STRIDE, "row_stride", m->row_stride, need);
    if (m->k_stride && m->k_stride < l->bytes)
        return moei_weights_error(error, MOE_ERR_STRIDE, "k_stride", m->k_stride, l->bytes);
    if (!moei_fits(n_experts, rows, m->row_stride ? m->row_stride : need) || !moei_fits(n_experts, k, m->k_stride) ||
        !moei_fits(n_experts, 1, m->expert_stride))
        return moei_weights_error(error, MOE_ERR_OVERFLOW, "row_stride", m->row_stride, 0);
    moe_status status = MOE_OK;
    const char *field = moei_scale_wrong(m, k, &status);
    if (!field) field = moei_zero_wrong(m, k, &status);
    if (field) return moei_weights_error(error, status, field, 0, 0);
    if (m->scale2.type > MOE_TYPE_BF16)
        return moei_weights_error(error, MOE_ERR_TYPE, "scale2.type", m->scale2.type, 0);
    return MOE_OK;
}

MOEI_FORCE int moei_side_value_bad(const moei_side *s, size_t row, size_t k) {
    if (s->type == MOE_TYPE_U4X8) return 0;
    if (s->type == MOE_TYPE_U8) return *moei_side_at(s, row, k) > 127;
    return !moei_is_finite(moei_scale_at(s, row, k));
}
/* Whether a scale of a grid is not finite or a zero point is none, and the first weight that it belongs to. */
static int moei_side_bad(const moei_side *s, size_t rows, size_t k, uint64_t *at) {
    size_t lines = s->data ? (rows - 1) / s->rows + 1 : 0, cols = (k - 1) / s->cols + 1;
    for (size_t line = 0; line < lines; line++)
        for (size_t col = 0; col < cols; col++) {
            *at = (uint64_t)line * s->rows * k + col * s->cols;
            if (moei_side_value_bad(s, line * s->rows, col * s->cols)) return 1;
        }
    return 0;
}
/* The same for up to 32 weights from k0 of a row: a dense weight is its own scale. */
static int moei_weights_bad(const moei_rows *w, uint32_t r, size_t k0, size_t n, uint64_t *at) {
    const moei_codec *c = &moei_codecs[w->format];
    *at = (uint64_t)r * w->k + k0;
    if (c->dense) {
        float v[32];
        moei_decode_row(w, r, k0, n, v);
        for (size_t i = 0; i < n; i++, ++*at)
            if (!moei_is_finite(v[i])) return 1;
        return 0;
    }
    if (c->flags & MOEI_APART) return 0;
    moei_block b;
    float unit = c->flags & MOEI_DOUBLED ? 2.0f : 1.0f;
    moei_unpack(w, r, k0, n, &b);
    return !moei_is_finite(b.d[0] * unit) || !moei_is_finite(b.dmin); /* nvfp4, with two, has no bad ones */
}
static int moei_rows_bad(const moei_rows *w, size_t rows, uint64_t *at) {
    for (uint32_t r = 0; r < rows; r++)
        for (size_t i = 0; i < w->k; i += 32)
            if (moei_weights_bad(w, r, i, w->k - i < 32 ? w->k - i : 32, at)) return 1;
    return 0;
}
/* The field of an expert that holds a bad value, or NULL. */
static const char *moei_expert_bad(const moe_matrix *m, uint32_t expert, size_t rows, size_t k, uint64_t *at) {
    moei_rows w;
    moei_view(m, NULL, 0, expert, rows, k, &w);
    if (!w.data) return NULL;
    moei_side scale = moei_scale_of(m, NULL, 0, expert, rows, k);
    float scale2 = moei_array_load(&m->scale2, NULL, expert, 1, 0, 1.0f);
    w.scale.data = NULL; /* the stored values, not the scaled ones */
    if (moei_side_bad(&scale, rows, k, at)) return "scale";
    if (moei_side_bad(&w.zero, rows, k, at)) return "zero";
    if (moei_rows_bad(&w, rows, at)) return "data";
    *at = 0;
    return moei_is_finite(scale2) && !(m->scale2_divides && scale2 == 0.0f) ? NULL : "scale2";
}

/* error.field: data, scale, zero or scale2; error.got: the first weight concerned, counted from expert 0's first.
   Absent experts are skipped. Scales of 0 are fine, divisors of 0 are not. */
MOE_API moe_status moe_validate(const moe_matrix *matrix, size_t n_experts, size_t rows, size_t k, moe_error *error) {
    moe_status status = moei_check_matrix(matrix, n_experts, rows, k, error);
    for (uint32_t e = 0; !status && e < n_experts; e++) {
        uint64_t at = 0;
        const char *field = moei_expert_bad(matrix, e, rows, k, &at);
        if (field) status = moei_weights_error(error, MOE_ERR_VALUE, field, (uint64_t)e * rows * k + at, 0);
    }
    return status;
}

MOE_API moe_status moe_dequantize(const moe_matrix *matrix, uint32_t expert, size_t n_experts, size_t rows, size_t k,
                                  size_t row, size_t n_rows, float *out) {
    moe_status status = moei_check_matrix(matrix, n_experts, rows, k, NULL);
    if (status) return status;
    if (!out && n_rows) return MOE_ERR_NULL;
    if (expert >= n_experts) return MOE_ERR_EXPERT_ID;
    if (row > rows || n_rows > rows - row) return MOE_ERR_SIZE;
    moei_rows w;
    moei_view(matrix, NULL, 0, expert, rows, k, &w);
    if (!w.data) return MOE_ERR_EXPERT_ABSENT;
    w.row0 = (uint32_t)row;
    for (size_t r = 0; r < n_rows; r += 16) {
        uint32_t n = (uint32_t)(n_rows - r < 16 ? n_rows - r : 16);
        moei_decode_tile(&w, (uint32_t)r, n, 0, k, out + r * k, k);
    }
    for (size_t r = 0; r < n_rows; r++) {
        moei_factor f = moei_row_scale(matrix, NULL, 0, expert, rows, k, row + r);
        for (size_t i = 0; i < k; i++) out[r * k + i] = out[r * k + i] * f.multiply / f.divide;
    }
    return MOE_OK;
}

/* ---- Quantisers: the rounding of gguf-py and ggml's reference C, byte for byte */

MOEI_FORCE void moei_store16(uint8_t *p, uint16_t v) { p[0] = (uint8_t)v, p[1] = (uint8_t)(v >> 8); }
MOEI_FORCE void moei_store32(uint8_t *p, uint32_t v) {
    moei_store16(p, (uint16_t)v), moei_store16(p + 2, (uint16_t)(v >> 16));
}

static uint8_t moei_to_e4m3(float f) { /* round to nearest even; beyond 448, and Inf: 448, as torch does */
    uint32_t u = moei_bits(f), sign = u >> 24 & 0x80, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint8_t)(sign | 0x7f);
    if (a >= 0x43e80000u) return (uint8_t)(sign | 0x7e);
    if (a < 0x3c800000u) { /* below 2^-6: units of 2^-9 */
        uint32_t shift = 141 - (a >> 23), m = (a & 0x7fffffu) | 0x800000u;
        if (shift > 24) return (uint8_t)sign;
        uint32_t q = m >> shift, rest = m & ((1u << shift) - 1), half = 1u << (shift - 1);
        return (uint8_t)(sign | (q + (rest > half || (rest == half && (q & 1)))));
    }
    return (uint8_t)(sign | ((a - 0x3c000000u + 0x7ffff + (a >> 20 & 1)) >> 20));
}

/* The largest magnitude, and the first value that has it. */
static float moei_absmax(const float *x, int n, float *value) {
    float amax = 0.0f;
    *value = 0.0f;
    for (int i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        if (a > amax) amax = a, *value = x[i];
    }
    return amax;
}
MOEI_FORCE float moei_inverse(float d) { /* 0 where the scale is too small to have one */
    float id = d != 0.0f ? 1.0f / d : 0.0f;
    return moei_is_finite(id) ? id : 0.0f;
}
static void moei_quantize_q8_0(const float *x, uint8_t *p) {
    float value, d = moei_absmax(x, 32, &value) / 127.0f, id = moei_inverse(d);
    moei_store16(p, moei_to_f16(d));
    for (int i = 0; i < 32; i++) p[2 + i] = (uint8_t)(int8_t)roundf(x[i] * id);
}
/* The sum is in double, where it does not depend on a fused multiply-add. */
static void moei_quantize_q4_0(const float *x, uint8_t *p) {
    float max, d = (moei_absmax(x, 32, &max), max / -8.0f), id = moei_inverse(d);
    uint8_t q[32];
    for (int i = 0; i < 32; i++) {
        int v = (int)((double)x[i] * (double)id + 8.5);
        q[i] = (uint8_t)(v > 15 ? 15 : v);
    }
    moei_store16(p, moei_to_f16(d));
    for (int i = 0; i < 16; i++) p[2 + i] = (uint8_t)(q[i] | q[i + 16] << 4);
}
static uint8_t moei_nearest_e2m1(float x, float half_scale) { /* the first of the nearest */
    uint8_t best = 0;
    float least = fabsf(x);
    for (uint8_t c = 1; c < 16; c++) {
        float e = fabsf((float)moei_e2m1x2[c] * half_scale - x); /* the product is exact */
        if (e < least) best = c, least = e;
    }
    return best;
}
static void moei_quantize_mxfp4(const float *x, uint8_t *p) {
    float value, amax = moei_absmax(x, 32, &value);
    int e = amax > 0.0f ? (int)floorf((float)log2((double)amax)) + 125 : 0; /* log2 rounds to float, as log2f does */
    moei_block b;
    *p = (uint8_t)(e < 0 ? 0 : e);
    moei_unpack_mxfp4(p, 0, &b);
    for (int i = 0; i < 16; i++)
        p[1 + i] = (uint8_t)(moei_nearest_e2m1(x[i], b.d[0]) | moei_nearest_e2m1(x[i + 16], b.d[0]) << 4);
}

static void moei_quantize_row(uint32_t format, const float *x, size_t k, uint8_t *p) {
    const moei_layout *l = &moei_layouts[format];
    for (size_t i = 0; i < k; i += l->n, p += l->bytes) switch (format) {
        case MOE_FORMAT_F32: moei_store32(p, moei_bits(x[i])); break;
        case MOE_FORMAT_F16: moei_store16(p, moei_to_f16(x[i])); break;
        case MOE_FORMAT_BF16: moei_store16(p, moei_to_bf16(x[i])); break;
        case MOE_FORMAT_FP8_CHANNEL: *p = moei_to_e4m3(x[i]); break;
        case MOE_FORMAT_Q8_0: moei_quantize_q8_0(x + i, p); break;
        case MOE_FORMAT_Q4_0: moei_quantize_q4_0(x + i, p); break;
        case MOE_FORMAT_MXFP4: moei_quantize_mxfp4(x + i, p); break;
        default: break;
        }
}

/* The block formats refuse NaN and Inf (MOE_ERR_VALUE), which they cannot hold. */
MOE_API moe_status moe_quantize(uint32_t format, const float *src, size_t n_rows, size_t k, void *dst) {
    if (format == MOE_FORMAT_NONE || format >= MOE_FORMAT_COUNT) return MOE_ERR_FORMAT;
    size_t row_bytes = moe_row_bytes(format, k);
    int block = format == MOE_FORMAT_Q8_0 || format == MOE_FORMAT_Q4_0 || format == MOE_FORMAT_MXFP4;
    if (!block && format > MOE_FORMAT_BF16 && format != MOE_FORMAT_FP8_CHANNEL) return MOE_ERR_UNSUPPORTED;
    if (!n_rows || !k) return MOE_OK;
    if (!src || !dst) return MOE_ERR_NULL;
    if (!row_bytes) return MOE_ERR_BLOCK;
    for (size_t i = 0; block && i < n_rows * k; i++)
        if (!moei_is_finite(src[i])) return MOE_ERR_VALUE;
    for (size_t r = 0; r < n_rows; r++) moei_quantize_row(format, src + r * k, k, (uint8_t *)dst + r * row_bytes);
    return MOE_OK;
}

/* ---- Names */

MOEI_UNUSED static int moei_same_name(const char *a, const char *b) { /* ASCII, case-insensitive */
    for (;; a++, b++) {
        int x = *a >= 'A' && *a <= 'Z' ? *a + 32 : *a, y = *b >= 'A' && *b <= 'Z' ? *b + 32 : *b;
        if (x != y) return 0;
        if (!x) return 1;
    }
}
MOE_API const char *moe_format_name(uint32_t format) {
    return format != MOE_FORMAT_NONE && format < MOE_FORMAT_COUNT ? moei_layouts[format].name : "?";
}
MOE_API uint32_t moe_format_by_name(const char *name) {
    uint32_t f = MOE_FORMAT_COUNT - 1;
    while (f && !(name && moei_same_name(name, moei_layouts[f].name))) f--;
    return f;
}

/* ==== >>reference: the definition of every dot product, and the c tier =============================================
   F32: acc[k mod 16] = fma(w[k], x[k], acc[k mod 16]) in ascending k, then a halving tree (8, 4, 2, 1), then + 0.0f.
   w[k] is what moei_decode_row says.

   Q8: acc[block mod 8], ascending blocks, then the tree (4, 2, 1), then + 0.0f. For a block of 32 weights (d, scale,
   min, dmin of moei_block) and 32 activations (xd, xs, sum16 of moei_q8), with i0, i1 = the integer sums of w.q * x.q
   over the halves, one block adds as follows. [a * b] is one rounded float product, (a * b) an exact one:
     q8_0 q4_0 q5_0 iq4_nl mxfp4    acc = fma(i0 + i1, [d * xd], acc)
     mxfp4_hf int8_channel          the same
     int4_group                     the same; zero points are in w.q, hence inside the integers
     iq4_xs                         acc = fma(i0 + i1, [(d * scale) * xd], acc)
     q4_K q5_K                      as iq4_xs, then acc = fma(-(dmin * min), xs, acc)
     q4_1 q5_1                      the same with scale = 1, min = -1
     q3_K q6_K                      acc = fma(scale0 * i0 + scale1 * i1, [d * xd], acc)
     q2_K                           as q3_K, then acc = fma(min0 * sum16_0 + min1 * sum16_1, -[dmin * xd], acc)
     nvfp4 nvfp4_hf                 acc = fma(i0, [d0 * xd], acc), then acc = fma(i1, [d1 * xd], acc)
   All integers stay below 2^24: converting them to float is exact. A scale that is constant along a row is no part of
   this: it is applied once to the result.

   Provides moei_f32_c, moei_q8_c, moei_vec_c; moei_prepare_* and moei_*_row_bytes for tiers whose prepared rows are
   in the natural order; moei_decode_default for tiers without a decode of their own. */

/* ---- Prepared rows in the natural order */

MOEI_FORCE size_t moei_round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

MOEI_UNUSED static size_t moei_f32_row_bytes(size_t k) { return moei_round_up(k, 16) * 4; }
MOEI_UNUSED static size_t moei_bf16_row_bytes(size_t k) { return moei_round_up(k, 32) * 2; }
MOEI_UNUSED static size_t moei_q8_row_bytes(size_t k) { return moei_round_up(k, 256) / 256 * sizeof(moei_q8); }

/* x[0] is value k0 of the row. */
MOEI_UNUSED static void moei_prepare_f32(void *row, const float *x, size_t k0, size_t n, size_t k) {
    float *y = (float *)row;
    memcpy(y + k0, x, n * sizeof *y);
    if (k0 + n == k) memset(y + k, 0, moei_f32_row_bytes(k) - k * sizeof *y);
}
MOEI_UNUSED static void moei_prepare_bf16(void *row, const float *x, size_t k0, size_t n, size_t k) {
    uint16_t *y = (uint16_t *)row;
    for (size_t i = 0; i < n; i++) y[k0 + i] = moei_to_bf16(x[i]);
    if (k0 + n == k) memset(y + k, 0, moei_bf16_row_bytes(k) - k * sizeof *y);
}

/* Block j of b. NaN is found by its bits, so that any company of numbers leaves it a NaN. */
static void moei_prepare_q8_block(moei_q8 *b, uint32_t j, const float *x) {
    uint32_t top = 0;
    int32_t sum[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        uint32_t a = moei_bits(x[i]) & 0x7fffffffu;
        if (a > top) top = a;
    }
    float amax = moei_float(top), scale = 0.0f, d = 0.0f;
    if (top >= 0x7f800000u) d = moei_float(0x7fc00000u);
    else if (top >= 0x0f800000u) d = amax / 127.0f, scale = 127.0f / amax; /* 2^-96: scale stays finite */
    for (int i = 0; i < 32; i++) {
        int32_t q = scale > 0.0f ? (int32_t)(moei_bits(moei_fma(x[i], scale, MOEI_MAGIC)) - MOEI_MAGIC_BITS) : 0;
        b->q[j][i] = (int8_t)q;
        sum[i / 16] += q;
    }
    b->d[j] = d;
    b->sum[j] = sum[0] + sum[1];
    b->sum16[j][0] = (int16_t)sum[0];
    b->sum16[j][1] = (int16_t)sum[1];
    b->s[j] = d * (float)b->sum[j];
}
MOEI_UNUSED static void moei_prepare_q8(void *row, const float *x, size_t k0, size_t n, size_t k) {
    static const float zeros[32] = {0};
    moei_q8 *b = (moei_q8 *)row;
    size_t end = k0 + n == k ? moei_round_up(k, 256) : k0 + n;
    for (size_t i = k0; i < end; i += 32)
        moei_prepare_q8_block(b + i / 256, (uint32_t)(i / 32 % 8), i < k ? x + (i - k0) : zeros);
}

/* ---- Panels by the reference: decode, then prepare. Transposed rows are read as they are stored, 16 at a time */

MOEI_UNUSED static void moei_decode_default(const moei_arith *a, const moei_rows *w, uint32_t n_rows, void *panel) {
    float buf[1024];
    uint32_t group = w->k_stride ? 16 : 1;
    size_t chunk = MOEI_COUNT(buf) / group, row_bytes = a->row_bytes(w->k);
    for (uint32_t r0 = 0; r0 < n_rows; r0 += group) {
        uint32_t rows = n_rows - r0 < group ? n_rows - r0 : group;
        for (size_t k0 = 0; k0 < w->k; k0 += chunk) {
            size_t n = w->k - k0 < chunk ? w->k - k0 : chunk;
            moei_decode_tile(w, r0, rows, k0, n, buf, chunk);
            for (uint32_t r = 0; r < rows; r++)
                a->prepare((uint8_t *)panel + (r0 + r) * row_bytes, buf + r * chunk, k0, n, w->k);
        }
    }
}

/* ---- F32 */

MOEI_FORCE void moei_f32_step(float *acc, const float *w, const float *x, size_t n) { /* from k = a multiple of 16 */
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t l = 0; l < 16; l++) acc[l] = moei_fma(w[i + l], x[i + l], acc[l]);
    for (size_t l = 0; i + l < n; l++) acc[l] = moei_fma(w[i + l], x[i + l], acc[l]);
}
MOEI_FORCE float moei_tree(float *acc, int n) { /* n lanes: 16 or 8 */
    for (int h = n / 2; h; h /= 2)
        for (int l = 0; l < h; l++) acc[l] += acc[l + h];
    return acc[0] + 0.0f;
}

#define MOEI_C_TOKENS 8 /* tokens that share a decoded piece of a row */

/* Rows r0 .. r0 + n_rows (up to 16) times up to MOEI_C_TOKENS tokens. */
static void moei_dot_f32_c_tile(const moei_rows *w, uint32_t r0, uint32_t n_rows, const void *const *x,
                                uint32_t n_tokens, float *out, size_t out_stride) {
    float acc[16][MOEI_C_TOKENS][16], v[16][32];
    memset(acc, 0, sizeof acc[0] * n_rows);
    for (size_t k0 = 0; k0 < w->k; k0 += 32) {
        size_t n = w->k - k0 < 32 ? w->k - k0 : 32;
        moei_decode_tile(w, r0, n_rows, k0, n, v[0], 32);
        for (uint32_t r = 0; r < n_rows; r++)
            for (uint32_t t = 0; t < n_tokens; t++) moei_f32_step(acc[r][t], v[r], (const float *)x[t] + k0, n);
    }
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t t = 0; t < n_tokens; t++) out[t * out_stride + r0 + r] = moei_tree(acc[r][t], 16);
}
static void moei_dot_f32_c(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                           size_t out_stride) {
    uint32_t group = w->k_stride ? 16 : 1;
    for (uint32_t r = 0; r < n_rows; r += group)
        for (uint32_t t = 0; t < n_tokens; t += MOEI_C_TOKENS)
            moei_dot_f32_c_tile(w, r, n_rows - r < group ? n_rows - r : group, x + t,
                                n_tokens - t < MOEI_C_TOKENS ? n_tokens - t : MOEI_C_TOKENS, out + t * out_stride,
                                out_stride);
}
static size_t moei_panel_bytes_f32_c(uint32_t n_rows, size_t k) { return n_rows * moei_f32_row_bytes(k); }
static void moei_panel_f32_c(const void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x,
                             uint32_t n_tokens, float *out, size_t out_stride) {
    size_t n = moei_round_up(w->k, 16);
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t r = 0; r < n_rows; r++) {
            float acc[16] = {0};
            moei_f32_step(acc, (const float *)panel + r * n, (const float *)x[t], n);
            out[t * out_stride + r] = moei_tree(acc, 16);
        }
}

// clang-format off
MOEI_UNUSED static const moei_arith moei_f32_c = {
    MOE_COMPUTE_F32, MOE_TIER_C, moei_f32_row_bytes, moei_prepare_f32, moei_panel_bytes_f32_c, moei_panel_f32_c,
    {{NULL, NULL, 0},
#define MOE_X(id, name, n, bytes, rows, cols) {moei_dot_f32_c, NULL, MOEI_C_TOKENS},
     MOE_FORMATS(MOE_X)
#undef MOE_X
    }};
// clang-format on

/* ---- Q8 */

MOEI_FORCE int32_t moei_dot16(const int8_t *a, const int8_t *b) {
    int32_t s = 0;
    for (int i = 0; i < 16; i++) s += a[i] * b[i];
    return s;
}
/* One block of 32: the table above. */
MOEI_FORCE float moei_q8_step(const moei_block *w, uint32_t flags, const moei_q8 *x, uint32_t lane, float acc) {
    int32_t i0 = moei_dot16(w->q, x->q[lane]), i1 = moei_dot16(w->q + 16, x->q[lane] + 16);
    float d = x->d[lane];
    if (flags & MOEI_TWO) {
        acc = moei_fma((float)i0, w->d[0] * d, acc);
        return moei_fma((float)i1, w->d[1] * d, acc);
    }
    if (flags & MOEI_SUB16) acc = moei_fma((float)(w->scale[0] * i0 + w->scale[1] * i1), w->d[0] * d, acc);
    else acc = moei_fma((float)(i0 + i1), w->d[0] * (float)w->scale[0] * d, acc);
    if (!(flags & MOEI_MIN)) return acc;
    if (!(flags & MOEI_SUB16)) return moei_fma(-(w->dmin * (float)w->min[0]), x->s[lane], acc);
    return moei_fma((float)(w->min[0] * x->sum16[lane][0] + w->min[1] * x->sum16[lane][1]), -(w->dmin * d), acc);
}
static void moei_dot_q8_c_row(const moei_rows *w, uint32_t r, const void *const *x, uint32_t n_tokens, float *out,
                              size_t out_stride) {
    float acc[MOEI_C_TOKENS][8] = {{0}};
    uint32_t flags = moei_codecs[w->format].flags;
    for (size_t i = 0; i < w->k / 32; i++) {
        moei_block b;
        moei_unpack(w, r, i * 32, 32, &b);
        for (uint32_t t = 0; t < n_tokens; t++) {
            float *a = &acc[t][i % 8];
            *a = moei_q8_step(&b, flags, (const moei_q8 *)x[t] + i / 8, (uint32_t)(i % 8), *a);
        }
    }
    for (uint32_t t = 0; t < n_tokens; t++) out[t * out_stride + r] = moei_tree(acc[t], 8);
}
static void moei_dot_q8_c(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                          size_t out_stride) {
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t t = 0; t < n_tokens; t += MOEI_C_TOKENS)
            moei_dot_q8_c_row(w, r, x + t, n_tokens - t < MOEI_C_TOKENS ? n_tokens - t : MOEI_C_TOKENS,
                              out + t * out_stride, out_stride);
}

// clang-format off
#define MOEI_Q8_DENSE {NULL, NULL, 0}
#define MOEI_Q8_C {moei_dot_q8_c, NULL, UINT32_MAX}
MOEI_UNUSED static const moei_arith moei_q8_c = {
    MOE_COMPUTE_Q8, MOE_TIER_C, moei_q8_row_bytes, moei_prepare_q8, NULL, NULL,
    {MOEI_Q8_DENSE, MOEI_Q8_DENSE, MOEI_Q8_DENSE, MOEI_Q8_DENSE, /* none f32 f16 bf16 */
     MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C,      /* q8_0 q4_0 q4_1 q5_0 q5_1 */
     MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C,      /* q2_K q3_K q4_K q5_K q6_K */
     MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C,                 /* iq4_nl iq4_xs mxfp4 nvfp4 */
     MOEI_Q8_C, MOEI_Q8_C,                                       /* mxfp4_hf nvfp4_hf */
     MOEI_Q8_DENSE, MOEI_Q8_DENSE, MOEI_Q8_DENSE,                /* mxfp8 fp8_block fp8_channel */
     MOEI_Q8_C, MOEI_Q8_C}};                                     /* int8_channel int4_group */
// clang-format on

/* ---- Elementwise */

static void moei_exp_c(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = moei_exp(x[i]);
}
static void moei_sigmoid_c(float *y, const float *x, float a, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = moei_sigmoid(a * x[i]);
}
static void moei_axpy_c(float *y, const float *v, float w, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = moei_fma(w, v[i], y[i]);
}
static void moei_affine_c(float *v, const float *s, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) v[i] = moei_fma(v[i], s[i], b[i]);
}
MOEI_UNUSED static const moei_vec moei_vec_c = {moei_exp_c, moei_sigmoid_c, moei_axpy_c, moei_affine_c};

/* ==== >>avx2: F32 on AVX2 + FMA + F16C ================================================================================= */

/* ==== >>avx512: F32 on AVX-512 F/BW/DQ/VL ============================================================================== */

/* ==== >>bf16: BF16 on AVX512-BF16 ====================================================================================== */

/* ==== >>q8: Q8 on AVX2 and AVX512-VNNI ================================================================================= */

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
