/* moe.h - v0.1.0 - Mixture-of-Experts layers on the CPU - single-header C11 library - MIT licence (see the end)

   WHAT IT IS
   The feed-forward half of Mixture-of-Experts transformers (Mixtral, DeepSeek, Qwen, Llama 4, gpt-oss, Grok, DBRX, Jamba,
   Kimi, GLM, Switch, ... back to Jacobs 1991): router, top-k gating, gated experts, shared experts, weighted sum. Weights are
   used where they lie, in the format they were shipped in. Results keep a contract (NUMERICS, below): the same bits for any
   number of threads and any split of the tokens into calls.

   DO THIS
      #define MOE_IMPLEMENTATION      in exactly one C or C++ file, before
      #include "moe.h"                everywhere else include it without the define
   No compiler flags are needed (-lm where libm is apart): the instruction set is chosen at run time. Nothing beyond the C
   library is used (stddef, stdint, string, math). GCC compiles this file at -O2 even where the rest is at -O0; with clang a
   build without optimisation is slow (25 to 90 times), so there give the file that has the implementation -O1 or more.

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
          if (moe_layer_init(&layer, &desc, &error)) return printf("%s %s: %s\n", error.part, error.field, moe_status_text(error.status)), 1;
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
   Refused (MOE_ERR_UNSUPPORTED): GroveMoE's adjugate experts, Soft MoE.
   A calling thread needs 80 KB of stack, 32 KB where only the portable tier is built; moe_select 72 KB.

   CONCEPTS
   token     one row of x.                        expert   one feed-forward network.
   slot      one (token, expert) pair.            row      one output feature of a matrix;  k  one input feature.
   tier      an instruction-set level.            compute  the arithmetic of the activations: F32, BF16 or Q8.
   phase     a step that every worker must finish before the next begins.      task  a piece of a phase.
   desc      what the caller knows of the layer, all-zero but for the required fields.
   layer     a validated desc: a plain value, immutable, shareable by threads; pointers in it are read during calls only.
   io        one call: rows in, rows out, workspace.
   Shapes are written [tokens][d_model], the last dimension is contiguous. Strides are in bytes. 0 strides mean "tight".
   What a desc points to (weights, scales, biases, tables) is read as files hold it: little-endian, at any alignment. What an io
   points to is in the machine's own byte order.

   NUMERICS (the contract; the plain-C code of the section `reference` is its definition)
   For one layer, tier set and compute, a token's output has the same bits for any number of workers, order of tasks,
   split of the tokens into calls, and company (capacity limits, which look at the whole call, excepted).
   F32 and Q8 compute have the same bits on every tier, F32: 16 accumulators by k mod 16, each one chain of fused
   multiply-adds in ascending k, then a halving tree (8, 4, 2, 1), then + 0.0f. Q8: activations as int8 with one scale per 32
   values, integer dot products, 8 accumulators by block mod 8, one chain each, tree (4, 2, 1), + 0.0f.
   BF16 uses the processor's bf16 dot products: the same bits within a tier, a bound across tiers; the sections bf16, amx and
   neon define them. The tiers neon, dotprod, i8mm and neonbf16 were tested on emulated instructions only; amx is for Linux (moe_enable_amx).
   Subnormal activations count as 0 in BF16 and Q8.
   Experts are summed in ascending id by one owner per output element. A NaN or Inf in one token never reaches another.
   Router logits, scores, selection, norms and shared gates are always F32. NaN logits count as -Inf, ties go to the
   lowest id, selected ids are always distinct and in range. Suspended under -ffast-math (only the routing guards stay)
   and where FLT_EVAL_METHOD is not 0. The floating-point environment is not changed and assumed to be the default.

   PORTING NOTES (es = bytes of an element, row = moe_row_bytes of d_model, ff = d_ff)
   layout                                      gate                          up                           down
   one tensor per expert (most)                expert = list of pointers     the same                     the same
   stacked [E][ff][d], GGUF *_exps             data                          data                         data
   concatenated [E][2 ff][d] (v5, Granite)     expert_stride = 2 ff row      and offset = ff row          data
   interleaved rows g0 u0 g1 u1 (gpt-oss)      row_stride = 2 row            and offset = row             data
   transposed [E][d][2 ff] (Llama-4, Qwen3-VL) k_stride = 2 ff es            and offset = ff es           k_stride = d es
   transposed, interleaved (gpt-oss in bf16)   k_stride, row_stride = 2 es   and offset = es              k_stride = d es
   DBRX w1 v1 w2, each [E ff][d]               data                          data                         k_stride = d es
   biases of a fused tensor                    bias.stride = 2 es            and bias.offset = es         bias.data
   fp8 with a scale per 128 x 128              scale.type, scale.data; other block shapes in scale.rows and scale.cols (fast are
                                               multiples of 32 columns)
   fp8, int8 with a scale per row or tensor    scale (cols = UINT32_MAX), or scale2 for one factor per expert
   MXFP4, MXFP8, NVFP4 of Hugging Face         scale as E8M0 or E4M3 [rows][k / 32 or 16]; NVFP4's second level: scale2, which
                                               ModelOpt multiplies by and compressed-tensors divides by (scale2_divides)
   int4 groups (compressed-tensors)            INT4_GROUP, scale.cols = group, zero (U4X8) if there are zero points
   GPTQ, AWQ                                   packed along outputs: repack once (examples/checkpoint_layer.h)
   k_stride gathers rows at every use: 10 times the time of rows for one token, 3 times for 512 (measured on AVX-512, bf16
   2560 x 2048); a one-time turn keeps the bits: ckpt_turn in examples/checkpoint_layer.h, 1 s per GB.
   Scales of fused tensors take the same offsets and strides in their own units. Families are rows of the table in >>presets.

   CONFIGURATION (define before including; all optional)
   MOE_IMPLEMENTATION   emit the code here.
   MOE_STATIC           everything static, so that several copies may coexist: with MOE_IMPLEMENTATION in each file that calls.
   MOE_API              linkage of public functions (an export attribute, say).
   MOE_USE_OPENMP       run phases with OpenMP (-fopenmp) when io->parallel is NULL and n_tasks > 1.
   MOE_NO_OPTIMIZE      at -O0 not even GCC optimises the implementation (to debug it).
   MOE_NO_SIMD          only the portable C tier.
   MOE_NO_AVX2, MOE_NO_AVX512, MOE_NO_VNNI, MOE_NO_BF16, MOE_NO_AMX, MOE_NO_NEON, MOE_NO_DOTPROD, MOE_NO_I8MM
                        leave out single tiers and those that build on them (VNNI: vnni and avxvnni). A compiler too old for one leaves
                        it out by itself: avxvnni wants gcc 11 or clang 12, dotprod, i8mm and neonbf16 gcc 10 or clang 16, or flags.
   MOE_NO_Q8            no kernels for Q8, which are most of the object and of its compilation: Q8 runs on the portable C tier.
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

/* Scales or zero points that live apart from the weights: one value per block of rows x cols weights. Without scales they are 1. */
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
    MOE_GROUP_PER_GROUP, /* the best top_k / n_group of every group     (InternS1-Pro, Pangu-Pro)     */
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
    moe_matrix weight;        /* [rows][d_model], any format (F32 compute); its bias is part of the logit (gpt-oss) */
    moe_array select_bias;    /* [n_experts + n_zero] selection only, never the weight (DeepSeek-V3)  */
    moe_array expert_scale;   /* [n_experts + n_zero] factor on the final weight (Gemma-4, Pangu-Pro) */
    moe_array input_scale;    /* [d_model]: router input = rms_norm(x) * input_scale / sqrt(d_model)  */
    float input_norm_eps;     /* of that norm                                          (Gemma-4)      */
    const void *table;        /* PICK_TABLE: [table_rows][top_k] expert ids by token id, -1 = skip (DeepSeek-V4) */
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
typedef enum moe_weight_at { /* what the routing weight multiplies */
    MOE_WEIGHT_AT_OUTPUT,
    MOE_WEIGHT_AT_INPUT,  /* the expert's input                              (Llama-4)                */
    MOE_WEIGHT_AT_HIDDEN, /* act(gate h) * (up h)                            (Inkling)                */
    MOE_WEIGHT_AT_COUNT
} moe_weight_at;
typedef enum moe_zero { MOE_ZERO_IDENTITY, MOE_ZERO_NOTHING, MOE_ZERO_COUNT } moe_zero;

/* y_e = down(act(gate h) * (up h)); y = combine_scale * (expert_out_scale * sum w_e y_e + shared) + out_bias */
typedef struct moe_ffn {
    uint32_t activation;     /* moe_activation                                                        */
    uint32_t ungated;        /* 1: y_e = down(act(up h)), there is no gate matrix    (Switch)         */
    uint32_t clamp;          /* moe_clamp                                                             */
    uint32_t weight_at;      /* moe_weight_at                                                         */
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
   brings logits or ids). All-zero is valid for everything else. A matrix, vector, table, limit or count that is given but that
   another knob leaves unused (a bias without its type, shared experts without shared.d_ff, a limit without its clamp, groups
   without a group rule, two capacities) is an error. */
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

/* What was wrong, as static strings: field names the struct member, part the matrix that it is in ("gate", "shared.down", ...)
   or "". got and want where numbers explain it (a float as its bits). */
typedef struct moe_error {
    moe_status status;
    const char *part, *field;
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

/* Per-call pointers for streamed experts, indexed like the desc's (0 is expert_first); a NULL array means the desc's own. A NULL
   entry is an absent expert: MOE_ERR_EXPERT_ABSENT if a token needs it. Index: MOE_GATE, MOE_UP, MOE_DOWN. */
enum { MOE_GATE, MOE_UP, MOE_DOWN };
typedef struct moe_experts {
    const void *const *data[3], *const *scale[3], *const *zero[3], *const *scale2[3], *const *bias[3];
} moe_experts;

/* x, y, router_x and the workspace may lie at any alignment, the other arrays at their type's. What a call writes, the workspace too,
   overlaps nothing else of the call (MOE_ERR_ALIAS; rows with gaps may lie in each other's gaps), but: y == x with equal type and
   stride, ids_out == ids_in, weights_out == weights_in, y == sums of moe_finish (F32, tight); and y anywhere in router_x. */
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
    void *workspace;          /* one for all layers: contents need not be kept between calls           */
    size_t workspace_size;
    uint32_t n_tasks;         /* pieces per phase; 0 = 1. Use 1x the workers, 3-4x with a stealing pool */
    const moe_parallel *parallel; /* NULL = a serial loop (or OpenMP, see above)                       */
    moe_stats *stats;         /* NULL = none                                                           */
    moe_error *error;         /* NULL = none                                                           */
} moe_io;

/* A validated layer: a value to copy and share; treat the members as private. */
struct moei_arith;
struct moei_vec;
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
    const struct moei_vec *vec;
    uint32_t router_rows, n_ids, tier;
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
   (tokens are then processed in blocks): about 0.7 MB a task with d_model 2048, 1.6 MB with 7168. Anything between is used; more
   tokens or tasks never need less.
   SIZE_MAX on overflow. For a call with io->k > top_k slots per token ask for moe_workspace_size of n_tokens * k / top_k tokens
   (rounded up); its least is not told. */
MOE_API size_t moe_workspace_size(const moe_layer *layer, size_t n_tokens, uint32_t n_tasks);
MOE_API size_t moe_workspace_min(const moe_layer *layer, size_t n_tokens, uint32_t n_tasks);

/* ---- API 2: run. Thread-safe for distinct workspaces and outputs. On error no output was touched. ------------------ */

MOE_API moe_status moe_forward(const moe_layer *layer, const moe_io *io); /* the whole layer                         */
MOE_API moe_status moe_route(const moe_layer *layer, const moe_io *io);   /* ids_out, weights_out, logits_out; no y  */

/* Routing of given logits [n_tokens][rows], without a layer. Only the knobs, biases and table of desc are used (d_model, d_ff
   and matrices may be 0). ids, weights [n_tokens][top_k]; token_ids for PICK_TABLE, else NULL; capacity is not applied. At most
   2048 rows (MOE_ERR_SIZE beyond: the scratch is on the stack). */
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
MOE_API int moe_enable_amx(void);                      /* asks the kernel (process-wide); 1 = layers made later use it */
MOE_API uint32_t moe_layer_tier(const moe_layer *layer);
MOE_API uint32_t moe_layer_compute(const moe_layer *layer, uint32_t matrix); /* MOE_GATE, MOE_UP, MOE_DOWN */
MOE_API void moe_layer_counts(const moe_layer *layer, moe_counts *counts);
MOE_API void moe_stats_balance(const moe_stats *stats, uint32_t n_experts, moe_balance *balance);

/* ---- API 4: weights -------------------------------------------------------------------------------------------------- */

/* Bytes of one tight row of k weights (without scales that live apart); 0 if k is no multiple of the block (INT4_GROUP takes any k). */
MOE_API size_t moe_row_bytes(uint32_t format, size_t k);
/* Rows [row, row + n_rows) of one expert as exact f32 [n_rows][k], every scale applied. */
MOE_API moe_status moe_dequantize(const moe_matrix *matrix, uint32_t expert, size_t n_experts, size_t rows, size_t k, size_t row,
                                  size_t n_rows, float *out);
/* f32 [n_rows][k] to F32, F16, BF16, Q8_0, Q4_0, MXFP4 or (scale 1) FP8_CHANNEL rows, rounded as the formats' reference
   quantisers do; other formats: MOE_ERR_UNSUPPORTED. */
MOE_API moe_status moe_quantize(uint32_t format, const float *src, size_t n_rows, size_t k, void *dst);
/* Checks untrusted weights (all experts): every scale, and every weight of dense formats, must be finite. MOE_ERR_VALUE with the
   flat index [expert][row][k] of the first weight concerned in error->got. */
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
   leak into portable code. Sections below: numerics contract formats reference dense avx2 avx512 bf16 amx q8 neon cpu route
   presets choose validate layout phases api. Each may call what stands above it. */
#include <string.h>
#include <math.h>

#if defined(__GNUC__) || defined(__clang__)
#define MOEI_UNUSED __attribute__((unused))
#if !defined(__OPTIMIZE__) && (defined(__clang__) || defined(MOE_NO_OPTIMIZE)) /* at -O0 it is only copied: 87 s, 127 MB of object for 1 s, 0.7 MB */
#define MOEI_FORCE MOEI_UNUSED static
#else
#define MOEI_FORCE static inline __attribute__((always_inline, unused))
#endif
#define MOEI_NOINLINE __attribute__((noinline))
#define MOEI_TARGET(s) __attribute__((target(s)))
#define MOEI_PREFETCH(p) __builtin_prefetch(p)
#define MOEI_PREFETCH_L2(p) __builtin_prefetch(p, 0, 2)
#define MOEI_PREFETCH_NTA(p) __builtin_prefetch(p, 0, 0)
#else
#define MOEI_UNUSED
#ifdef _MSC_VER
#define MOEI_FORCE static __forceinline
#else
#define MOEI_FORCE static inline
#endif
#define MOEI_NOINLINE
#define MOEI_TARGET(s)
#define MOEI_PREFETCH(p) ((void)(p))
#define MOEI_PREFETCH_L2(p) ((void)(p))
#define MOEI_PREFETCH_NTA(p) ((void)(p))
#endif
#if defined(__clang__)
#define MOEI_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define MOEI_UNROLL _Pragma("GCC unroll 32")
#else
#define MOEI_UNROLL
#endif
#define MOEI_COUNT(a) (sizeof(a) / sizeof((a)[0]))
MOEI_FORCE size_t moei_max(size_t a, size_t b) { return a > b ? a : b; }
MOEI_FORCE size_t moei_min(size_t a, size_t b) { return a < b ? a : b; }
MOEI_FORCE uint32_t moei_min32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Names are equal but for case, and - _ . are one letter (ASCII, whatever the locale). */
MOEI_UNUSED static int moei_same_name(const char *a, const char *b) {
    for (;; a++, b++) {
        char c = *a >= 'A' && *a <= 'Z' ? (char)(*a + 32) : *a == '-' || *a == '.' ? '_' : *a;
        char d = *b >= 'A' && *b <= 'Z' ? (char)(*b + 32) : *b == '-' || *b == '.' ? '_' : *b;
        if (c != d) return 0;
        if (!c) return 1;
    }
}

/* Which tiers this compiler can build. */
#if !defined(MOE_NO_SIMD) && (defined(__x86_64__) || defined(_M_X64)) &&                                                 \
    (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 9) || defined(_MSC_VER))
#include <immintrin.h>
#ifndef MOE_NO_AVX2
#define MOEI_HAVE_AVX2 1
#if !defined(MOE_NO_VNNI) && ((defined(__clang__) && __clang_major__ >= 12) ||                                           \
                              (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 11) ||                            \
                              (!defined(__clang__) && defined(_MSC_VER) && _MSC_VER >= 1930)) /* (not compiled with it yet) */
#define MOEI_HAVE_AVXVNNI 1
#endif
#ifndef MOE_NO_AVX512
#define MOEI_HAVE_AVX512 1
#ifndef MOE_NO_VNNI
#define MOEI_HAVE_VNNI 1
#endif
#if !defined(MOE_NO_BF16) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 10))
#define MOEI_HAVE_AVX512BF16 1
#if !defined(MOE_NO_AMX) && ((defined(__clang__) && __clang_major__ >= 12) ||                                            \
                             (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 11))
#define MOEI_HAVE_AMX 1
#endif
#endif
#endif
#endif
#endif
#if !defined(MOE_NO_SIMD) && !defined(MOE_NO_NEON) && defined(__aarch64__) && !defined(__AARCH64EB__)
#include <arm_neon.h>
#define MOEI_HAVE_NEON 1
/* Intrinsics in functions with a target attribute need clang >= 16, whose header declares them all, or gcc. gcc before 14 wants
   armv8.2-a with them, which functions for a newer base than armv8-a cannot be inlined into. Others build a tier when the
   compiler's flags already have its instructions, and then without an attribute. */
#if (defined(__clang__) && __clang_major__ >= 16) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 14)
#define MOEI_ARM(extension) MOEI_TARGET("+" extension)
#elif !defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 10 && !defined(__ARM_FEATURE_ATOMICS)
#define MOEI_ARM(extension) MOEI_TARGET("arch=armv8.2-a+" extension)
#endif
#if !defined(MOE_NO_DOTPROD) && (defined(MOEI_ARM) || defined(__ARM_FEATURE_DOTPROD))
#define MOEI_HAVE_DOTPROD 1
#if !defined(MOE_NO_I8MM) && (defined(MOEI_ARM) || defined(__ARM_FEATURE_MATMUL_INT8))
#define MOEI_HAVE_I8MM 1
#if !defined(MOE_NO_BF16) && (defined(MOEI_ARM) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC))
#define MOEI_HAVE_NEONBF16 1
#endif
#endif
#endif
#endif
#ifdef __ARM_FEATURE_DOTPROD
#define MOEI_DOTPROD
#else
#define MOEI_DOTPROD MOEI_ARM("dotprod")
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
#define MOEI_I8MM
#else
#define MOEI_I8MM MOEI_ARM("i8mm")
#endif
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
#define MOEI_NEONBF16
#else
#define MOEI_NEONBF16 MOEI_ARM("bf16")
#endif
#ifndef MOEI_HAVE_AVX2
#define MOEI_HAVE_AVX2 0
#endif
#ifndef MOEI_HAVE_AVXVNNI
#define MOEI_HAVE_AVXVNNI 0
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
#ifndef MOEI_HAVE_AMX
#define MOEI_HAVE_AMX 0
#endif
#ifndef MOEI_HAVE_NEON
#define MOEI_HAVE_NEON 0
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
#ifdef MOE_NO_Q8 /* which these are for */
#define MOEI_HAVE_Q8 0
#undef MOEI_HAVE_AVXVNNI
#undef MOEI_HAVE_VNNI
#undef MOEI_HAVE_DOTPROD
#undef MOEI_HAVE_I8MM
#define MOEI_HAVE_AVXVNNI 0
#define MOEI_HAVE_VNNI 0
#define MOEI_HAVE_DOTPROD 0
#define MOEI_HAVE_I8MM 0
#else
#define MOEI_HAVE_Q8 1
#endif
#define MOEI_AVX2 MOEI_TARGET("avx2,fma,f16c")
#if (defined(__GNUC__) || defined(__clang__)) && !defined(MOEI_AVX512_TARGET)
#define MOEI_ASM 1
#else
#define MOEI_ASM 0
#endif
#ifndef MOEI_AVX512_TARGET /* tests emulate what is newer than AVX2 */
#define MOEI_AVX512_TARGET(more) MOEI_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl" more)
#endif
#define MOEI_AVX512 MOEI_AVX512_TARGET("")
#define MOEI_VNNI MOEI_AVX512_TARGET(",avx512vnni")
#define MOEI_BF16 MOEI_AVX512_TARGET(",avx512bf16")
#define MOEI_BF16_VBMI MOEI_AVX512_TARGET(",avx512bf16,avx512vbmi")
#if defined(__GNUC__) && !defined(__clang__) && !defined(__OPTIMIZE__) && !defined(MOE_NO_OPTIMIZE)
#define MOEI_OPTIMIZE 1 /* a debug build runs at full speed too, and is small */
#pragma GCC push_options
#pragma GCC optimize("O2")
#endif

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

/* A factor of -Inf counts as MOEI_LEAST: what a gate closes is -0, not NaN. */
#define MOEI_LEAST (-3e38f)
MOEI_FORCE float moei_times(float y, float v) { return (y < MOEI_LEAST ? MOEI_LEAST : y) * v; }
MOEI_FORCE float moei_clamp(float v, float low, float high, float plus) { return (v > high ? high : v < low ? low : v) + plus; }

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
   panel     rows decoded once for many tokens. F32 and BF16: row r at r * row_bytes(k), laid out like a prepared row, but where
             tiles have their own `put`. Q8: the arithmetic's own layout.
   Nothing reads a byte outside of the rows, and nothing allocates. */

typedef struct moei_side {    /* scales or zero points that live apart, of one expert */
    const uint8_t *data;      /* NULL = absent */
    size_t row_stride;
    uint32_t type, rows, cols;
} moei_side;

/* Where the rows of few tokens are prefetched to, MOEI_AHEAD_BYTES before they are read; BOTH: to L2, and MOEI_TO_L1 before to L1; HALVES: so
   are rows of 16 bits, and those of f32 to L2. An arithmetic has what suits most rows of a processor; some functions know better for one
   token or for several. */
enum { MOEI_ASK_L2, MOEI_ASK_BOTH, MOEI_ASK_L1, MOEI_ASK_PAST_L3, MOEI_ASK_NONE, MOEI_ASK_HALVES };
typedef struct moei_rows {
    const uint8_t *data;        /* the expert's row 0 */
    size_t row_stride, k_stride, k;
    uint32_t format, row0;      /* row r of the view is the expert's row row0 + r */
    moei_side scale, zero;      /* scales constant along a row are not here: the caller applies them to the result */
    const uint8_t *prefetch;    /* what will be read next: spread prefetches of prefetch_bytes over the work; may be NULL */
    size_t prefetch_bytes;
    const uint8_t *next_x;      /* likewise the tokens that pass over the rows after these; a hint */
    size_t next_x_bytes;
    float *sums;                /* room for n_sums of them where parts of long rows take turns, and for a decoded part; may be NULL */
    size_t n_sums;
    uint32_t ask;               /* MOEI_ASK_, where dot heeds it: its caller takes the arithmetic's; any is right */
    uint32_t whole;             /* 0 or 1, likewise: all of k at once, by tiles of AVX-512 (moei_tiles) and Q8's few tokens (moei_q8_turns) */
} moei_rows;
MOEI_FORCE const uint8_t *moei_row(const moei_rows *w, size_t r) { return w->data + (w->row0 + r) * w->row_stride; }

/* 256 activations as int8: 8 blocks of 32 (the tiers of x86 keep q in orders of their own). d = amax / 127, q = round-to-nearest-even(x *
   (127 / amax)) by one fma, s = d * sum(q). A block whose amax is below 2^-96 is zero; one with NaN or Inf has d = s = NaN and q = 0. */
typedef struct moei_q8 {
    int8_t q[8][32];
    float d[8], s[8];
    int32_t sum[8];             /* of q */
    int16_t sum16[8][2];        /* of its halves */
} moei_q8;

/* out[t * out_stride + r] = sum over k of row r (r < n_rows) times prepared row x[t] (t < n_tokens) */
typedef void moei_dot_fn(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                         size_t out_stride);
/* A panel function may decode on the way, while the first tokens pass: then decode does nothing. */
typedef void moei_decode_fn(const moei_rows *w, uint32_t n_rows, void *panel);
typedef void moei_panel_fn(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                           float *out, size_t out_stride);

typedef struct moei_ops {       /* of one format */
    moei_dot_fn *dot;           /* straight from the rows; NULL = only through a panel */
    moei_decode_fn *decode;     /* NULL = decode by the reference, then prepare (F32 and BF16 only) */
    uint32_t dot_max;           /* for up to that many tokens: beyond the panel is faster, and dot may not be able to */
} moei_ops;

/* Tokens that pass over the same rows lie together: where there are n >= min of them they are packed in groups of `group` (the
   last one may be short), and x[group * i] of a dot or panel is group i. A group of n takes n * row_bytes(k). Fewer than min are
   used as they were prepared. */
#define MOEI_GROUP 16u
typedef struct moei_packing {
    uint32_t group, min;                                                          /* at most MOEI_GROUP; group + 1 */
    void (*pack)(void *to, const void *const *x, uint32_t n, size_t k0, size_t len, size_t k); /* n <= group prepared rows of
                                     len values, to their place at k0 in a group of rows of k; both as in prepare */
    void (*prepare)(void *to, const float *x, size_t x_stride, uint32_t n, size_t k0, size_t len, size_t k); /* the same from
                                     values, x_stride of them from row to row; or NULL */
    void (*begin)(void), (*end)(void);                                            /* around every task: puts the processor into
                                     a state of its own; or NULL */
} moei_packing;

typedef struct moei_arith {     /* one compute on one tier */
    uint32_t compute, tier;
    size_t (*row_bytes)(size_t k);                                                /* of a prepared row, a multiple of 64 */
    void (*prepare)(void *row, const float *x, size_t k0, size_t n, size_t k);    /* values k0 .. k0 + n of a row of k; k0 and
                                     (but at the end of the row) n are multiples of 32; the end of the row also pads */
    size_t (*panel_bytes)(uint32_t n_rows, size_t k);
    moei_panel_fn *panel;       /* NULL = no panels: ops[].dot takes any number of tokens */
    moei_ops ops[MOE_FORMAT_COUNT];
    const moei_packing *packing; /* NULL = tokens are always used as they were prepared */
    const struct moei_tiles *tiles; /* of a panel: its rows may be decoded a tile at a time; NULL = all of them first */
    uint32_t ask, whole;        /* see moei_rows */
    uint32_t up_blocks;         /* of MOEI_UP_ROWS of gate and up that many tokens meet at a time: as many rows share what they read of the tokens */
} moei_arith;
#ifndef MOEI_TABLE /* how those are linked: the tests take them from an object that exists already */
#define MOEI_TABLE MOEI_UNUSED static
#endif

typedef struct moei_vec {       /* elementwise, of one tier; each equal to its scalar definition, any n, any alignment */
    void (*exp)(float *y, const float *x, size_t n);                              /* y = moei_exp(x) */
    void (*sigmoid)(float *y, const float *x, float a, size_t n);                 /* y = moei_sigmoid(a * x) */
    void (*axpy)(float *y, const float *v, float w, size_t n);                    /* y = fma(w, v, y) */
    void (*affine)(float *v, const float *s, const float *b, size_t n);           /* v = fma(v, s, b) */
    void (*times)(float *y, const float *v, size_t n);                            /* y = moei_times(y, v) */
    void (*clamp)(float *v, float low, float high, float plus, size_t n);         /* v = moei_clamp(v, low, high, plus) */
    void (*order)(uint32_t *key, const float *v, size_t n);                       /* key = moei_key(v) */
    uint32_t (*reach)(uint64_t *best, const uint32_t *key, uint32_t n, uint32_t k); /* the k largest and few others: moei_reach_c */
    void (*read16)(float *y, const void *x, int bf16, size_t n);                  /* y = moei_bf16(x) or moei_f16(x) */
    void (*write16)(void *y, int bf16, const float *x, size_t n);                 /* y = moei_to_bf16(x) or moei_to_f16(x) */
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
        uint32_t s = 2 * j + h, low = s < 8 ? sc[s] & 15u : (uint32_t)sc[s - 8] >> 4, high = (uint32_t)sc[8 + s % 4] >> 2 * (s / 4) & 3u;
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
    uint32_t low = (uint32_t)p[4 + (j >> 1)] >> 4 * (j & 1) & 15u, high = (uint32_t)moei_load16(p + 2) >> 2 * j & 3u;
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

/* An expert's vector, or NULL. */
static const uint8_t *moei_array_of(const moe_array *a, const void *const *call, uint32_t expert, size_t n_per_expert, size_t *stride) {
    *stride = a->stride ? a->stride : a->type < MOE_TYPE_COUNT ? moei_type_bytes[a->type] : 0;
    size_t expert_stride = a->expert_stride ? a->expert_stride : n_per_expert * *stride;
    return a->type == MOE_TYPE_NONE ? NULL : moei_base(a->data, a->expert, call, expert, expert_stride, a->offset);
}
static float moei_array_load(const moe_array *a, const void *const *call, uint32_t expert, size_t n_per_expert,
                             size_t i, float absent) {
    size_t stride;
    const uint8_t *p = moei_array_of(a, call, expert, n_per_expert, &stride);
    return p ? moei_scalar(a->type, p + i * stride) : absent;
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
static moei_factor moei_row_factor(const moe_matrix *m, const moei_side *s, float scale2, size_t k, size_t row) {
    moei_factor f = {1.0f, 1.0f};
    if (s->data && moei_row_constant(m->format, s, k)) f.multiply = moei_scale_at(s, row, 0);
    if (m->scale2_divides) f.divide = scale2;
    else f.multiply *= scale2;
    return f;
}
static float moei_scale2_of(const moe_matrix *m, const moe_experts *over, int which, uint32_t expert) {
    return moei_array_load(&m->scale2, over ? over->scale2[which] : NULL, expert, 1, 0, 1.0f);
}
MOEI_UNUSED static moei_factor moei_row_scale(const moe_matrix *m, const moe_experts *over, int which,
                                              uint32_t expert, size_t n_rows, size_t k, size_t row) {
    moei_side s = moei_scale_of(m, over, which, expert, n_rows, k);
    return moei_row_factor(m, &s, moei_scale2_of(m, over, which, expert), k, row);
}

/* ---- Checks */

static moe_status moei_weights_error(moe_error *error, moe_status status, const char *field, uint64_t got,
                                     uint64_t want) {
    if (error) error->status = status, error->part = "", error->field = field, error->got = got, error->want = want;
    return status;
}

/* NULL, or the name of the field of a grid that is wrong. Integer formats need whole blocks of 32 under one scale. */
static const char *moei_scale_wrong(const moe_matrix *m, size_t k, moe_status *status) {
    const moei_layout *l = &moei_layouts[m->format];
    const moei_codec *c = &moei_codecs[m->format];
    const uint32_t type = m->scale.type, cols = m->scale.cols ? m->scale.cols : l->cols ? l->cols : UINT32_MAX;
    const int given = m->scale.data || m->scale.expert;
    if (type == MOE_TYPE_NONE && !given) return NULL;
    *status = MOE_ERR_TYPE;
    if (type == MOE_TYPE_NONE || type >= MOE_TYPE_COUNT || type == MOE_TYPE_U8 || type == MOE_TYPE_U4X8) return "scale.type";
    *status = MOE_ERR_NULL;
    if (!given) return "scale.data";
    *status = MOE_ERR_SIZE;
    if ((c->flags & MOEI_OWN) && cols != l->cols) return "scale.cols";
    if (c->unpack && !(c->flags & MOEI_OWN) && cols < k && (!(c->flags & MOEI_APART) || cols % 32))
        return "scale.cols";
    return NULL;
}
static const char *moei_zero_wrong(const moe_matrix *m, size_t k, moe_status *status) {
    const uint32_t type = m->zero.type, cols = m->zero.cols ? m->zero.cols : UINT32_MAX;
    const int given = m->zero.data || m->zero.expert;
    if (type == MOE_TYPE_NONE && !given) return NULL;
    *status = MOE_ERR_TYPE;
    if ((type != MOE_TYPE_U8 && type != MOE_TYPE_U4X8) || !(moei_codecs[m->format].flags & MOEI_ZEROS))
        return "zero.type";
    *status = MOE_ERR_NULL;
    if (!given) return "zero.data";
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
    if (field) { /* got: the grid's member of that name */
        const moe_grid *g = *field == 's' ? &m->scale : &m->zero;
        uint64_t got = status == MOE_ERR_TYPE ? g->type : status == MOE_ERR_SIZE ? g->cols : 0;
        uint32_t want = status != MOE_ERR_SIZE ? 0 : moei_codecs[m->format].flags & MOEI_OWN ? l->cols : 32;
        return moei_weights_error(error, status, field, got, want);
    }
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
    moei_weights_error(error, MOE_OK, "", 0, 0);
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
   in the natural order. */

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
static void moei_panel_f32_c(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x,
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
MOEI_TABLE const moei_arith moei_f32_c = {
    MOE_COMPUTE_F32, MOE_TIER_C, moei_f32_row_bytes, moei_prepare_f32, moei_panel_bytes_f32_c, moei_panel_f32_c,
    {{NULL, NULL, 0},
#define MOE_X(id, name, n, bytes, rows, cols) {moei_dot_f32_c, NULL, MOEI_C_TOKENS},
     MOE_FORMATS(MOE_X)
#undef MOE_X
    }, NULL, NULL, MOEI_ASK_L2, 0, 1};
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
MOEI_TABLE const moei_arith moei_q8_c = {
    MOE_COMPUTE_Q8, MOE_TIER_C, moei_q8_row_bytes, moei_prepare_q8, NULL, NULL,
    {MOEI_Q8_DENSE, MOEI_Q8_DENSE, MOEI_Q8_DENSE, MOEI_Q8_DENSE, /* none f32 f16 bf16 */
     MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C,      /* q8_0 q4_0 q4_1 q5_0 q5_1 */
     MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C,      /* q2_K q3_K q4_K q5_K q6_K */
     MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C, MOEI_Q8_C,                 /* iq4_nl iq4_xs mxfp4 nvfp4 */
     MOEI_Q8_C, MOEI_Q8_C,                                       /* mxfp4_hf nvfp4_hf */
     MOEI_Q8_DENSE, MOEI_Q8_DENSE, MOEI_Q8_DENSE,                /* mxfp8 fp8_block fp8_channel */
     MOEI_Q8_C, MOEI_Q8_C}, NULL, NULL, MOEI_ASK_L2, 0, 1};      /* int8_channel int4_group */
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
static void moei_times_c(float *y, const float *v, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = moei_times(y[i], v[i]);
}
static void moei_clamp_c(float *v, float low, float high, float plus, size_t n) {
    for (size_t i = 0; i < n; i++) v[i] = moei_clamp(v[i], low, high, plus);
}
/* Order of floats as unsigned order of integers: -0 equals +0, NaN equals -Inf. */
MOEI_FORCE uint32_t moei_key(float f) {
    uint32_t u = moei_bits(f), key = u >> 31 ? 0u - u : u | 0x80000000u;
    return key > 0xff800000u || key < 0x00800000u ? 0x00800000u : key;
}
static void moei_order_c(uint32_t *key, const float *v, size_t n) {
    for (size_t i = 0; i < n; i++) key[i] = moei_key(v[i]);
}
/* Without branches that random keys mislead, for k <= MOEI_LANES <= n: the k-th largest of what lies in every MOEI_LANES-th place
   is a bound that at least k keys reach, and few do (about 11 of 512 for k = 8). */
#define MOEI_LANES 16
static uint32_t moei_reach_bound(const uint32_t *most, uint32_t k) {
    uint32_t bound = UINT32_MAX, i, j;
    for (i = 0; i < MOEI_LANES; i++) {
        uint32_t above = 0;
        for (j = 0; j < MOEI_LANES; j++) above += most[j] > most[i];
        bound = above < k && most[i] < bound ? most[i] : bound;
    }
    return bound;
}
/* best[0 .. result) = key << 32 | ~index of those that reach the bound, in ascending order of index. Every key is stored, and stays
   if it does: best has room for n. */
static uint32_t moei_reach_c(uint64_t *best, const uint32_t *key, uint32_t n, uint32_t k) {
    uint32_t most[MOEI_LANES], count = 0, bound, i, j;
    memcpy(most, key, sizeof most);
    for (i = MOEI_LANES; i < n; i += MOEI_LANES)
        for (j = 0; j < MOEI_LANES && i + j < n; j++) most[j] = key[i + j] > most[j] ? key[i + j] : most[j];
    bound = moei_reach_bound(most, k);
    for (i = 0; i < n; i++) {
        best[count] = (uint64_t)key[i] << 32 | (uint32_t)~i;
        count += key[i] >= bound;
    }
    return count;
}
/* Callers' rows are in the machine's byte order, unlike weights. */
static void moei_read16_c(float *y, const void *x, int bf16, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, (const uint8_t *)x + 2 * i, 2);
        y[i] = bf16 ? moei_bf16(h) : moei_f16(h);
    }
}
static void moei_write16_c(void *y, int bf16, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t h = bf16 ? moei_to_bf16(x[i]) : moei_to_f16(x[i]);
        memcpy((uint8_t *)y + 2 * i, &h, 2);
    }
}
MOEI_UNUSED static const moei_vec moei_vec_c = {moei_exp_c,   moei_sigmoid_c, moei_axpy_c,  moei_affine_c, moei_times_c,
                                                moei_clamp_c, moei_order_c,   moei_reach_c, moei_read16_c, moei_write16_c};

/* ==== >>dense: loops around the register tiles of f32 and bf16 arithmetic ==============================================
   A tile is 4 or 8 rows times a group of 3 tokens, or 4 rows times two groups, its sums in registers. Rows are read where they lie, tokens line
   by line from their group: one stream, which never meets itself in a cache set (rows of tokens whose strides are near a power of
   two would, and take a register each: 6 to 10 points of the peak). The last tile of rows overlaps the one before: the same results
   once more. Where there are fewer rows than a tile has, it repeats its last one and stores less. */

/* Between two steps of an unrolled loop: keeps the compiler from loading everything first, which needs more registers than
   there are (clang then spills sums: half the speed). */
#if defined(__GNUC__) || defined(__clang__)
#define MOEI_FENCE __asm__ volatile("" ::: "memory")
#else
#define MOEI_FENCE ((void)0)
#endif

typedef struct moei_tile {
    const uint8_t *w[4];              /* rows; where there are 8, row_stride apart, only the first */
    const uint8_t *x, *x2;            /* a group of tokens, and where tiles have two the second */
    size_t k0, k1, k;                 /* this part of k, and all of it */
    size_t panel_k0, panel_k1;        /* what rows have where w points: all of k or, of tiles of f32, a part that was decoded */
    uint32_t half;                    /* where tiles have them */
    float *sums;                      /* what the registers hold between the parts */
    float *out;                       /* of the first row and token */
    size_t out_stride, row_stride;
    uint32_t n_rows;                  /* stored: 1 .. R */
    uint32_t second;                  /* where there are 8, the first row of the second four: two pointers and a stride leave registers */
    const uint8_t *ahead, *ahead_end; /* to prefetch on the way, ahead_step bytes a step */
    size_t ahead_step;
} moei_tile;
typedef void moei_tile_fn(const moei_tile *t);
typedef struct moei_tiles {
    uint32_t rows, tokens, k, step;   /* R, C: the largest tile; the largest part of k, a multiple of 64; k a step of prefetches */
    uint32_t bytes, halves;           /* of a token's value; of rows and tokens, one after the other */
    moei_tile_fn *fn[6];              /* [tokens - 1] */
    /* A panel's layout: values k0 .. k0 + n of row r, as in prepare, or NULL: rows as they are prepared, one after the other. With it, tiles
       lie one after the other, whole ones: rows that are missing there have any numbers; w[0] is a tile, and decode is called for one. */
    void (*put)(void *panel, uint32_t r, const float *x, size_t k0, size_t n, size_t k);
} moei_tiles;

/* Rows of a tile stay in L1 while as many groups pass over them as stay in L2. What is read from L2 sets the shape: it gives a line every
   2 cycles (Zen 5), in which AVX-512 does 4 FMAs. 8 rows x 3 tokens read 3 lines of tokens for 24; 4 x 6, which lets as much of rows and
   tokens into registers, reads 6 and stands still (Zen 5, layer, 512 tokens: F32 73 and 82, BF16 60 and 71 % of the peak).
   Where the rows of a tile are longer than L1 they come in parts of k, and the sums wait in memory between the parts: 50 lines more to
   move, so the parts are as long as L1 allows (Zen 5, BF16, k = 2048 in one part 88, in two 74 %; bf16 rows for F32 are halves of its lines
   and may well be longer).
   Where an FMA of 512 bits takes a cycle, L2 gives lines in time: rows stay whole, and of tiles of 4 x 6 as many rows stay in an L1 of 32 KB,
   where 8 x 3 read 11 lines from L2 in 24 cycles and leave no time for those that memory brings (moei_rows.whole; Zen 4, 24, 32 and 128 tokens,
   cold, % of the peak, 8 x 3 and 4 x 6: BF16, k = 2048 80 87, 84 87, 89 89; k = 4096 82 90, 81 86, 84 90; k = 14336 63 72, 71 84, 76 86; F32 with
   f32 rows, k = 2048 81 88, 85 87, 90 95; k = 4096 81 89, 79 86, 85 92; bf16 rows and k = 768 level. In parts and whole, 8 x 3, 32 tokens: F32, k =
   2048 77 85, 4096 75 81). Every sum is one chain either way. */
#define MOEI_TILE_SUMS (8 * 3 * 16)
#define MOEI_TILE_GROUP 3u /* tokens that are packed together */
#define MOEI_GROUPS ((size_t)32)
#define MOEI_GROUPS_BYTES ((size_t)384 << 10)
/* Q8: what is read later, rows and tokens, its prefetches spread over all work: in a hurry they would take what loads need. By tokens, as
   its last group may be short for many blocks of k (whole lines for every tile, as below, cost 1 % at 512 tokens). */
typedef struct moei_ahead {
    const uint8_t *data[2];
    uint64_t rate[2], done[2]; /* 2^-32 cache lines per token of a tile, and so far */
} moei_ahead;
MOEI_FORCE moei_ahead moei_ahead_next(const moei_rows *w, size_t work) { /* what w names, over so many tokens of tiles */
    const uint8_t *const named[2] = {w->prefetch, w->next_x};
    const size_t bytes[2] = {w->prefetch_bytes, w->next_x_bytes};
    moei_ahead a = {{w->data, w->data}, {0, 0}, {0, 0}};
    for (int i = 0; i < 2; i++)
        if (named[i]) a.data[i] = named[i], a.rate[i] = (((uint64_t)(bytes[i] / 64) << 32) + work - 1) / work; /* up: not a line less */
    return a;
}
MOEI_FORCE const uint8_t *moei_ahead_move(moei_ahead *a, int which, uint32_t n_tokens, const uint8_t **end) {
    const uint8_t *begin = a->data[which] + (size_t)(a->done[which] >> 32) * 64;
    a->done[which] += n_tokens * a->rate[which], *end = a->data[which] + (size_t)(a->done[which] >> 32) * 64;
    return begin;
}
/* A tile's share, and its bytes a step; its few lines of tokens are named at once (in down, where every 512 rows visit all experts, an
   expert's h would be read from L3 by the first rows' tiles, at four times their time: Zen 5, layer, 512 tokens, Q8_0 1.03 times faster). */
MOEI_FORCE size_t moei_ahead_take(moei_ahead *a, uint32_t n_tokens, size_t steps, const uint8_t **begin, const uint8_t **end) {
    for (const uint8_t *x = moei_ahead_move(a, 1, n_tokens, end); x < *end; x += 64) MOEI_PREFETCH_L2(x);
    *begin = moei_ahead_move(a, 0, n_tokens, end);
    return ((uint32_t)((size_t)(*end - *begin) / 64 + steps - 1)) / (uint32_t)steps * (size_t)64;
}
#define MOEI_AHEAD(step) /* of `ahead`, up to `ahead_end`; a step may be a part of a line */                             \
    if (ahead < ahead_end)                                                                                             \
        for (const uint8_t *line_ = MOEI_LINE(ahead), *stop_ = ahead += (step); line_ < stop_; line_ += 64) MOEI_PREFETCH_L2(line_)
#define MOEI_LINE(p) ((p) + ((0 - (uintptr_t)(p)) & 63)) /* that begins there or next */
/* Bytes from row r to what is prefetched while a pointer moves through it: what follows some KB later, in these rows or from
   w->prefetch on. */
MOEI_FORCE size_t moei_rows_ahead(const moei_rows *w, size_t bytes) { return bytes / (w->row_stride + 1) + 1; }
MOEI_FORCE size_t moei_ahead_at(const moei_rows *w, uint32_t n_rows, uint32_t r, size_t rows) {
    if (r + rows < n_rows || !w->prefetch) return rows * w->row_stride;
    return (size_t)(w->prefetch - moei_row(w, r)) + (r + rows - n_rows) * w->row_stride;
}
MOEI_FORCE size_t moei_ahead_of(const moei_rows *w, uint32_t n_rows, uint32_t r, size_t bytes) {
    return moei_ahead_at(w, n_rows, r, moei_rows_ahead(w, bytes));
}
#define MOEI_AHEAD_ROWS ((size_t)32 << 10) /* of a tile, and no less than a tile */
/* The cache lines that begin in a later row's scales: each of them once. The hardware would find out about so short a stream again for
   every few rows (Zen 5, one token of qwen3-30b as MXFP4_HF, two cores: without this 89 % of the read bandwidth). */
MOEI_FORCE void moei_side_ahead(const moei_side *s, size_t row, size_t bytes) {
    const uint8_t *p = s->data + (s->rows == 1 ? row : row / s->rows) * s->row_stride;
    for (size_t i = (64 - ((uintptr_t)p & 63)) & 63; i < bytes; i += 64) MOEI_PREFETCH(p + i);
}
/* Of a single row. (Zen 3, AVX2: a loop that only loads reads 13 GB/s, with these prefetches 11 whatever their distance and level; as soon as
   it computes 16 cycles per 128 bytes 8.8 without, 10.7 with them, up to 26 cycles; two rows in turns 3.3 and 6.4. Rows of bf16, Q8_0, Q4_0, Q4_K,
   MXFP4: 4, 8 and 16 KB ahead, to L2, L1 or both are level, none 1.1 to 1.28 times slower.) */
#define MOEI_AHEAD_BYTES 8192
#define MOEI_TO_L1 2048
/* The lines of some bytes at p are read, those at `later` will be. Branches, not functions of their own for every hint: they are
   foreseen, and so many functions take long to compile. */
MOEI_FORCE void moei_ask(uint32_t ask, const uint8_t *p, const uint8_t *later, const size_t bytes) {
    if (ask == MOEI_ASK_L2 || ask == MOEI_ASK_BOTH) {
        MOEI_UNROLL for (size_t i = 0; i < bytes; i += 64) MOEI_PREFETCH_L2(later + i);
        if (ask == MOEI_ASK_L2) return;
        MOEI_UNROLL for (size_t i = 0; i < bytes; i += 64) MOEI_PREFETCH(p + MOEI_TO_L1 + i);
    } else if (ask == MOEI_ASK_PAST_L3) {
        MOEI_UNROLL for (size_t i = 0; i < bytes; i += 64) MOEI_PREFETCH_NTA(later + i);
    } else if (ask == MOEI_ASK_L1) {
        MOEI_UNROLL for (size_t i = 0; i < bytes; i += 64) MOEI_PREFETCH(later + i);
    }
}
/* A block of tokens times one tile of rows; each group prefetches its share of rows and of tokens. Where k is
   small, each instruction between two tiles counts. The groups go to and fro, so that those a tile begins with are in L1: its rows are
   not, and a step's lines of both would take longer than its FMAs (Zen 5 brings a line from L2 every 2 cycles). That pass (`quiet` of them)
   keeps all buffers for misses busy: what is prefetched meanwhile is dropped, and every such line waits for memory later. So is what comes
   faster than about a line a step, so the other passes share it evenly (Zen 5, BF16, k = 2048, 18, 24, 32, 48 tokens, cold: 62 75 79 86 % of
   the peak when all passes prefetch, 74 84 86 90 when all but the first do; 24 tokens, lines in pairs: 72. Warm: 89 90 90 92). Where sums
   wait in memory a pass begins with them, as busily: so with the lines before its own once more (k = 4096, 48 and 128 tokens: 75 79, with this
   82 81). Not faster: demand loads or every second line for the prefetchers to go on from (half), more distance, to L1, the next rows' lines
   to L1 during the last pass (76 at 24 tokens), a quiet last pass (BF16, 256 tokens of the layer: 1.05 times slower), small last groups
   never first (AVX2 1.02 to 1.03 times slower). Of 4 rows x 6 tokens, two halves bring as many lines as 8 x 3 twice (BF16, k = 2048, in L2:
   1662 and 1683 cycles for 1536), be they prefetched to L1 or not: several rows side by side get a line every 2.0 cycles, one by itself
   every 1.35. */
#define MOEI_BUSY 4u /* groups that leave no time to be quiet */
/* Rows of which a part of k is decoded at a time, each in the place of the one before, which is in L1. */
typedef struct moei_piece {
    moei_decode_fn *decode; /* or NULL */
    moei_rows rows;         /* row0: the tile's */
    uint8_t *panel;
} moei_piece;
static int moei_has_pieces(uint32_t format) { return format == MOE_FORMAT_F32 || format == MOE_FORMAT_F16 || format == MOE_FORMAT_BF16; }
static void moei_decode_piece(const moei_piece *p, moei_tile *t) {
    moei_rows w = p->rows;
    w.data += t->k0 * (w.format == MOE_FORMAT_F32 ? 4 : 2), w.k = t->k1 - t->k0;
    p->decode(&w, t->n_rows, p->panel);
    t->row_stride = moei_f32_row_bytes(w.k);
    t->w[0] = p->panel, t->panel_k0 = t->k0, t->panel_k1 = t->k1;
}
/* How tokens at .. end - 1 are taken: if tiles have two groups and the number of groups is odd, the first one comes alone. (The last one, which
   may be short, would: few sums, whose latencies show.) */
typedef struct moei_turns {
    uint32_t at, end, tokens, alone, last; /* last: of the tiles */
} moei_turns;
MOEI_FORCE moei_turns moei_turns_of(const moei_tiles *tiles, uint32_t at, uint32_t end) {
    const uint32_t odd = tiles->tokens > MOEI_TILE_GROUP && ((end - at - 1) / MOEI_TILE_GROUP + 1) % 2, alone = odd * MOEI_TILE_GROUP;
    const moei_turns turns = {at, end, tiles->tokens, alone, (end - at - 1) / tiles->tokens};
    return turns;
}
/* Tile g's first token; to *n how many. */
MOEI_FORCE uint32_t moei_turn(const moei_turns *turns, uint32_t g, moei_tile *t, const void *const *x, uint32_t *n) {
    const uint32_t i = turns->at + (g ? g * turns->tokens - turns->alone : 0), to = turns->at + (g + 1) * turns->tokens - turns->alone;
    *n = (to < turns->end ? to : turns->end) - i;
    t->x = (const uint8_t *)x[i], t->x2 = *n > MOEI_TILE_GROUP ? (const uint8_t *)x[i + MOEI_TILE_GROUP] : NULL;
    return i;
}
/* Tokens at .. end - 1, which pass over one tile of rows after the other. */
typedef struct moei_batch {
    const moei_tiles *tiles;
    const void *const *x;
    moei_turns turns;
    uint32_t quiet;              /* so many of them prefetch no rows */
    size_t part, share, x_share; /* of k; bytes that a group prefetches of rows, of tokens */
    const uint8_t *next_x;       /* those tokens */
    moei_piece piece;
} moei_batch;
/* (Not inlined: 48 KB of stack, which callers without tiles need not have.) */
MOEI_UNUSED MOEI_NOINLINE static void moei_sweep_groups(moei_batch *b, moei_tile *t, float *out, int back) {
    const moei_tiles *tiles = b->tiles;
    const moei_turns turns = b->turns;
    float room[MOEI_GROUPS * MOEI_TILE_SUMS + 15], *const sums = (float *)(((uintptr_t)room + 63) & ~(uintptr_t)63); /* whole lines */
    for (t->k0 = 0, t->half = 0; t->half < tiles->halves; t->half += t->k1 == t->k, t->k0 = t->k1 < t->k ? t->k1 : 0, back = !back) {
        t->k1 = t->k - t->k0 > b->part ? t->k0 + b->part : t->k;
        if (b->piece.decode) moei_decode_piece(&b->piece, t);
        const size_t share = b->share, steps = (t->k1 - t->k0) / tiles->step, all = steps * 64;
        t->ahead_step = share <= all ? 64 : share / (steps + !steps) + 1; /* not a line less than all */
        const size_t again = b->part < t->k && share && share < all ? all - share : 0;
        for (uint32_t j = 0; j <= turns.last; j++) {
            uint32_t g = back ? turns.last - j : j, n, i = moei_turn(&turns, g, t, b->x, &n);
            for (const uint8_t *stop = b->next_x + b->x_share; b->next_x < stop; b->next_x += 64) MOEI_PREFETCH_L2(b->next_x);
            t->sums = sums + (size_t)g * MOEI_TILE_SUMS, t->out = out + i * t->out_stride;
            t->ahead = t->ahead_end;
            if (j >= b->quiet) t->ahead -= again, t->ahead_end += share;
            tiles->fn[n - 1](t);
        }
    }
}
MOEI_FORCE size_t moei_lines(size_t bytes, size_t parts) { return (bytes / 64 + parts - 1) / parts * 64; } /* a part of them, in bytes */
/* Rows through a panel, a tile at a time: decoded while they are in a cache, just before the first tokens pass, with the next ones on their
   way from memory. Without more tokens than a block the tiles take turns in one place, which never leaves L2. (A whole panel first: 131072
   f32 take as long as 20 tokens, EPYC Zen 3, and memory rests while tokens pass.) */
MOEI_UNUSED static void moei_sweep_panel(const moei_tiles *tiles, const moei_rows *w, moei_decode_fn *decode, uint8_t *panel, size_t stride,
                                         uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out, size_t out_stride) {
    moei_tile t;
    const size_t parts = n_tokens <= tiles->tokens || w->whole ? 1 : (w->k + tiles->k - 1) / tiles->k, part = (w->k / parts + 63) / 64 * 64;
    const size_t row_bytes = tiles->bytes * w->k, groups = MOEI_GROUPS_BYTES / (tiles->tokens * row_bytes + 1) + 1;
    const uint32_t block = (uint32_t)(groups < MOEI_GROUPS ? groups : MOEI_GROUPS) * tiles->tokens, tall = (n_rows - 1) / tiles->rows + 1;
    const size_t ahead = moei_rows_ahead(w, MOEI_AHEAD_ROWS), keep = !decode || n_tokens > block;
    const int by_part = decode && !tiles->put && !keep && moei_has_pieces(w->format);
    moei_batch b = {tiles, x, {0, 0, 0, 0, 0}, 0, part, 0, 0, NULL, {by_part ? decode : NULL, *w, panel}};
    int back = 0;
    t.k = t.panel_k1 = w->k, t.panel_k0 = 0, t.out_stride = out_stride, t.row_stride = stride;
    for (uint32_t at = 0, end; at < n_tokens; at = end) {
        end = n_tokens - at < block ? n_tokens : at + block, b.turns = moei_turns_of(tiles, at, end);
        b.next_x = !w->next_x ? w->data : end < n_tokens ? (const uint8_t *)x[end] : w->next_x;
        size_t next_bytes = end < n_tokens ? (n_tokens - end) * row_bytes : w->next_x_bytes, most = block * row_bytes;
        size_t passes = (b.turns.last + 1) * parts * tiles->halves;
        b.quiet = passes > MOEI_BUSY * parts * tiles->halves;
        b.x_share = w->next_x ? moei_lines(next_bytes < most ? next_bytes : most, passes * tall) : 0;
        /* all lines of a tile's rows, not one less: memory is far. The first block brings them to a cache. */
        b.share = at ? 0 : moei_lines(tiles->rows * w->row_stride, passes - b.quiet * parts * tiles->halves);
        for (uint32_t r = 0; r < n_rows; r += t.n_rows, back = !back) {
            t.n_rows = moei_min32(tiles->put ? n_rows - r : n_rows, tiles->rows), t.second = t.n_rows < 8 ? t.n_rows - 4 : 4;
            r = n_rows - r < t.n_rows ? n_rows - t.n_rows : r;
            b.piece.rows.row0 = w->row0 + r;
            if (decode && !by_part && !at) decode(&b.piece.rows, t.n_rows, panel + r * keep * stride);
            for (uint32_t i = 0; i < 4; i++) t.w[i] = panel + (r * keep + (i < t.n_rows ? i : t.n_rows - 1)) * stride;
            t.ahead_end = moei_row(w, r) + moei_ahead_at(w, n_rows, r, ahead < tiles->rows ? tiles->rows : ahead);
            moei_sweep_groups(&b, &t, out + r, back);
        }
    }
}
/* Rows so long that a block of tokens fills L2 soon: of a part of k, tiles (of 128 rows; 4 x 3: 64) meet up to 48 tokens, and sums wait in the
   workspace, before the next part comes. So tokens and rows come from L3 as often as if L2 held 48 tokens, not the 9 of k = 14336 in F32 (Zen 5,
   512 rows, 48 and 144 tokens, cold, % of the peak. F32: k = 14336 60 82, 64 80, k = 7168 75 85, 78 83, k = 4160 79 83. BF16: k = 14336 49 71, 55
   72, k = 7168 69 76, 71 76, k = 4160 80 74. AVX2: k = 14336 57 77, 59 71, k = 7168 72 78. 32 rows, as of gate and up, are 1 to 3 % slower). Parts of
   512 lose 3 %, BF16 gains 1 of 1536; 64 rows lose 2 %, 24 tokens 4 to 9; prefetched sums gain nothing. Rows that are decoded are so a tile's part
   at a time, to one place in L1 (Zen 4, AVX2, k = 14336, 512 rows, 32 and 128 tokens, panels of 32 rows and this: f32 49 63, 55 63, f16 60 68).
   Of tiles of 4 x 6 the parts are as long as L1, 32 KB (Zen 4, 32 and 128 tokens, half of that and this: BF16 82 85, 84 87, F32 with bf16 rows 89 91,
   87 87, f32 rows 77 83, 77 80). No gain there: 96 tokens, rows of f32 copied next to each other first. */
enum { MOEI_LONG = 4608, MOEI_LONG_PART = 1024, MOEI_LONG_TILES = 256, MOEI_LONG_TOKENS = 48 };
#define MOEI_LONG_SUMS ((size_t)MOEI_LONG_TILES * MOEI_TILE_SUMS)
typedef struct moei_long { /* a block of tokens and the rows of its tiles */
    const moei_tiles *tiles;
    const moei_rows *w;
    const void *const *x;
    float *out;
    size_t part;
    uint32_t n_rows, r0, r1, n_tokens, at, end;
    moei_piece piece;
} moei_long;
static uint32_t moei_long_groups(const moei_tiles *tiles) { return MOEI_LONG_TOKENS / tiles->tokens; }
/* What is multiplied after a tile: where its rows begin; to *k0 the first of k. */
static const uint8_t *moei_long_next(const moei_long *l, const moei_tile *t, uint32_t tile, size_t *k0) {
    const uint32_t r = l->r0 + (tile + 1) * l->tiles->rows;
    *k0 = r < l->r1 ? t->k0 : t->k1 < t->k ? t->k1 : 0;
    if (r < l->r1) return moei_row(l->w, moei_min32(r, l->n_rows - l->tiles->rows));
    if (t->k1 < t->k || l->end < l->n_tokens) return moei_row(l->w, l->r0);
    return l->r1 < l->n_rows ? moei_row(l->w, moei_min32(l->r1, l->n_rows - l->tiles->rows)) : l->w->prefetch;
}
/* A tile's part of k times the block. Each group but the first ones prefetches a piece of a next row, and each tile its share of the
   tokens' next part (on AVX2, where a group is its even values and then the odd ones, of what comes some parts later). */
static void moei_long_tile(moei_long *l, moei_tile *t, uint32_t tile, int back) {
    const moei_turns turns = moei_turns_of(l->tiles, l->at, l->end);
    const uint32_t last = turns.last, passes = (last + 1) * l->tiles->halves;
    const uint32_t quiet = last >= MOEI_BUSY, pieces = passes - quiet < l->tiles->rows ? 1 : (passes - quiet) / l->tiles->rows; /* of a row */
    const uint32_t r = moei_min32(l->r0 + tile * l->tiles->rows, l->n_rows - l->tiles->rows), n_tiles = (l->r1 - l->r0 - 1) / l->tiles->rows + 1;
    const size_t size = l->w->format == MOE_FORMAT_F32 ? 4 : 2, x_size = l->tiles->bytes * (size_t)MOEI_TILE_GROUP;
    const size_t steps = (t->k1 - t->k0) / l->tiles->step;
    size_t next_k, piece = moei_lines(l->part * size + 63, pieces), x_share = moei_lines(l->part * x_size, n_tiles * l->tiles->halves);
    const uint8_t *next = moei_long_next(l, t, tile, &next_k);
    for (uint32_t i = 0; i < 4; i++) t->w[i] = moei_row(l->w, r + i);
    l->piece.rows.row0 = l->w->row0 + r;
    if (l->piece.decode) moei_decode_piece(&l->piece, t);
    t->ahead_step = moei_lines(piece, steps + !steps); /* the last part may be less than a step */
    for (uint32_t j = 0; j < passes; j++) {
        const uint32_t nth = j % (last + 1), g = back ? last - nth : nth, p = j - quiet;
        uint32_t n, i = moei_turn(&turns, g, t, l->x, &n);
        t->half = j / (last + 1), t->out = l->out + i * t->out_stride + r;
        t->sums = l->w->sums + (tile * (size_t)moei_long_groups(l->tiles) + g) * MOEI_TILE_SUMS;
        t->ahead = t->ahead_end = next;
        if (next && j >= quiet && p < pieces * l->tiles->rows)
            t->ahead = next + p / pieces * l->w->row_stride + next_k * size + p % pieces * piece, t->ahead_end = t->ahead + piece;
        const size_t x_at = t->k1 * x_size + (tile * l->tiles->halves + t->half) * x_share;
        const size_t x_end = x_at + (t->k1 < t->k && g < last) * x_share;
        for (size_t at = x_at; at < x_end; at += 64) {
            MOEI_PREFETCH_L2(t->x + at);
            if (t->x2) MOEI_PREFETCH_L2(t->x2 + at);
        }
        l->tiles->fn[n - 1](t);
    }
}
static uint32_t moei_long_rows(const moei_tiles *tiles) { return MOEI_LONG_TILES / moei_long_groups(tiles) * tiles->rows; }
static size_t moei_long_part(const moei_tiles *tiles, const moei_rows *w) { return w->whole ? tiles->k : moei_min(MOEI_LONG_PART, tiles->k); }
/* pieces: the tile's part, as f32, has its place after the sums. */
static int moei_is_long(const moei_tiles *tiles, const moei_rows *w, const int pieces, uint32_t n_rows, uint32_t n_tokens) {
    const size_t room = MOEI_LONG_SUMS + (pieces ? tiles->rows * moei_long_part(tiles, w) : 0);
    return w->n_sums >= room && w->k > MOEI_LONG && n_rows >= moei_long_rows(tiles) && n_tokens > tiles->rows * tiles->tokens;
}
/* decode: or NULL, see moei_piece */
MOEI_UNUSED static void moei_sweep_long(const moei_tiles *tiles, const moei_rows *w, moei_decode_fn *decode, uint32_t n_rows,
                                        const void *const *x, uint32_t n_tokens, float *out, size_t out_stride) {
    const size_t longest = moei_long_part(tiles, w), parts = (w->k + longest - 1) / longest;
    const uint32_t blocks = (n_tokens - 1) / MOEI_LONG_TOKENS + 1, rows = moei_long_rows(tiles);
    const uint32_t tokens = ((n_tokens - 1) / (blocks * tiles->tokens) + 1) * tiles->tokens;
    moei_long l = {tiles, w, x, out, (w->k / parts + 63) / 64 * 64, n_rows, 0, 0, n_tokens, 0, 0,
                   {decode, *w, (uint8_t *)(w->sums + MOEI_LONG_SUMS)}};
    moei_tile t;
    int back = 0;
    t.k = t.panel_k1 = w->k, t.panel_k0 = 0, t.out_stride = out_stride, t.row_stride = w->row_stride, t.n_rows = tiles->rows, t.second = 4;
    for (l.r0 = 0; l.r0 < n_rows; l.r0 = l.r1) {
        l.r1 = moei_min32(l.r0 + rows, n_rows);
        for (l.at = 0; l.at < n_tokens; l.at = l.end) {
            l.end = moei_min32(l.at + tokens, n_tokens);
            for (t.k0 = 0; t.k0 < t.k; t.k0 = t.k1) {
                t.k1 = t.k - t.k0 > l.part ? t.k0 + l.part : t.k;
                for (uint32_t i = 0; l.r0 + i * tiles->rows < l.r1; i++, back = !back) moei_long_tile(&l, &t, i, back);
            }
        }
    }
}
MOEI_UNUSED static void moei_sweep(const moei_tiles *tiles, const moei_rows *w, uint32_t n_rows, const void *const *x,
                                   uint32_t n_tokens, float *out, size_t out_stride) {
    if (moei_is_long(tiles, w, 0, n_rows, n_tokens)) moei_sweep_long(tiles, w, NULL, n_rows, x, n_tokens, out, out_stride);
    else moei_sweep_panel(tiles, w, NULL, (uint8_t *)(uintptr_t)moei_row(w, 0), w->row_stride, n_rows, x, n_tokens, out, out_stride);
}
/* Panels by the reference: decode, then prepare. Transposed rows are read as they are stored, 16 at a time. */
#if MOEI_HAVE_AVX2
static size_t moei_turn_avx2(const moei_rows *w, uint32_t r0, uint32_t n_rows, size_t k0, size_t n, float *out, size_t stride);
#endif
MOEI_UNUSED static void moei_decode_default(const moei_arith *a, const moei_rows *w, uint32_t n_rows, void *panel) {
    float buf[1024];
    uint32_t group = w->k_stride ? 32 : 1; /* [in, out]: whole cache lines */
    size_t chunk = MOEI_COUNT(buf) / group, row_bytes = a->row_bytes(w->k);
    const int by_tile = a->tiles && a->tiles->put;
    const uint32_t whole = by_tile ? n_rows / a->tiles->rows * a->tiles->rows : n_rows;
    if (whole < n_rows) memset((uint8_t *)panel + whole * row_bytes, 0, a->tiles->rows * row_bytes);
    for (uint32_t r0 = 0; r0 < n_rows; r0 += group) {
        uint32_t rows = n_rows - r0 < group ? n_rows - r0 : group;
        for (size_t k0 = 0; k0 < w->k; k0 += chunk) {
            size_t n = w->k - k0 < chunk ? w->k - k0 : chunk;
            size_t done = 0;
#if MOEI_HAVE_AVX2
            if (w->k_stride && a->tier != MOE_TIER_C) done = moei_turn_avx2(w, r0, rows, k0, n, buf, chunk);
#endif
            if (done < n) moei_decode_tile(w, r0, rows, k0 + done, n - done, buf + done, chunk);
            for (uint32_t r = 0; r < rows; r++) {
                if (by_tile) a->tiles->put(panel, r0 + r, buf + r * chunk, k0, n, w->k);
                else a->prepare((uint8_t *)panel + (r0 + r) * row_bytes, buf + r * chunk, k0, n, w->k);
            }
        }
    }
}
/* Rows and tokens that meet in a panel. */
MOEI_UNUSED static void moei_through_panel(const moei_arith *a, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                                           float *out, size_t out_stride, uint8_t *panel) {
    moei_decode_fn *decode = w->k_stride ? NULL : a->ops[w->format].decode;
    if (decode && a->tiles && (a->tiles->put || n_rows >= 4)) { /* what single rows are for: moei_few */
        moei_sweep_panel(a->tiles, w, decode, panel, a->row_bytes(w->k), n_rows, x, n_tokens, out, out_stride);
        return;
    }
    if (decode) decode(w, n_rows, panel);
    else moei_decode_default(a, w, n_rows, panel);
    a->panel(panel, w, n_rows, x, n_tokens, out, out_stride);
}

/* n rows of `lines` lines of `size` bytes: line i of token c goes to i * n + c. */
MOEI_FORCE void moei_pack_lines(uint8_t *to, const void *const *x, uint32_t n, size_t from, size_t lines, const size_t size) {
    for (size_t i = 0; i < lines; i++)
        for (uint32_t c = 0; c < n; c++) memcpy(to + (i * n + c) * size, (const uint8_t *)x[c] + from + i * size, size);
}
MOEI_UNUSED static void moei_pack_f32(void *to, const void *const *x, uint32_t n, size_t k0, size_t len, size_t k) {
    (void)k;
    moei_pack_lines((uint8_t *)to + 4 * k0 * n, x, n, 0, moei_f32_row_bytes(len) / 64, 64);
}
MOEI_UNUSED static void moei_pack_bf16(void *to, const void *const *x, uint32_t n, size_t k0, size_t len, size_t k) {
    (void)k;
    moei_pack_lines((uint8_t *)to + 2 * k0 * n, x, n, 0, moei_bf16_row_bytes(len) / 64, 64);
}

/* h is written a block of rows at a time and was last seen a layer ago: the place of the next block is asked for meanwhile. */
MOEI_FORCE void moei_expect(const uint8_t *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) MOEI_PREFETCH_L2(p + i);
}
/* Prepared rows x of n tokens become what the arithmetic multiplies; `to` has room for n of them. */
MOEI_UNUSED static void moei_pack(const moei_arith *a, const void **x, uint32_t n, size_t k, uint8_t *to) {
    const moei_packing *p = a->packing;
    for (uint32_t i = 0, group; p && n >= p->min && i < n; i += group, to += group * a->row_bytes(k)) {
        group = n - i < p->group ? n - i : p->group;
        p->pack(to, x + i, group, 0, k, k);
        x[i] = to;
    }
}

MOEI_UNUSED static size_t moei_panel_bytes_f32(uint32_t n_rows, size_t k) { return n_rows * moei_f32_row_bytes(k); }
#define MOEI_NO_OPS {NULL, NULL, 0}

/* ==== >>avx2: F32 on AVX2 + FMA + F16C =================================================================================
   Prepared rows and panels hold their even values, padded to 8, then their odd ones: the two halves of bf16 weights come apart by
   a shift and a blend. The sums of the even k are 8 lanes and those of the odd k are 8 more; the tree 8, 4, 2, 1 over natural k
   is the tree 4, 2, 1 of either and then their sum. (Even and odd together in every cache line would be natural, but a pass
   over one parity then reads one half of every line: bank conflicts, 50 to 65 % of peak.) */

#if MOEI_HAVE_AVX2
/* Keeps a vector in its register: a load that is used several times may otherwise become a memory operand of each use. */
#if MOEI_ASM
#define MOEI_PIN(v) __asm__("" : "+v"(v))
#define MOEI_SPILL(v) __asm__("" : "+m"(v)) /* is in memory */
#else
#define MOEI_SPILL(v) ((void)(v))
#define MOEI_PIN(v) ((void)(v))
#endif
MOEI_FORCE size_t moei_half(size_t k) { return (k + 15) / 16 * 8; } /* where the odd values begin */
/* The last weights of a row to a padded buffer: AVX2 has no masked loads of 16 bits. */
MOEI_FORCE void moei_tail_avx2(uint8_t *to, const uint8_t *from, size_t bytes) {
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

/* Dwords of 8 rows of 32 bytes, `stride` apart, to 8 columns. */
MOEI_FORCE MOEI_AVX2 void moei_transpose_avx2(const uint8_t *p, size_t stride, __m256i v[8]) {
    __m256i a[8], b[8];
    MOEI_UNROLL for (size_t i = 0; i < 8; i++) { /* half i / 4 of rows i % 4 and i % 4 + 4 */
        const uint8_t *q = p + i % 4 * stride + i / 4 * 16;
        const __m128i low = _mm_loadu_si128((const __m128i *)(const void *)q);
        const __m128i high = _mm_loadu_si128((const __m128i *)(const void *)(q + 4 * stride));
        a[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    }
    MOEI_UNROLL for (int i = 0; i < 8; i += 2) b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    MOEI_UNROLL for (int i = 0; i < 8; i += 4)
        v[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]), v[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]),
        v[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]), v[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
}
/* 8 neighbours as f32 */
MOEI_FORCE MOEI_AVX2 __m256 moei_load8_f32_avx2(uint32_t format, const uint8_t *p) {
    if (format == MOE_FORMAT_F32) return _mm256_loadu_ps((const float *)(const void *)p);
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
    if (format == MOE_FORMAT_F16) return _mm256_cvtph_ps(v);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
/* moei_decode_tile for [in, out] weights whose rows are neighbours: squares of 8 are turned in registers. Returns how many
   inputs it did: whole eights if n_rows is whole eights, else none. */
static MOEI_AVX2 size_t moei_turn_avx2(const moei_rows *w, uint32_t r0, uint32_t n_rows, size_t k0, size_t n, float *out,
                                       size_t stride) {
    size_t item = w->format == MOE_FORMAT_F32 ? 4 : 2, i;
    const uint8_t *p = moei_row(w, r0) + k0 * w->k_stride;
    if (w->row_stride != item || n_rows % 8 || w->scale.data) return 0;
    for (i = 0; i + 8 <= n; i += 8)
        for (uint32_t r = 0; r < n_rows; r += 8) {
            __m256 rows[8];
            __m256i v[8];
            for (size_t j = 0; j < 8; j++) rows[j] = moei_load8_f32_avx2(w->format, p + (i + j) * w->k_stride + r * item);
            moei_transpose_avx2((const uint8_t *)rows, sizeof rows[0], v);
            for (size_t j = 0; j < 8; j++) _mm256_storeu_si256((__m256i *)(void *)(out + (r + j) * stride + i), v[j]);
        }
    return i;
}
/* Of four times 8 lanes: the steps 4 and 2 of their trees. Returns 2 lanes of each, a a c c b b d d. */
MOEI_FORCE MOEI_AVX2 __m256 moei_fold4_avx2(__m256 a, __m256 b, __m256 c, __m256 d) {
    __m256 ab = _mm256_add_ps(_mm256_blend_ps(a, b, 0xf0), _mm256_permute2f128_ps(a, b, 0x21));
    __m256 cd = _mm256_add_ps(_mm256_blend_ps(c, d, 0xf0), _mm256_permute2f128_ps(c, d, 0x21));
    return _mm256_add_ps(_mm256_blend_ps(ab, cd, 0xcc), _mm256_shuffle_ps(ab, cd, 0x4e));
}
/* Step 1 of both, their sum, + 0.0f: 4 results. */
MOEI_FORCE MOEI_AVX2 __m128 moei_fold_avx2(__m256 even, __m256 odd) {
    __m256 s = _mm256_hadd_ps(even, odd); /* even a c, odd a c, even b d, odd b d */
    s = _mm256_add_ps(_mm256_add_ps(s, _mm256_permute_ps(s, 0x4e)), _mm256_setzero_ps());
    return _mm_unpacklo_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}
/* The first n of s; masked stores are slow on AMD. */
MOEI_FORCE MOEI_AVX2 void moei_store_avx2(float *out, __m128 s, uint32_t n) {
    if (n == 4) _mm_storeu_ps(out, s);
    else if (n == 1) _mm_store_ss(out, s);
    else _mm_storel_pi((__m64 *)(void *)out, s);
    if (n == 3) _mm_store_ss(out + 2, _mm_movehl_ps(s, s));
}

/* SHAPES      1 row x a group of C tokens, row after row, even and odd k at once
   REGISTERS   2 C sums + 2 weights: 8 of 16 at C = 3 (tokens are memory operands) */
MOEI_FORCE MOEI_AVX2 void moei_step_avx2(const uint32_t format, const int C, const uint8_t *p, const float *even_x, const float *odd_x,
                                         __m256 *a, __m256 *b) {
    __m256 even, odd;
    moei_load_avx2(format, p, &even, &odd);
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        a[c] = _mm256_fmadd_ps(even, _mm256_loadu_ps(even_x + 8 * c), a[c]);
        b[c] = _mm256_fmadd_ps(odd, _mm256_loadu_ps(odd_x + 8 * c), b[c]);
    }
}
/* Prefetched to L2, which leaves the tokens in L1 (3 tokens, f16: 20 against 12 GB/s), but for one token of f32: those are too
   many bytes for its only chain to wait for L2 (22 against 28 GB/s). On Intel to both (Xeon, model 207, one token, % of the read bandwidth: bf16
   86 and 93, f16 80 and 90, f32 84 and 97). */
MOEI_FORCE MOEI_AVX2 void moei_rows_avx2(const uint32_t format, const int C, const moei_rows *w, uint32_t n_rows, const float *x,
                                         float *out, size_t out_stride) {
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2, k_end = w->k & ~(size_t)15, half = moei_half(w->k) * (size_t)C;
    const int one_f32 = format == MOE_FORMAT_F32 && C == 1;
    const size_t distance = one_f32 ? MOEI_AHEAD_BYTES : 2 * MOEI_AHEAD_BYTES;
    uint32_t ask = w->ask;
    if (one_f32 && ask == MOEI_ASK_L2) ask = MOEI_ASK_L1;
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *p = moei_row(w, r), *ahead = p + moei_ahead_of(w, n_rows, r, distance);
        __m256 a[3], b[3];
        MOEI_UNROLL for (int c = 0; c < C; c++) a[c] = b[c] = _mm256_setzero_ps();
        for (size_t k = 0; k < k_end; k += 16) {
            const float *at = x + k / 2 * (size_t)C;
            if (format == MOE_FORMAT_F32 || !(k & 16)) moei_ask(ask, p + k * size, ahead + k * size, 64);
            moei_step_avx2(format, C, p + k * size, at, at + half, a, b);
        }
        if (k_end < w->k) {
            const float *at = x + k_end / 2 * (size_t)C;
            uint8_t tail[64];
            moei_tail_avx2(tail, p + k_end * size, (w->k - k_end) * size);
            moei_step_avx2(format, C, tail, at, at + half, a, b);
        }
        MOEI_UNROLL for (int c = 0; c < C; c++) {
            __m256 even = moei_fold4_avx2(a[c], a[c], a[c], a[c]), odd = moei_fold4_avx2(b[c], b[c], b[c], b[c]);
            _mm_store_ss(out + (size_t)c * out_stride + r, moei_fold_avx2(even, odd));
        }
    }
}

/* SHAPES      4 rows x a group of C tokens, the even k, then the odd ones; 1 token: both at once
   REGISTERS   4 C sums + C tokens + 1 weight: all 16 at C = 3; 12 FMAs (6 cycles) per 7 loads
   Four steps a turn: beside a busy neighbour on the core (SMT) a turn's own instructions count, as do loads: memory operands in place of
   the weight's register lose more by loads than they gain by instructions (Zen 3, 2 rows of 4: 80 and 73 % of the peak). */
#define MOEI_TURN_AVX2 ((size_t)4)
/* A row's 8 weights times 3 tokens. One asm: with intrinsics, even pinned, gcc and clang give the weight a second register sooner or later,
   and spill a sum (64 for 90 % of the peak). MOE_FORMAT_F32, or the even or odd ones of 16 bf16: there is no register for a mask, so odd
   ones are blended into those before, *v, whose lower halves are 0. */
#if MOEI_ASM
#define MOEI_FMA3_AVX2                                                                                                 \
    "vfmadd231ps {%5, %3, %0|%0, %3, %5}\n\tvfmadd231ps {%6, %3, %1|%1, %3, %6}\n\tvfmadd231ps {%7, %3, %2|%2, %3, %7}"
#define MOEI_ROW3_AVX2(load, v_is, v)                                                                                  \
    __asm__(load "\n\t" MOEI_FMA3_AVX2                                                                                 \
            : "+x"(a[0][r]), "+x"(a[1][r]), "+x"(a[2][r]), v_is(v)                                                     \
            : "m"(*(const __m256 *)(const void *)w), "x"(x[0]), "x"(x[1]), "x"(x[2]))
MOEI_FORCE MOEI_AVX2 void moei_row3_avx2(const uint32_t format, const int odd, const uint8_t *w, const __m256 *x, __m256i *v, __m256 (*a)[4],
                                          const int r) {
    __m256i one;
    if (format == MOE_FORMAT_F32) MOEI_ROW3_AVX2("vmovups {%4, %3|%3, %4}", "=&x", one);
    else if (odd) MOEI_ROW3_AVX2("vpblendw {$0xaa, %4, %3, %3|%3, %3, %4, 0xaa}", "+x", *v);
    else MOEI_ROW3_AVX2("vmovdqu {%4, %3|%3, %4}\n\tvpslld {$16, %3, %3|%3, %3, 16}", "=&x", one);
}
#endif
/* 8 of k; the weights of 16 bf16 */
MOEI_FORCE MOEI_AVX2 void moei_half_step_avx2(const uint32_t format, const int C, const int odd, const uint8_t *const *w, size_t at,
                                              const uint8_t *x, __m256i *v, __m256 (*a)[4]) {
    __m256 xc[3];
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        xc[c] = _mm256_loadu_ps((const float *)(const void *)x + 8 * c);
        MOEI_PIN(xc[c]);
    }
    MOEI_UNROLL for (int r = 0; r < 4; r++) {
#if MOEI_ASM
        if (C == 3) {
            moei_row3_avx2(format, odd, w[r] + at, xc, v, a, r);
            continue;
        }
#endif
        const __m256i p = _mm256_loadu_si256((const __m256i *)(const void *)(w[r] + at));
        *v = format == MOE_FORMAT_F32 ? p : odd ? _mm256_blend_epi16(*v, p, 0xaa) : _mm256_slli_epi32(p, 16);
        MOEI_UNROLL for (int c = 0; c < C; c++) a[c][r] = _mm256_fmadd_ps(_mm256_castsi256_ps(*v), xc[c], a[c][r]);
    }
}
MOEI_FORCE MOEI_AVX2 void moei_begin_avx2(const int C, const moei_tile *t, const float *sums, __m256 (*a)[4]) {
    if (t->k0 == 0) {
        MOEI_UNROLL for (int i = 0; i < 4 * C; i++) a[i / 4][i % 4] = _mm256_setzero_ps();
    } else {
        MOEI_UNROLL for (int i = 0; i < 4 * C; i++) a[i / 4][i % 4] = _mm256_loadu_ps(sums + 8 * i);
    }
}
/* s[c] = what is left of the trees of token c's sums for moei_fold_avx2 */
MOEI_FORCE MOEI_AVX2 void moei_end_avx2(const int C, const moei_tile *t, float *sums, __m256 (*a)[4], __m256 *s) {
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        s[c] = moei_fold4_avx2(a[c][0], a[c][1], a[c][2], a[c][3]);
        MOEI_PIN(s[c]);
    }
    if (t->k1 < t->k)
        MOEI_UNROLL for (int i = 0; i < 4 * C; i++) _mm256_storeu_ps(sums + 8 * i, a[i / 4][i % 4]);
}
MOEI_FORCE MOEI_AVX2 void moei_results_avx2(const int C, const moei_tile *t, const __m256 *even, const __m256 *odd) {
    MOEI_UNROLL for (int c = 0; c < C; c++)
        moei_store_avx2(t->out + (size_t)c * t->out_stride, moei_fold_avx2(even[c], odd[c]), t->n_rows);
}

/* ---- f32 panels
   LAYOUT      4 rows in turns, 8 values each: first all even ones, then all odd ones. All groups of tokens pass over the even half, then
               over the odd one: so the rows, 16 KB for k = 2048, stay in L1, and it is one stream that never meets itself in a cache set.
               (Zen 3, k = 2048, 11 groups, calm and beside a busy neighbour on the core: 91 and 79 % of the peak, rows one after the other
               87 and 72, both halves for each group in turn 79 and 66. Layer, Qwen3-30B, 512 tokens: f32 1.03 to 1.12 times faster.)
   PARTS       Sums that wait in memory cost more than rows that leave L1: k = 2880 in one part is 1.05 times faster than in two; bf16 rows
               1.13, and of k = 4096 1.12 times (Zen 4: bf16 rows, k = 7168 1.05, 14336 1.06; f32, k = 7168 0.95). */
MOEI_FORCE MOEI_AVX2 void moei_panel_step_avx2(const int C, const float *w, const float *x, __m256 (*a)[4]) {
    const uint8_t *const rows[4] = {(const uint8_t *)w, (const uint8_t *)(w + 8), (const uint8_t *)(w + 16), (const uint8_t *)(w + 24)};
    __m256i v;
    moei_half_step_avx2(MOE_FORMAT_F32, C, 0, rows, 0, (const uint8_t *)x, &v, a);
}
/* One token has too few sums for one half alone: the other one comes along. */
MOEI_FORCE MOEI_AVX2 void moei_panel_tile_avx2(const int C, const moei_tile *t) {
    const size_t half = moei_half(t->k), steps = moei_half(t->k1) / 8 - t->k0 / 16, odd = C == 1 ? 0 : t->half;
    const size_t w_half = moei_half(t->panel_k1 - t->panel_k0);
    const float *w = (const float *)(const void *)t->w[0] + 4 * (odd * w_half + (t->k0 - t->panel_k0) / 2), *w1 = w + 4 * w_half;
    const float *x = (const float *)(const void *)t->x + (size_t)C * (odd * half + t->k0 / 2), *x1 = x + half;
    const uint8_t *ahead = t->ahead, *ahead_end = t->ahead_end;
    float *const sums = t->sums + odd * 32 * 3, *const evens = t->sums + 2 * 32 * 3;
    __m256 a[3][4], b[1][4], even[3], s[3];
    size_t i = 0;
    if (C == 1 && t->half) return;
    moei_begin_avx2(C, t, sums, a);
    if (C == 1) moei_begin_avx2(1, t, sums + 32, b);
    for (; i + MOEI_TURN_AVX2 <= steps; i += MOEI_TURN_AVX2) {
        MOEI_AHEAD(MOEI_TURN_AVX2 * t->ahead_step);
        MOEI_UNROLL for (size_t j = 0; j < MOEI_TURN_AVX2; j++) {
            moei_panel_step_avx2(C, w + 32 * j, x + 8 * (size_t)C * j, a);
            if (C == 1) moei_panel_step_avx2(1, w1 + 32 * j, x1 + 8 * j, b);
            MOEI_FENCE;
        }
        w += 32 * MOEI_TURN_AVX2, x += 8 * (size_t)C * MOEI_TURN_AVX2;
        if (C == 1) w1 += 32 * MOEI_TURN_AVX2, x1 += 8 * MOEI_TURN_AVX2;
    }
    for (; i < steps; i++, w += 32, x += 8 * C, w1 += 32, x1 += 8) {
        moei_panel_step_avx2(C, w, x, a);
        if (C == 1) moei_panel_step_avx2(1, w1, x1, b);
    }
    moei_end_avx2(C, t, sums, a, s);
    if (C == 1) moei_end_avx2(1, t, sums + 32, b, even);
    if (t->k1 < t->k) return;
    if (C == 1) moei_results_avx2(1, t, s, even);
    else if (odd) {
        MOEI_UNROLL for (int c = 0; c < C; c++) even[c] = _mm256_loadu_ps(evens + 8 * c);
        moei_results_avx2(C, t, even, s);
    } else MOEI_UNROLL for (int c = 0; c < C; c++) _mm256_storeu_ps(evens + 8 * c, s[c]);
}

/* ---- bf16 rows as they are */
enum { MOEI_EVEN = 1, MOEI_ODD = 2 };
/* 16 of k, or one half of them. */
MOEI_FORCE MOEI_AVX2 void moei_pass_step_avx2(const int C, const int which, const uint8_t *const *w, size_t i, const uint8_t *x, size_t odd_x,
                                              __m256i *va, __m256i *vb, __m256 (*a)[4], __m256 (*b)[4]) {
    if (which & MOEI_EVEN) moei_half_step_avx2(MOE_FORMAT_BF16, C, 0, w, i, x, va, a);
    if (which & MOEI_ODD) moei_half_step_avx2(MOE_FORMAT_BF16, C, 1, w, i, x + odd_x, vb, b);
    MOEI_FENCE;
}
MOEI_FORCE MOEI_AVX2 void moei_pass_avx2(const int C, const int which, const moei_tile *t, const uint8_t *const *tail, const uint8_t *ahead,
                                         const uint8_t *ahead_end, __m256 *even, __m256 *odd) {
    const size_t end = t->k1 / 16 * 32, odd_x = moei_half(t->k) * 4 * (size_t)C;
    const uint8_t *w[4], *x = t->x + 2 * t->k0 * (size_t)C;
    __m256 a[3][4], b[3][4];
    __m256i va, vb = _mm256_setzero_si256();
    MOEI_UNROLL for (int r = 0; r < 4; r++) w[r] = t->w[r];
    if (which & MOEI_EVEN) moei_begin_avx2(C, t, t->sums, a);
    if (which & MOEI_ODD) moei_begin_avx2(C, t, t->sums + 32 * C, b);
    size_t i = 2 * t->k0;
    for (; i + 32 * MOEI_TURN_AVX2 <= end; i += 32 * MOEI_TURN_AVX2, x += 32 * MOEI_TURN_AVX2 * (size_t)C) {
        MOEI_AHEAD((C == 1 ? 2u : 1u) * MOEI_TURN_AVX2 * t->ahead_step);
        MOEI_UNROLL for (size_t j = 0; j < MOEI_TURN_AVX2; j++)
            moei_pass_step_avx2(C, which, w, i + 32 * j, x + 32 * j * (size_t)C, odd_x, &va, &vb, a, b);
    }
    for (; i < end; i += 32, x += 32 * C) moei_pass_step_avx2(C, which, w, i, x, odd_x, &va, &vb, a, b);
    if (t->k1 % 16) moei_pass_step_avx2(C, which, tail, 0, x, odd_x, &va, &vb, a, b);
    if (which & MOEI_EVEN) moei_end_avx2(C, t, t->sums, a, even);
    if (which & MOEI_ODD) moei_end_avx2(C, t, t->sums + 32 * C, b, odd);
}
MOEI_FORCE MOEI_AVX2 void moei_tile_avx2(const int C, const moei_tile *t) {
    const uint8_t *tail[4], *half = t->ahead + (t->ahead_end - t->ahead) / 128 * 64;
    uint8_t pad[4][64];
    __m256 even[3], odd[3];
    if (t->k1 % 16)
        for (int r = 0; r < 4; r++) moei_tail_avx2(pad[r], t->w[r] + t->k / 16 * 32, t->k % 16 * 2);
    for (int r = 0; r < 4; r++) tail[r] = pad[r];
    if (C == 1) moei_pass_avx2(C, MOEI_EVEN | MOEI_ODD, t, tail, t->ahead, t->ahead_end, even, odd);
    if (C > 1) moei_pass_avx2(C, MOEI_EVEN, t, tail, t->ahead, half, even, odd);
    if (C > 1) moei_pass_avx2(C, MOEI_ODD, t, tail, half, t->ahead_end, even, odd);
    if (t->k1 == t->k) moei_results_avx2(C, t, even, odd);
}
#define MOEI_TILE_AVX2(C)                                                                                              \
    MOEI_AVX2 static void moei_tile_avx2_F32_##C(const moei_tile *t) { moei_panel_tile_avx2(C, t); }                   \
    MOEI_AVX2 static void moei_tile_avx2_BF16_##C(const moei_tile *t) { moei_tile_avx2(C, t); }
MOEI_TILE_AVX2(1)
MOEI_TILE_AVX2(2)
MOEI_TILE_AVX2(3)
static const moei_tiles moei_tiles_avx2_BF16 = {
    4, 3, 16384, 8, 4, 1, {moei_tile_avx2_BF16_1, moei_tile_avx2_BF16_2, moei_tile_avx2_BF16_3}, NULL};

MOEI_FORCE MOEI_AVX2 void moei_dot_avx2(const uint32_t format, const moei_rows *w, uint32_t n_rows, const void *const *x,
                                        uint32_t n_tokens, float *out, size_t out_stride) {
    if (n_tokens == 3) moei_rows_avx2(format, 3, w, n_rows, (const float *)x[0], out, out_stride);
    if (n_tokens == 2) moei_rows_avx2(format, 2, w, n_rows, (const float *)x[0], out, out_stride);
    if (n_tokens == 1) moei_rows_avx2(format, 1, w, n_rows, (const float *)x[0], out, out_stride);
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
    if (n_tokens == 1) moei_rows_avx2(MOE_FORMAT_BF16, 1, w, n_rows, (const float *)x[0], out, out_stride);
    else moei_sweep(&moei_tiles_avx2_BF16, w, n_rows, x, n_tokens, out, out_stride);
}

/* n values of R rows to where the even and the odd ones of the first belong, of a prepared row or (step = 32) a panel. */
MOEI_FORCE MOEI_AVX2 void moei_put_avx2(const uint32_t format, const uint32_t R, const uint8_t *const *rows, size_t n, float *even, float *odd,
                                        const size_t step) {
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2;
    for (size_t i = 0; i < n; i += 16, even += step, odd += step) {
        uint8_t tail[64];
        __m256 a[4], b[4];
        MOEI_UNROLL for (uint32_t r = 0; r < R; r++) {
            const uint8_t *p = rows[r] + i * size;
            if (n - i < 16) moei_tail_avx2(tail, p, (n - i) * size), p = tail;
            moei_load_avx2(format, p, &a[r], &b[r]);
        }
        MOEI_UNROLL for (uint32_t r = 0; r < R; r++) _mm256_storeu_ps(even + 8 * r, a[r]);
        MOEI_UNROLL for (uint32_t r = 0; r < R; r++) _mm256_storeu_ps(odd + 8 * r, b[r]);
    }
}
MOEI_AVX2 static void moei_prepare_avx2(void *row, const float *x, size_t k0, size_t n, size_t k) {
    const uint8_t *rows[1] = {(const uint8_t *)x};
    float *even = (float *)row + k0 / 2;
    moei_put_avx2(MOE_FORMAT_F32, 1, rows, n, even, even + moei_half(k), 8);
}
MOEI_AVX2 static void moei_panel_put_avx2(void *panel, uint32_t r, const float *x, size_t k0, size_t n, size_t k) {
    const uint8_t *rows[1] = {(const uint8_t *)x};
    float *even = (float *)panel + r / 4 * 8 * moei_half(k) + r % 4 * 8 + 2 * k0;
    moei_put_avx2(MOE_FORMAT_F32, 1, rows, n, even, even + 4 * moei_half(k), 32);
}
static const moei_tiles moei_tiles_avx2_F32 = {
    4, 3, 3072, 16, 4, 2, {moei_tile_avx2_F32_1, moei_tile_avx2_F32_2, moei_tile_avx2_F32_3}, moei_panel_put_avx2};
static size_t moei_panel_bytes_avx2(uint32_t n_rows, size_t k) { return moei_round_up(n_rows, 4) * moei_f32_row_bytes(k); }
static void moei_panel_avx2(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                            float *out, size_t out_stride) {
    moei_sweep_panel(&moei_tiles_avx2_F32, w, NULL, (uint8_t *)panel, moei_f32_row_bytes(w->k), n_rows, x, n_tokens, out, out_stride);
}
MOEI_FORCE MOEI_AVX2 void moei_decode_avx2(const uint32_t format, const moei_rows *w, uint32_t n_rows, void *panel) {
    const uint8_t *rows[4];
    for (uint32_t r = 0; r < 4; r++) rows[r] = moei_row(w, moei_min32(r, n_rows - 1));
    moei_put_avx2(format, 4, rows, w->k, (float *)panel, (float *)panel + 4 * moei_half(w->k), 32);
}
MOEI_AVX2 static void moei_decode_f32_avx2(const moei_rows *w, uint32_t n_rows, void *panel) {
    moei_decode_avx2(MOE_FORMAT_F32, w, n_rows, panel);
}
MOEI_AVX2 static void moei_decode_f16_avx2(const moei_rows *w, uint32_t n_rows, void *panel) {
    moei_decode_avx2(MOE_FORMAT_F16, w, n_rows, panel);
}
/* In L1 a tile of bf16 rows, with a shift or a blend for 3 FMAs, runs at 82 % of the peak, one of f32 rows at 94 (Zen 5). */
MOEI_AVX2 static void moei_decode_bf16_avx2(const moei_rows *w, uint32_t n_rows, void *panel) {
    moei_decode_avx2(MOE_FORMAT_BF16, w, n_rows, panel);
}

/* ---- Rows of E4M3, in this tier's order and (natural) in that of AVX-512's tiers
   Codes are unpacked as 2^-8 of their values, NaN as if it were a number, and the 2^8 is put into the scales. That is right but for
   rows with a NaN, with a scale from 2^119 on, or with scales whose columns are no whole steps of 32. Those are rare: they are done
   again from what moei_decode_row says. */
#define MOEI_RING_E4M3 ((size_t)8)    /* steps of 32 */
#define MOEI_AHEAD_E4M3 ((size_t)64)  /* weights unpacked before they are used */
#define MOEI_PART_E4M3 ((size_t)2048) /* weights whose scales are at hand */
typedef __m256 moei_sums_e4m3[3][2];   /* of a row: tokens; even and odd, or what BF16 and natural order have as 0 .. 7 and 8 .. 15 */
typedef struct moei_pair_e4m3 {        /* two rows */
    __m256i ring[2][MOEI_RING_E4M3][2];
    float scales[2][MOEI_PART_E4M3 / 32 + 8]; /* times 2^8, of every step */
    uint8_t tail[2][MOEI_AHEAD_E4M3 + 32];    /* codes of the last part of a step, then zeros */
    const uint8_t *of[2];                     /* whose scales they are */
    int finite[2];
    size_t rows_ahead, block;                 /* prefetched rows; the grid's row */
    uint32_t in_block;                        /* rows of it that are behind */
} moei_pair_e4m3;

/* 32 codes as f16: the even and the odd ones or, natural, of either 16 the first and the second 8. Their fields are moved into those
   of f16, which has the same kind of subnormals. */
MOEI_FORCE MOEI_AVX2 void moei_halves_e4m3(const int natural, __m256i codes, __m256i h[2]) {
    const __m256i fields = _mm256_set1_epi16((short)0xbf80);
    const __m256i sort = _mm256_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13,
                                          6, 14, 7, 15);
    if (natural) codes = _mm256_shuffle_epi8(codes, sort);
    h[0] = _mm256_and_si256(_mm256_maddubs_epi16(_mm256_set1_epi16(128), codes), fields);
    h[1] = _mm256_and_si256(_mm256_srai_epi16(codes, 1), fields);
}
/* Codes k .. k + 31 to the ring; *top: the largest, twice, without its sign. */
MOEI_FORCE MOEI_AVX2 void moei_ring_e4m3(const int natural, const uint8_t *p, size_t k, __m256i (*ring)[2], __m256i *top) {
    __m256i codes = _mm256_loadu_si256((const __m256i *)(const void *)p);
    *top = _mm256_max_epu8(*top, _mm256_add_epi8(codes, codes));
    moei_halves_e4m3(natural, codes, ring[k / 32 % MOEI_RING_E4M3]);
}

/* 2^8 times the scale of every 32 of n weights of a row from k on; `scales` are the row's. Returns whether all are finite. */
MOEI_FORCE MOEI_AVX2 int moei_scales_type_e4m3(const uint32_t type, const uint8_t *scales, size_t run, size_t k, size_t n, float *s) {
    const size_t steps = (n + 31) / 32, bytes = moei_type_bytes[type];
    const uint8_t *p = k ? scales + k / run * bytes : scales;
    __m256i most = _mm256_setzero_si256(), v;
    if (type == MOE_TYPE_E8M0 && run == 32) /* MXFP8 */
        for (size_t i = 0; i < steps; i += 8) {
            uint8_t last[8] = {0};
            const uint8_t *from = steps - i < 8 ? (const uint8_t *)memcpy(last, p + i, steps - i) : p + i;
            v = _mm256_add_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from)), _mm256_set1_epi32(8));
            v = _mm256_slli_epi32(_mm256_min_epi32(v, _mm256_set1_epi32(255)), 23);
            _mm256_storeu_si256((__m256i *)(void *)(s + i), v);
        }
    else
        for (size_t i = 0, end, next = k ? run - k % run : run; i < steps; i = end, next += run, p += bytes) {
            float f = 256.0f * (type ? moei_scalar(type, p) : 1.0f);
            end = next < n ? next / 32 : steps;
            for (size_t j = i; j < end; j += 4) _mm_storeu_ps(s + j, _mm_set1_ps(f));
        }
    for (size_t i = 0; i < steps; i += 8) {
        v = _mm256_loadu_si256((const __m256i *)(const void *)(s + i));
        most = _mm256_max_epi32(most, _mm256_and_si256(v, _mm256_set1_epi32(0x7fffffff)));
    }
    return !_mm256_movemask_epi8(_mm256_cmpgt_epi32(most, _mm256_set1_epi32(0x7f7fffff)));
}
MOEI_AVX2 static int moei_scales_e4m3(uint32_t type, const uint8_t *scales, size_t run, size_t k, size_t n, float *s) {
    if (type == MOE_TYPE_E8M0) return moei_scales_type_e4m3(MOE_TYPE_E8M0, scales, run, k, n, s);
    return moei_scales_type_e4m3(type, scales, run, k, n, s);
}
/* The scales of the next row. */
MOEI_FORCE const uint8_t *moei_grid_e4m3(moei_pair_e4m3 *s, const moei_rows *w) {
    static const uint8_t none[1] = {0};
    if (!w->scale.data) return none;
    const uint8_t *p = w->scale.data + s->block * w->scale.row_stride;
    if (++s->in_block == w->scale.rows) s->in_block = 0, s->block++;
    return p;
}

/* Weights k + 16 j .. of R rows, a and b: times C tokens of a group, x the first one's line of it, to their sums; or (C = 0) of one row
   to a panel. Rows that are not natural have their odd values `odd` bytes behind the even ones. */
typedef void moei_use_e4m3_fn(const int natural, const int C, const uint32_t R, size_t group, size_t k, const int j, const __m256 *a,
                              const __m256 *b, const uint8_t *x, size_t odd, uint8_t *panel, moei_sums_e4m3 *sums);
MOEI_FORCE MOEI_AVX2 void moei_use_f32(const int natural, const int C, const uint32_t R, size_t group, size_t k, const int j,
                                       const __m256 *a, const __m256 *b, const uint8_t *x, size_t odd, uint8_t *panel, moei_sums_e4m3 *sums) {
    const size_t line = natural ? 64 : 32, at = k * (line / 16) + (size_t)j * line;
    if (C == 0) { /* not natural: 4 rows in turns */
        float *even = (float *)(void *)(panel + (natural ? at : 4 * at)), *odds = even + (natural ? 8 : odd);
        MOEI_UNROLL for (uint32_t i = 0; i < R; i++) _mm256_storeu_ps(even + 8 * i, a[i]);
        MOEI_UNROLL for (uint32_t i = 0; i < R; i++) _mm256_storeu_ps(odds + 8 * i, b[i]);
    }
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        const uint8_t *p = x + at * group + line * (size_t)c;
        __m256 xa = _mm256_loadu_ps((const float *)(const void *)p);
        __m256 xb = _mm256_loadu_ps((const float *)(const void *)(p + (natural ? 32 : odd * group)));
        if (R > 1) { /* one load for both rows, not a memory operand for each */
            MOEI_PIN(xa);
            MOEI_PIN(xb);
        }
        MOEI_UNROLL for (uint32_t i = 0; i < R; i++) {
            sums[i][c][0] = _mm256_fmadd_ps(a[i], xa, sums[i][c][0]);
            sums[i][c][1] = _mm256_fmadd_ps(b[i], xb, sums[i][c][1]);
        }
    }
}
/* The results of two rows for a token. */
MOEI_FORCE MOEI_AVX2 __m128 moei_sum2_e4m3(const int natural, const __m256 *a, const __m256 *b) {
    if (!natural) return moei_fold_avx2(moei_fold4_avx2(a[0], b[0], a[0], b[0]), moei_fold4_avx2(a[1], b[1], a[1], b[1]));
    __m256 c = _mm256_add_ps(a[0], a[1]), d = _mm256_add_ps(b[0], b[1]);
    return moei_fold_avx2(moei_fold4_avx2(c, d, c, d), _mm256_setzero_ps());
}

/* Row r by moei_decode_row, times n tokens or (n = 0) to a row of a panel. */
MOEI_FORCE MOEI_AVX2 void moei_again_e4m3(const int natural, const size_t pad, moei_use_e4m3_fn *use, const moei_rows *w, uint32_t r,
                                          uint32_t n, const uint8_t *x, float *out, size_t out_stride) {
    const size_t odd = moei_half(w->k) * 4;
    float v[256];
    for (uint32_t c = 0; c < n || !c; c++) {
        moei_sums_e4m3 sums = {{_mm256_setzero_ps(), _mm256_setzero_ps()}};
        for (size_t k = 0; k < w->k; k += 32) {
            if (k % 256 == 0) memset(v, 0, sizeof v), moei_decode_row(w, r, k, w->k - k < 256 ? w->k - k : 256, v);
            for (int j = 0; j < 2 && k + 16 * (size_t)j < moei_round_up(w->k, pad); j++) {
                const float *p = v + k % 256 + 16 * j;
                __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8);
                if (!natural) moei_part_avx2(p, &a, &b);
                if (n) use(natural, 1, 1, n, k, j, &a, &b, x + c * (natural ? 64 : 32), odd, NULL, &sums);
                else use(natural, 0, 1, 0, k, j, &a, &b, NULL, odd, (uint8_t *)out, &sums);
            }
        }
        if (n) _mm_store_ss(out + c * out_stride, moei_sum2_e4m3(natural, sums[0], sums[0]));
    }
}

/* SHAPES      2 rows x 1 token (the sums of one row would wait for each other), 1 row x 2 or 3 tokens, 1 or, not natural, 2 rows (a whole
               line of each half) to a panel (C = 0)
   REGISTERS   4 or 6 sums, 2 tokens, 4 weights, 2 scales, 2 constants, the largest code: all 16
   COST        Halves go through memory, two steps before they are used: f16 in a register costs two more micro-operations to widen, and
               the long way from a code to its FMA would fill the schedulers. Zen 4, cycles per 32 weights in cache: 7.4 in registers, 6.9
               through memory, 5.9 two steps ahead; 512 bits 7.0 to 8.1; f32 subnormals times 2^120 in place of f16 5.9, but 9.7 where
               some codes are subnormals. With scales and prefetches 6.3 (F32: of 18 micro-ops 4 are conversions, 4 multiplications,
               4 FMAs) and 7.3 (BF16: a second rounding). One token, a layer, one core: F32 15 GB/s, 54 % of bf16's, BF16 14, 48 % (two
               cores: 80 to 90 % of what they read); FP8_CHANNEL's factors of rows cost a tenth more. The prefetches are needed: two
               rows at once are 5 GB/s without, 11 to L1. */
MOEI_FORCE MOEI_AVX2 void moei_step_e4m3(moei_pair_e4m3 *s, const int natural, moei_use_e4m3_fn *use, const int C, const uint32_t R,
                                         const int halves, size_t k, const uint8_t *x, size_t odd, uint8_t *panel, moei_sums_e4m3 *sums) {
    MOEI_UNROLL for (int j = 0; j < 2; j++) {
        __m256 a[2], b[2];
        if (j >= halves) break;
        MOEI_UNROLL for (uint32_t i = 0; i < R; i++) {
            const __m128i *h = (const __m128i *)(const void *)s->ring[i][k / 32 % MOEI_RING_E4M3] + j;
            const __m256 scale = _mm256_broadcast_ss(&s->scales[i][k / 32 % (MOEI_PART_E4M3 / 32)]);
            a[i] = _mm256_mul_ps(_mm256_cvtph_ps(_mm_load_si128(h)), scale);
            b[i] = _mm256_mul_ps(_mm256_cvtph_ps(_mm_load_si128(h + 2)), scale);
        }
        use(natural, C, R, (size_t)C, k, j, a, b, x, odd, panel, sums);
    }
}
/* Rows r .. r + R - 1, as far as there are; returns whether it is right. */
MOEI_FORCE MOEI_AVX2 int moei_rows_e4m3(moei_pair_e4m3 *s, const int natural, const size_t pad, moei_use_e4m3_fn *use, const int C,
                                        const uint32_t R, const moei_rows *w, uint32_t n_rows, uint32_t r, const uint8_t *x, float *out,
                                        size_t out_stride) {
    const uint32_t type = w->scale.data ? w->scale.type : (uint32_t)MOE_TYPE_NONE, n = n_rows - r < R ? n_rows - r : R;
    const size_t run = type && w->scale.cols < w->k ? w->scale.cols : moei_round_up(w->k, 32), odd = moei_half(w->k) * 4;
    const size_t whole = w->k & ~(size_t)31, turn = whole > MOEI_AHEAD_E4M3 ? whole - MOEI_AHEAD_E4M3 : 0;
    const uint8_t *codes[2], *next[2], *ahead[2], *grid[2];
    __m256i top = _mm256_setzero_si256();
    moei_sums_e4m3 sums[2];
    int right = run % 32 == 0;
    codes[0] = moei_row(w, r), codes[1] = codes[0] + (n - 1) * w->row_stride;
    ahead[0] = codes[0] + moei_ahead_at(w, n_rows, r, s->rows_ahead), ahead[1] = ahead[0] + w->row_stride;
    grid[0] = moei_grid_e4m3(s, w), grid[1] = n > 1 ? moei_grid_e4m3(s, w) : grid[0];
    MOEI_UNROLL for (uint32_t i = 0; i < R; i++) {
        next[i] = codes[i] + MOEI_AHEAD_E4M3;
        for (size_t k = whole; k < w->k; k++) s->tail[i][k - whole] = codes[i][k];
        for (size_t k = 0; k < MOEI_AHEAD_E4M3; k += 32)
            moei_ring_e4m3(natural, k < whole ? codes[i] + k : s->tail[i] + (k - whole), k, s->ring[i], &top);
        MOEI_UNROLL for (int c = 0; c < C; c++) sums[i][c][0] = sums[i][c][1] = _mm256_setzero_ps();
    }
    for (size_t k = 0, end; k < w->k && right; k = end) {
        if (k % MOEI_PART_E4M3 == 0)
            for (uint32_t i = 0; i < R; i++) {
                if (w->k <= MOEI_PART_E4M3 && s->of[i] == grid[i]) continue; /* often those of the row before */
                s->of[i] = grid[i];
                s->finite[i] = moei_scales_e4m3(type, grid[i], run, k, w->k - k < MOEI_PART_E4M3 ? w->k - k : MOEI_PART_E4M3, s->scales[i]);
            }
        right = s->finite[0] & s->finite[R - 1];
        if (k == turn)
            MOEI_UNROLL for (uint32_t i = 0; i < R; i++) next[i] = s->tail[i] + (turn + MOEI_AHEAD_E4M3 - whole);
        end = moei_round_up(k + 1, MOEI_PART_E4M3);
        if (end > w->k) end = w->k;
        if (k < turn && turn < end) end = turn;
        for (; k + 32 <= end; k += 32) {
            MOEI_UNROLL for (uint32_t i = 0; i < R; i++) {
                if (C) MOEI_PREFETCH_L2(ahead[i] + k);
                moei_ring_e4m3(natural, next[i], k + MOEI_AHEAD_E4M3, s->ring[i], &top), next[i] += 32;
            }
            MOEI_SPILL(s->ring);
            moei_step_e4m3(s, natural, use, C, R, 2, k, x, odd, (uint8_t *)out, sums);
        }
        if (k < end) moei_step_e4m3(s, natural, use, C, R, pad == 16 && end - k <= 16 ? 1 : 2, k, x, odd, (uint8_t *)out, sums);
    }
    if (!right || _mm256_movemask_epi8(_mm256_cmpeq_epi8(top, _mm256_set1_epi8((char)0xfe)))) return 0;
    MOEI_UNROLL for (int c = 0; c < C; c++)
        moei_store_avx2(out + (size_t)c * out_stride, moei_sum2_e4m3(natural, sums[0][c], sums[R - 1][c]), n);
    return 1;
}
#define MOEI_E4M3(tier, target, natural, pad, use)                                                                           \
    static MOEI_NOINLINE target void moei_again_e4m3_##tier(const moei_rows *w, uint32_t r, uint32_t n, const uint8_t *x,    \
                                                            float *out, size_t out_stride) {                                 \
        moei_again_e4m3(natural, pad, use, w, r, n, x, out, out_stride);                                                     \
    }                                                                                                                        \
    MOEI_FORCE target void moei_all_e4m3_##tier(const int C, const moei_rows *w, uint32_t n_rows, const uint8_t *x,          \
                                                uint8_t *out, size_t row_bytes, size_t out_stride) {                         \
        const uint32_t R = C == 1 || (C == 0 && !natural) ? 2 : 1, block = w->scale.data ? w->scale.rows : UINT32_MAX;       \
        moei_pair_e4m3 s;                                                                                                    \
        memset(&s, 0, sizeof s);                                                                                             \
        s.rows_ahead = moei_rows_ahead(w, MOEI_AHEAD_BYTES), s.block = w->row0 / block, s.in_block = w->row0 % block;        \
        for (uint32_t r = 0; r < n_rows; r += R) {                                                                           \
            float *to = (float *)(void *)(out + r * row_bytes);                                                              \
            if (moei_rows_e4m3(&s, natural, pad, use, C, R, w, n_rows, r, x, to, out_stride)) continue;                      \
            for (uint32_t i = 0; i < R && r + i < n_rows; i++)                                                               \
                moei_again_e4m3_##tier(w, r + i, (uint32_t)C, x, to + i * (C ? 1 : 8), out_stride);                          \
        }                                                                                                                    \
    }                                                                                                                        \
    target static void moei_dot_e4m3_##tier(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,    \
                                            float *out, size_t out_stride) {                                                 \
        const uint8_t *group = (const uint8_t *)x[0];                                                                        \
        if (n_tokens == 1) moei_all_e4m3_##tier(1, w, n_rows, group, (uint8_t *)out, 4, out_stride);                         \
        if (n_tokens == 2) moei_all_e4m3_##tier(2, w, n_rows, group, (uint8_t *)out, 4, out_stride);                         \
        if (n_tokens == 3) moei_all_e4m3_##tier(3, w, n_rows, group, (uint8_t *)out, 4, out_stride);                         \
    }                                                                                                                        \
    target static void moei_decode_fp8_##tier(const moei_rows *w, uint32_t n_rows, void *panel) {                            \
        const size_t row_bytes = moei_round_up(w->k, pad) * 64 / pad;                                                        \
        if (!natural && n_rows < 4) memset(panel, 0, 4 * row_bytes);                                                         \
        moei_all_e4m3_##tier(0, w, n_rows, NULL, (uint8_t *)panel, natural ? row_bytes : 32, 0);                             \
    }
MOEI_E4M3(avx2, MOEI_AVX2, 0, 16, moei_use_f32)

static void moei_pack_avx2(void *to, const void *const *x, uint32_t n, size_t k0, size_t len, size_t k) { /* half a line a step */
    uint8_t *even = (uint8_t *)to + 2 * k0 * n, *odd = even + 4 * moei_half(k) * n;
    moei_pack_lines(even, x, n, 0, moei_half(len) / 8, 32);
    moei_pack_lines(odd, x, n, 4 * moei_half(len), moei_half(len) / 8, 32);
}
static const moei_packing moei_packing_avx2 = {3, 2, moei_pack_avx2, NULL, NULL, NULL};
// clang-format off
#define MOEI_F32_AVX2(bf16, dot_max, ask) {                                                                            \
    MOE_COMPUTE_F32, MOE_TIER_AVX2, moei_f32_row_bytes, moei_prepare_avx2, moei_panel_bytes_avx2, moei_panel_avx2, {   \
        /* NONE         */ MOEI_NO_OPS,                                                                                \
        /* F32          */ {moei_dot_avx2_F32, moei_decode_f32_avx2, 3},                                               \
        /* F16          */ {moei_dot_avx2_F16, moei_decode_f16_avx2, 3},                                               \
        /* BF16         */ {moei_dot_avx2_BF16, bf16, dot_max},                                                        \
        /* Q8_0 - Q5_1  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                            \
        /* Q2_K - Q6_K  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                            \
        /* IQ4_NL, _XS  */ MOEI_NO_OPS, MOEI_NO_OPS,                                                                   \
        /* MXFP4, NVFP4 */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                                         \
        /* MXFP8        */ {moei_dot_e4m3_avx2, moei_decode_fp8_avx2, 3},                                              \
        /* FP8_BLOCK    */ {moei_dot_e4m3_avx2, moei_decode_fp8_avx2, 3},                                              \
        /* FP8_CHANNEL  */ {moei_dot_e4m3_avx2, moei_decode_fp8_avx2, 3},                                              \
        /* INT8, INT4   */ MOEI_NO_OPS, MOEI_NO_OPS},                                                                  \
    &moei_packing_avx2, &moei_tiles_avx2_F32, ask, 0, 1}
/* Where L1 has room for its 4 rows of f32, a panel pays from about 18 tokens on (k = 4096 and 14336: 30). Zen 5, layer, 512 tokens: Qwen3-30B
   76 and 83, Mixtral 72 and 79 % of the peak, with 4 rows one after the other and tiles of two steps a turn. In an L1 of 32 KB half a panel stays
   longer than rows of bf16, which both halves pass over: Zen 4, cold, 48 and 128 tokens, rows and panel, k = 768 84 80, 83 82; k = 2048 83 83, 80 84;
   k = 4096 71 79, 69 81; k = 14336 70 74, 64 67; layer, Mixtral, 256 and 512 tokens 1.08 times faster, 48 to 192 tokens of k = 2048 and 768
   level to 1.05. (Zen 3, k = 2048: level.) */
MOEI_TABLE const moei_arith moei_f32_avx2 = MOEI_F32_AVX2(moei_decode_bf16_avx2, 40, MOEI_ASK_L2);
MOEI_TABLE const moei_arith moei_f32_avx2_intel = MOEI_F32_AVX2(NULL, UINT32_MAX, MOEI_ASK_BOTH);
MOEI_TABLE const moei_arith moei_f32_avx2_room = MOEI_F32_AVX2(moei_decode_bf16_avx2, 20, MOEI_ASK_L2);
MOEI_TABLE const moei_arith moei_f32_avx2_room_intel = MOEI_F32_AVX2(moei_decode_bf16_avx2, 20, MOEI_ASK_BOTH);
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
MOEI_AVX2 static void moei_vtimes_avx2(float *y, const float *v, size_t n) {
    const __m256 least = _mm256_set1_ps(MOEI_LEAST);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_max_ps(least, _mm256_loadu_ps(y + i)), _mm256_loadu_ps(v + i)));
    for (; i < n; i++) y[i] = moei_times(y[i], v[i]);
}
MOEI_AVX2 static void moei_vclamp_avx2(float *v, float low, float high, float plus, size_t n) {
    const __m256 l = _mm256_set1_ps(low), h = _mm256_set1_ps(high), p = _mm256_set1_ps(plus);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(v + i, _mm256_add_ps(_mm256_max_ps(l, _mm256_min_ps(h, _mm256_loadu_ps(v + i))), p));
    for (; i < n; i++) v[i] = moei_clamp(v[i], low, high, plus);
}
MOEI_AVX2 static void moei_vorder_avx2(uint32_t *key, const float *v, size_t n) { /* moei_key as signed numbers */
    const __m256i sign = _mm256_set1_epi32(INT32_MIN), inf = _mm256_set1_epi32(0x7f800000);
    const __m256i least = _mm256_xor_si256(sign, _mm256_set1_epi32(0x00800000));
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i u = _mm256_loadu_si256((const __m256i *)(v + i));
        u = _mm256_blendv_epi8(u, _mm256_sub_epi32(sign, u), _mm256_srai_epi32(u, 31));
        u = _mm256_blendv_epi8(u, least, _mm256_cmpgt_epi32(u, inf));
        _mm256_storeu_si256((__m256i *)(key + i), _mm256_xor_si256(_mm256_max_epi32(u, least), sign));
    }
    for (; i < n; i++) key[i] = moei_key(v[i]);
}
MOEI_FORCE MOEI_AVX2 __m256i moei_load8_avx2(const uint32_t *key) { /* in the order of signed numbers */
    return _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)key), _mm256_set1_epi32(INT32_MIN));
}
MOEI_AVX2 static uint32_t moei_vreach_avx2(uint64_t *best, const uint32_t *key, uint32_t n, uint32_t k) {
    uint32_t whole = n & ~7u, count = 0, i, j;
    __m256i most[2], above[2], bound = _mm256_set1_epi32(INT32_MAX);
    for (j = 0; j < 2; j++) most[j] = moei_load8_avx2(key + 8 * j), above[j] = _mm256_setzero_si256();
    for (i = MOEI_LANES; i < whole; i += 8) /* the last of an odd number of eights goes to the first lanes again */
        most[i >> 3 & 1] = _mm256_max_epi32(most[i >> 3 & 1], moei_load8_avx2(key + i));
    int32_t lane[MOEI_LANES];
    for (j = 0; j < 2; j++) _mm256_storeu_si256((__m256i *)(lane + 8 * j), most[j]);
    for (i = 0; i < MOEI_LANES; i++)
        for (j = 0; j < 2; j++)
            above[j] = _mm256_sub_epi32(above[j], _mm256_cmpgt_epi32(_mm256_set1_epi32(lane[i]), most[j]));
    for (j = 0; j < 2; j++) { /* the least that fewer than k lanes are above */
        __m256i in = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)k), above[j]);
        bound = _mm256_min_epi32(bound, _mm256_blendv_epi8(_mm256_set1_epi32(INT32_MAX), most[j], in));
    }
    bound = _mm256_min_epi32(bound, _mm256_permute2x128_si256(bound, bound, 1));
    bound = _mm256_min_epi32(bound, _mm256_shuffle_epi32(bound, 0x4e));
    bound = _mm256_min_epi32(bound, _mm256_shuffle_epi32(bound, 0xb1));
    for (i = 0; i < whole; i += 8) {
        uint32_t below = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(bound, moei_load8_avx2(key + i))));
        if (below == 255) continue;
        for (j = 0; j < 8; j++) {
            best[count] = (uint64_t)key[i + j] << 32 | (uint32_t)~(i + j);
            count += ~below >> j & 1;
        }
    }
    uint32_t least = (uint32_t)_mm_cvtsi128_si32(_mm256_castsi256_si128(bound)) ^ 0x80000000u;
    for (; i < n; i++) {
        best[count] = (uint64_t)key[i] << 32 | (uint32_t)~i;
        count += key[i] >= least;
    }
    return count;
}
MOEI_AVX2 static void moei_vread16_avx2(float *y, const void *x, int bf16, size_t n) {
    const uint8_t *p = (const uint8_t *)x;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i));
        _mm256_storeu_ps(y + i, bf16 ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)) : _mm256_cvtph_ps(h));
    }
    moei_read16_c(y + i, p + 2 * i, bf16, n - i);
}
MOEI_FORCE MOEI_AVX2 __m128i moei_to_bf16_avx2(__m256 x) {
    const __m256i u = _mm256_castps_si256(x), last = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i even = _mm256_add_epi32(u, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_cmpgt_epi32(_mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff)), _mm256_set1_epi32(0x7f800000));
    const __m256i h = _mm256_srli_epi32(_mm256_blendv_epi8(even, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}
MOEI_AVX2 static void moei_vwrite16_avx2(void *y, int bf16, const float *x, size_t n) {
    uint8_t *p = (uint8_t *)y;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        _mm_storeu_si128((__m128i *)(void *)(p + 2 * i), bf16 ? moei_to_bf16_avx2(v) : _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    moei_write16_c(p + 2 * i, bf16, x + i, n - i);
}
MOEI_UNUSED static const moei_vec moei_vec_avx2 = {moei_vexp_avx2,   moei_vsigmoid_avx2, moei_vaxpy_avx2,  moei_vaffine_avx2, moei_vtimes_avx2,
                                                   moei_vclamp_avx2, moei_vorder_avx2,   moei_vreach_avx2, moei_vread16_avx2, moei_vwrite16_avx2};
#endif

/* ==== >>avx512: F32 on AVX-512 F/BW/DQ/VL ============================================================================== */

#if MOEI_HAVE_AVX512
/* g++ before 13 takes its own "undefined" vectors for uninitialised variables. */
#if defined(__cplusplus) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
/* 16 bf16 as f32: one shuffle puts each word into the upper half of its dword (tile in L1, Zen 5: 96 % of the peak, widened and
   shifted 93 %). clang turns the shuffle into several, which need registers (70 %). */
MOEI_FORCE MOEI_AVX512 __m512 moei_widen_bf16_avx512(__m256i h) {
#ifdef __clang__
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
#else
    const __m512i from = _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1,
                                          1, 0, 0);
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, from, _mm512_castsi256_si512(h)));
#endif
}
/* 16 weights as f32; the tail's missing ones are 0 and not touched. */
MOEI_FORCE MOEI_AVX512 __m512 moei_load_avx512(const uint32_t format, const uint8_t *p) {
    if (format == MOE_FORMAT_F32) return _mm512_loadu_ps((const float *)p);
    __m256i h = _mm256_loadu_si256((const __m256i *)p);
    if (format == MOE_FORMAT_F16) return _mm512_cvtph_ps(h);
    return moei_widen_bf16_avx512(h);
}
MOEI_FORCE MOEI_AVX512 __m512 moei_load_tail_avx512(const uint32_t format, const uint8_t *p, __mmask16 m) {
    if (format == MOE_FORMAT_F32) return _mm512_maskz_loadu_ps(m, p);
    __m256i h = _mm256_maskz_loadu_epi16(m, p);
    if (format == MOE_FORMAT_F16) return _mm512_cvtph_ps(h);
    return moei_widen_bf16_avx512(h);
}
MOEI_FORCE MOEI_AVX512 __mmask16 moei_mask_avx512(size_t n) { return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffffu); }

/* The tree 8, 4, 2, 1 of one and of four sums, then + 0.0f. */
MOEI_FORCE MOEI_AVX512 float moei_sum_avx512(__m512 a) {
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1))) + 0.0f;
}
/* Steps 8 and 4 of the trees of four sums. */
MOEI_FORCE MOEI_AVX512 __m512 moei_fold2_avx512(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
MOEI_FORCE MOEI_AVX512 __m512 moei_fold4_avx512(const __m512 *a) {
    __m512 b = moei_fold2_avx512(a[0], a[1]), c = moei_fold2_avx512(a[2], a[3]);
    return _mm512_add_ps(_mm512_shuffle_f32x4(b, c, 0x88), _mm512_shuffle_f32x4(b, c, 0xdd));
}
/* The tree of each of 8 sums, then + 0.0f. */
MOEI_FORCE MOEI_AVX512 __m256 moei_fold8_avx512(const __m512 *a) {
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 4, 8, 12, 2, 6, 10, 14);
    __m512 b = moei_fold4_avx512(a), c = moei_fold4_avx512(a + 4);
    __m512 s = _mm512_add_ps(_mm512_shuffle_ps(b, c, 0x44), _mm512_shuffle_ps(b, c, 0xee));
    s = _mm512_add_ps(_mm512_add_ps(s, _mm512_permute_ps(s, 0xb1)), _mm512_setzero_ps());
    return _mm512_castps512_ps256(_mm512_permutexvar_ps(first, s));
}
MOEI_FORCE MOEI_AVX512 void moei_begin_avx512(const int n, const moei_tile *t, __m512 *a) {
    if (t->k0 == 0) {
        MOEI_UNROLL for (int i = 0; i < n; i++) a[i] = _mm512_setzero_ps();
    } else {
        MOEI_UNROLL for (int i = 0; i < n; i++) a[i] = _mm512_loadu_ps(t->sums + 16 * i);
    }
}
/* Eights of sums are 8 rows of a token, or 4 of two. (This takes 24 cycles, in which the next tile's FMAs wait. Not faster: each token's last 1
   to 8 steps by themselves, then its sums, so that those of one token go beside FMAs of the next: Zen 5, k = 512, 24 and 26 to 90 cycles.) */
MOEI_FORCE MOEI_AVX512 void moei_end_avx512(const int R, const int C, const moei_tile *t, __m512 *a) {
    if (t->k1 < t->k) {
        MOEI_UNROLL for (int i = 0; i < R * C; i++) _mm512_storeu_ps(t->sums + 16 * i, a[i]);
        return;
    }
    if (R * C % 8) MOEI_UNROLL for (int i = R * C; i < R * C + 4; i++) a[i] = _mm512_setzero_ps();
    MOEI_UNROLL for (int i = 0; i < R * C; i += 8) {
        float *out = t->out + (size_t)(i / R) * t->out_stride;
        const __m256 v = moei_fold8_avx512(a + i);
        _mm_storeu_ps(out, _mm256_castps256_ps128(v));
        if (i + 4 < R * C) _mm_storeu_ps(out + (R == 8 ? t->second : t->out_stride), _mm256_extractf128_ps(v, 1));
    }
}

/* SHAPES      R = 8 rows (any format, k contiguous) or 4 to 7, some of them twice, x a group of C tokens, or R = 4 x up to two groups
   DEFINITION  lane l of a[R c + r] is the FMA chain over k mod 16 == l
   REGISTERS   R C sums + C tokens + 1 weight: 28 of 32 with 8 x 3, 24 FMAs (12 cycles) per 11 loads; 31 with 4 x 6, per 10 loads
   Which shape: see moei_tiles. */
MOEI_FORCE const uint8_t *moei_line_avx512(const int c, const uint8_t *x, const uint8_t *x2) { return c < 3 ? x + 64 * c : x2 + 64 * (c - 3); }
MOEI_FORCE MOEI_AVX512 void moei_step_avx512(const uint32_t format, const int R, const int C, const uint8_t *w, const uint8_t *w4, size_t stride,
                                             __mmask16 m, const uint8_t *x, const uint8_t *x2, __m512 *a) {
    __m512 xc[6];
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        xc[c] = _mm512_loadu_ps(moei_line_avx512(c, x, x2));
        MOEI_PIN(xc[c]);
    }
    MOEI_UNROLL for (int r = 0; r < R; r++) {
        const uint8_t *p = (r < 4 ? w : w4) + (size_t)(r % 4) * stride;
        __m512 v = m == 0xffff ? moei_load_avx512(format, p) : moei_load_tail_avx512(format, p, m);
        MOEI_PIN(v);
        MOEI_UNROLL for (int c = 0; c < C; c++) a[R * c + r] = _mm512_fmadd_ps(v, xc[c], a[R * c + r]);
        MOEI_FENCE;
    }
}
MOEI_FORCE MOEI_AVX512 void moei_tile_avx512(const uint32_t format, const int R, const int C, const moei_tile *t) {
    const int first = C < 3 ? C : 3;
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2, stride = t->row_stride, line = 64 * (size_t)first, line2 = 64 * (size_t)(C - first);
    const uint8_t *w = t->w[0] + (t->k0 - t->panel_k0) * size, *w4 = R == 8 ? w + t->second * stride : w;
    const uint8_t *x = t->x + t->k0 / 16 * line, *x2 = C > first ? t->x2 + t->k0 / 16 * line2 : x;
    const uint8_t *ahead = t->ahead, *ahead_end = t->ahead_end, *end = x + (t->k1 - t->k0) / 32 * 2 * line;
    __m512 a[24];
    moei_begin_avx512(R * C, t, a);
    for (; x < end; w += 32 * size, w4 += 32 * size, x += 2 * line, x2 += 2 * line2) {
        MOEI_AHEAD(t->ahead_step);
        moei_step_avx512(format, R, C, w, w4, stride, 0xffff, x, x2, a);
        moei_step_avx512(format, R, C, w + 16 * size, w4 + 16 * size, stride, 0xffff, x + line, x2 + line2, a);
    }
    if (t->k1 & 16) {
        moei_step_avx512(format, R, C, w, w4, stride, 0xffff, x, x2, a);
        w += 16 * size, w4 += 16 * size, x += line, x2 += line2;
    }
    if (t->k1 & 15) moei_step_avx512(format, R, C, w, w4, stride, moei_mask_avx512(t->k1 & 15), x, x2, a);
    moei_end_avx512(R, C, t, a);
}

#define MOEI_TILE_AVX512(F, R, C)                                                                                      \
    MOEI_AVX512 static void moei_tile_avx512_##F##_##R##x##C(const moei_tile *t) { moei_tile_avx512(MOE_FORMAT_##F, R, C, t); }
#define MOEI_TILES_AVX512(F, part, part4)                                                                              \
    MOEI_TILE_AVX512(F, 8, 1) MOEI_TILE_AVX512(F, 8, 2) MOEI_TILE_AVX512(F, 8, 3) MOEI_TILE_AVX512(F, 4, 1)            \
    MOEI_TILE_AVX512(F, 4, 2) MOEI_TILE_AVX512(F, 4, 3) MOEI_TILE_AVX512(F, 4, 4) MOEI_TILE_AVX512(F, 4, 5)            \
    MOEI_TILE_AVX512(F, 4, 6)                                                                                          \
    static const moei_tiles moei_tiles_avx512_##F[2] = {                                                               \
        {8, 3, part, 32, 4, 1, {moei_tile_avx512_##F##_8x1, moei_tile_avx512_##F##_8x2, moei_tile_avx512_##F##_8x3}, NULL}, \
        {4, 6, part4, 32, 4, 1, {moei_tile_avx512_##F##_4x1, moei_tile_avx512_##F##_4x2, moei_tile_avx512_##F##_4x3,    \
                                moei_tile_avx512_##F##_4x4, moei_tile_avx512_##F##_4x5, moei_tile_avx512_##F##_4x6}, NULL}};
MOEI_TILES_AVX512(F32, 1024, 2048)
MOEI_TILES_AVX512(F16, 4096, 4096)
MOEI_TILES_AVX512(BF16, 4096, 4096)
/* A part of 8 rows has 22 KB: see moei_widen_avx512. */
static const moei_tiles moei_tiles_avx512_panel = {
    8, 3, 704, 32, 4, 1, {moei_tile_avx512_F32_8x1, moei_tile_avx512_F32_8x2, moei_tile_avx512_F32_8x3}, NULL};

/* SHAPES      1 row x a group of C tokens, row after row: one stream
   Whether it helps to name it to the memory in advance, and up to which cache, is the processor's. Intel's prefetchers need it (Xeon, family 6
   model 207: bf16 at 51 to 65 % of the read bandwidth without, 81 to 88 to L1 8 KB ahead, 89 to L2, 95 to L2 and, 2 KB ahead, to L1 once more,
   which 2 to 6 tokens like too: 93 for 83; f32 99 for 94); on Zen 4 lines asked for to L1 are in the way (one core of 30 GB/s, layer: bf16 to L1
   20, to L2 28, none 21; f32 to L2 23, none 30; tiles of 4 rows 22), but for 2 KB before, if L2 has them: then Zen 4's two cores read 93 % of 36
   GB/s of f16 and bf16, not 88 (one core level; f32 72 % for 88, BF16's own loop 72 for 92). Several tokens need it, to L2 (f32, 3 tokens: 69 %,
   without 43): then they stay in L1. A tile of 4 rows pushes them out as it passes (Zen 4, k = 2048, bf16 rows, GB/s of 28, tile and row by row:
   F32 2 tokens 25 and 28, 3 tokens 21 and 26; BF16 2 to 6 tokens 25 25 22 19 17 and 27 30 30 29 26). F32 loads as much as it multiplies, so from
   4 tokens on the tile is faster. The group has to leave room for a row (k = 4096: BF16 29 with 3 tokens, 9 with 4). */
#define MOEI_FEW_BYTES_L1 ((size_t)24 << 10)
/* Whether tokens pass over single rows: where there are few of either. Rows may be fewer than a tile can have. */
MOEI_FORCE int moei_few(uint32_t n_rows, uint32_t n, uint32_t most, size_t row_bytes) {
    return n_rows < 4 || n == 1 || (n <= most && n * row_bytes <= MOEI_FEW_BYTES_L1);
}
MOEI_FORCE MOEI_AVX512 void moei_rows_avx512(const uint32_t format, const int C, const moei_rows *w, uint32_t n_rows,
                                             const float *x, float *out, size_t out_stride) {
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2, k_end = w->k & ~(size_t)15, group = (size_t)C;
    uint32_t ask = w->ask;
    if (ask == MOEI_ASK_HALVES) ask = format == MOE_FORMAT_F32 ? MOEI_ASK_L2 : MOEI_ASK_BOTH;
    if (format == MOE_FORMAT_F32 && C == 1 && ask == MOEI_ASK_L2) ask = MOEI_ASK_NONE; /* see above */
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *p = moei_row(w, r), *ahead = p + moei_ahead_of(w, n_rows, r, MOEI_AHEAD_BYTES);
        __m512 a[3];
        MOEI_UNROLL for (int c = 0; c < C; c++) a[c] = _mm512_setzero_ps();
        for (size_t k = 0; k < k_end; k += 16) {
            if (format == MOE_FORMAT_F32 || !(k & 16)) moei_ask(ask, p + k * size, ahead + k * size, 64);
            const __m512 v = moei_load_avx512(format, p + k * size);
            MOEI_UNROLL for (int c = 0; c < C; c++) a[c] = _mm512_fmadd_ps(v, _mm512_loadu_ps(x + k * group + 16 * c), a[c]);
        }
        if (k_end < w->k) {
            const __m512 v = moei_load_tail_avx512(format, p + k_end * size, moei_mask_avx512(w->k - k_end));
            MOEI_UNROLL for (int c = 0; c < C; c++) a[c] = _mm512_fmadd_ps(v, _mm512_loadu_ps(x + k_end * group + 16 * c), a[c]);
        }
        MOEI_UNROLL for (int c = 0; c < C; c++) out[(size_t)c * out_stride + r] = moei_sum_avx512(a[c]);
    }
}
#define MOEI_ROWS_AVX512(F, C) moei_rows_avx512(MOE_FORMAT_##F, C, w, n_rows, (const float *)x[i], out, out_stride)
#define MOEI_DOT_AVX512(F)                                                                                             \
    MOEI_AVX512 static void moei_dot_avx512_##F(const moei_rows *w, uint32_t n_rows, const void *const *x,             \
                                                uint32_t n_tokens, float *out, size_t out_stride) {                    \
        if (!moei_few(n_rows, n_tokens, 3, 4 * w->k)) {                                                                \
            moei_sweep(&moei_tiles_avx512_##F[w->whole], w, n_rows, x, n_tokens, out, out_stride);                     \
            return;                                                                                                    \
        }                                                                                                              \
        for (uint32_t i = 0; i < n_tokens; i += 3, out += 3 * out_stride)                                              \
            switch (n_tokens - i) {                                                                                    \
            case 1: MOEI_ROWS_AVX512(F, 1); break;                                                                     \
            case 2: MOEI_ROWS_AVX512(F, 2); break;                                                                     \
            default: MOEI_ROWS_AVX512(F, 3);                                                                           \
            }                                                                                                          \
    }
MOEI_DOT_AVX512(F32) MOEI_DOT_AVX512(F16) MOEI_DOT_AVX512(BF16)

static void moei_panel_avx512(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                              float *out, size_t out_stride) {
    moei_rows rows = *w;
    rows.data = (const uint8_t *)panel, rows.row0 = 0, rows.row_stride = moei_f32_row_bytes(w->k);
    rows.ask = MOEI_ASK_L2; /* a panel is in the caches whatever the processor */
    moei_dot_avx512_F32(&rows, n_rows, x, n_tokens, out, out_stride);
}

/* Rows of 16 bits to a panel of f32, once for all tokens, where conversions take the ports that FMAs need: on Intel (Xeon, family 6 model
   207, 32 tokens, cold, % of the peak: bf16 rows 54; a panel of 32 rows, decoded first, 55; tile by tile just before the tokens pass, while
   memory is read on, 64; and 704 values of k at a time, which stay in L1, 72, of which decoding takes 13; parts of 512 as fast, 1024 70). On
   AMD they have ports of their own and the panel is only more to read (Zen 4, 32 tokens, cold: bf16 rows 93 %, a panel 80 %). */
MOEI_FORCE MOEI_AVX512 void moei_widen_avx512(const uint32_t format, const moei_rows *w, uint32_t n_rows, void *panel) {
    float *o = (float *)panel;
    for (uint32_t r = 0; r < n_rows; r++, o += moei_f32_row_bytes(w->k) / 4) {
        const uint8_t *p = moei_row(w, r);
        size_t k = 0;
        for (; k + 16 <= w->k; k += 16) _mm512_storeu_ps(o + k, moei_load_avx512(format, p + 2 * k));
        if (k < w->k) _mm512_storeu_ps(o + k, moei_load_tail_avx512(format, p + 2 * k, moei_mask_avx512(w->k - k)));
    }
}
MOEI_AVX512 static void moei_decode_f16_avx512(const moei_rows *w, uint32_t n_rows, void *panel) {
    moei_widen_avx512(MOE_FORMAT_F16, w, n_rows, panel);
}
MOEI_AVX512 static void moei_decode_bf16_avx512(const moei_rows *w, uint32_t n_rows, void *panel) {
    moei_widen_avx512(MOE_FORMAT_BF16, w, n_rows, panel);
}

MOEI_E4M3(avx512, MOEI_AVX512, 1, 16, moei_use_f32)

static const moei_packing moei_packing_avx512 = {3, 2, moei_pack_f32, NULL, NULL, NULL};
// clang-format off
#define MOEI_F32_AVX512(dot_max, tiles, ask, whole) {                                                                  \
    MOE_COMPUTE_F32, MOE_TIER_AVX512, moei_f32_row_bytes, moei_prepare_f32, moei_panel_bytes_f32, moei_panel_avx512, { \
        /* NONE         */ MOEI_NO_OPS,                                                                                \
        /* F32          */ {moei_dot_avx512_F32, NULL, UINT32_MAX},                                                    \
        /* F16          */ {moei_dot_avx512_F16, moei_decode_f16_avx512, dot_max},                                     \
        /* BF16         */ {moei_dot_avx512_BF16, moei_decode_bf16_avx512, dot_max},                                   \
        /* Q8_0 - Q5_1  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                            \
        /* Q2_K - Q6_K  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                            \
        /* IQ4_NL, _XS  */ MOEI_NO_OPS, MOEI_NO_OPS,                                                                   \
        /* MXFP4, NVFP4 */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                                         \
        /* MXFP8        */ {moei_dot_e4m3_avx512, moei_decode_fp8_avx512, 3},                                          \
        /* FP8_BLOCK    */ {moei_dot_e4m3_avx512, moei_decode_fp8_avx512, 3},                                          \
        /* FP8_CHANNEL  */ {moei_dot_e4m3_avx512, moei_decode_fp8_avx512, 3},                                          \
        /* INT8, INT4   */ MOEI_NO_OPS, MOEI_NO_OPS},                                                                  \
    &moei_packing_avx512, tiles, ask, whole, 1}
MOEI_TABLE const moei_arith moei_f32_avx512 = MOEI_F32_AVX512(UINT32_MAX, NULL, MOEI_ASK_HALVES, 1);
MOEI_TABLE const moei_arith moei_f32_avx512_zen5 = MOEI_F32_AVX512(UINT32_MAX, NULL, MOEI_ASK_L2, 0);
MOEI_TABLE const moei_arith moei_f32_avx512_intel = MOEI_F32_AVX512(12, &moei_tiles_avx512_panel, MOEI_ASK_BOTH, 0);
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
MOEI_AVX512 static void moei_vtimes_avx512(float *y, const float *v, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = moei_mask_avx512(n - i);
        __m512 t = _mm512_max_ps(_mm512_set1_ps(MOEI_LEAST), _mm512_maskz_loadu_ps(m, y + i));
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(t, _mm512_maskz_loadu_ps(m, v + i)));
    }
}
MOEI_AVX512 static void moei_vclamp_avx512(float *v, float low, float high, float plus, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = moei_mask_avx512(n - i);
        __m512 t = _mm512_min_ps(_mm512_set1_ps(high), _mm512_maskz_loadu_ps(m, v + i));
        _mm512_mask_storeu_ps(v + i, m, _mm512_add_ps(_mm512_max_ps(_mm512_set1_ps(low), t), _mm512_set1_ps(plus)));
    }
}
MOEI_UNUSED static const moei_vec moei_vec_avx512 = {
    moei_vexp_avx512,   moei_vsigmoid_avx512, moei_vaxpy_avx512, moei_vaffine_avx512, moei_vtimes_avx512,
    moei_vclamp_avx512, moei_vorder_avx2,     moei_vreach_avx2,  moei_vread16_avx2,   moei_vwrite16_avx2};
#endif

/* ==== >>bf16: BF16 on AVX512-BF16 ======================================================================================
   Lane l of a sum is the chain of VDPBF16PS over the pairs k = 32 i + 2 l, 32 i + 2 l + 1; then F32's tree and + 0.0f.
   VDPBF16PS and the conversions to bf16 take subnormals as zero, whatever MXCSR says. */

#if MOEI_HAVE_AVX512BF16
MOEI_FORCE MOEI_BF16 __mmask32 moei_mask_bf16(size_t n) { return n < 32 ? (1u << n) - 1 : 0xffffffffu; }
/* SHAPES      8 bf16 rows x a group of C tokens, or 4 x up to two groups
   REGISTERS   as moei_tile_avx512: 24 dot products of 16 pairs per 11 or 10 loads */
MOEI_FORCE MOEI_BF16 void moei_step_bf16(const int R, const int C, const uint8_t *w, const uint8_t *w4, size_t stride, __mmask32 m,
                                         const uint8_t *x, const uint8_t *x2, __m512 *a) {
    __m512i xc[6];
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        xc[c] = _mm512_loadu_si512(moei_line_avx512(c, x, x2));
        MOEI_PIN(xc[c]);
    }
    MOEI_UNROLL for (int r = 0; r < R; r++) {
        const uint8_t *p = (r < 4 ? w : w4) + (size_t)(r % 4) * stride;
        __m512i v = m == 0xffffffff ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(m, p);
        MOEI_PIN(v);
        MOEI_UNROLL for (int c = 0; c < C; c++) a[R * c + r] = _mm512_dpbf16_ps(a[R * c + r], (__m512bh)v, (__m512bh)xc[c]);
    }
}
MOEI_FORCE MOEI_BF16 void moei_tile_bf16(const int R, const int C, const moei_tile *t) {
    const int first = C < 3 ? C : 3;
    const size_t stride = t->row_stride, line = 64 * (size_t)first, line2 = 64 * (size_t)(C - first);
    const uint8_t *w = t->w[0] + t->k0 * 2, *w4 = R == 8 ? w + t->second * stride : w;
    const uint8_t *x = t->x + t->k0 / 32 * line, *x2 = C > first ? t->x2 + t->k0 / 32 * line2 : x;
    const uint8_t *ahead = t->ahead, *ahead_end = t->ahead_end, *end = x + (t->k1 - t->k0) / 32 * line;
    __m512 a[24];
    moei_begin_avx512(R * C, t, a);
    for (; x < end; w += 64, w4 += 64, x += line, x2 += line2) {
        MOEI_AHEAD(t->ahead_step);
        moei_step_bf16(R, C, w, w4, stride, 0xffffffff, x, x2, a);
    }
    if (t->k1 & 31) moei_step_bf16(R, C, w, w4, stride, moei_mask_bf16(t->k1 & 31), x, x2, a);
    moei_end_avx512(R, C, t, a);
}
#define MOEI_TILE_BF16(R, C)                                                                                           \
    MOEI_BF16 static void moei_tile_bf16_##R##x##C(const moei_tile *t) { moei_tile_bf16(R, C, t); }
MOEI_TILE_BF16(8, 1) MOEI_TILE_BF16(8, 2) MOEI_TILE_BF16(8, 3)
MOEI_TILE_BF16(4, 1) MOEI_TILE_BF16(4, 2) MOEI_TILE_BF16(4, 3) MOEI_TILE_BF16(4, 4) MOEI_TILE_BF16(4, 5) MOEI_TILE_BF16(4, 6)
static const moei_tiles moei_tiles_bf16[2] = {
    {8, 3, 2048, 32, 2, 1, {moei_tile_bf16_8x1, moei_tile_bf16_8x2, moei_tile_bf16_8x3}, NULL},
    {4, 6, 4096, 32, 2, 1, {moei_tile_bf16_4x1, moei_tile_bf16_4x2, moei_tile_bf16_4x3, moei_tile_bf16_4x4, moei_tile_bf16_4x5,
                            moei_tile_bf16_4x6}, NULL}};

static size_t moei_panel_bytes_bf16(uint32_t n_rows, size_t k) { return n_rows * moei_bf16_row_bytes(k); }
/* SHAPES      1 row x a group of C tokens, row after row, as moei_rows_avx512
   REGISTERS   lanes 0 to 7 and 8 to 15 of the sums: with loads of 256 bits AMD's prefetchers keep up (Zen 4: 34 GB/s, of 512 bits 28) */
MOEI_FORCE MOEI_BF16 __m256 moei_pairs_bf16(__m256 a, __m256i w, const uint8_t *x) {
    return _mm256_dpbf16_ps(a, (__m256bh)w, (__m256bh)_mm256_loadu_si256((const __m256i *)(const void *)x));
}
MOEI_FORCE const uint8_t *moei_line_bf16(const int C, const void *const *x, size_t k, int c) { /* of token c, from value k on */
    return (const uint8_t *)x[c / 3 * 3] + 2 * k * (size_t)(C < 3 ? C : c < 3 ? 3 : C - 3) + 64 * (c % 3);
}
MOEI_FORCE MOEI_BF16 void moei_rows_bf16(const int C, const moei_rows *w, uint32_t n_rows, const void *const *x, float *out,
                                         size_t out_stride) {
    uint32_t ask = w->ask;
    if (C == 1 && ask == MOEI_ASK_L2) ask = MOEI_ASK_NONE; /* Zen 4's: see moei_rows_avx512 */
    if (C > 1 && ask == MOEI_ASK_L1) ask = MOEI_ASK_L2;    /* several tokens have to stay in L1 */
    const size_t k_end = w->k & ~(size_t)31;
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint8_t *p = moei_row(w, r), *ahead = p + moei_ahead_of(w, n_rows, r, MOEI_AHEAD_BYTES);
        __m256 low[6], high[6];
        MOEI_UNROLL for (int c = 0; c < C; c++) low[c] = high[c] = _mm256_setzero_ps();
        for (size_t k = 0; k < k_end; k += 32) {
            const __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(p + 2 * k));
            const __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(p + 2 * k + 32));
            moei_ask(ask, p + 2 * k, ahead + 2 * k, 64);
            MOEI_UNROLL for (int c = 0; c < C; c++) {
                const uint8_t *line = moei_line_bf16(C, x, k, c);
                low[c] = moei_pairs_bf16(low[c], a, line), high[c] = moei_pairs_bf16(high[c], b, line + 32);
            }
        }
        const __m512i tail = _mm512_maskz_loadu_epi16(moei_mask_bf16(w->k - k_end), p + 2 * k_end);
        MOEI_UNROLL for (int c = 0; c < C; c++) {
            __m512 a = _mm512_insertf32x8(_mm512_castps256_ps512(low[c]), high[c], 1);
            if (k_end < w->k) a = _mm512_dpbf16_ps(a, (__m512bh)tail, (__m512bh)_mm512_loadu_si512(moei_line_bf16(C, x, k_end, c)));
            out[(size_t)c * out_stride + r] = moei_sum_avx512(a);
        }
    }
}
#define MOEI_ROWS_BF16(C) moei_rows_bf16(C, w, n_rows, x + i, out, out_stride)
MOEI_BF16 static void moei_dot_bf16(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                                    size_t out_stride) {
    /* k = 768, 5 and 6 tokens, cold, tile and rows, % of the peak: Zen 5 24 25 and 32 34, Zen 4 40 53 and 52 60. */
    if (!moei_few(n_rows, n_tokens, 6, 2 * w->k)) {
        moei_sweep(&moei_tiles_bf16[w->whole], w, n_rows, x, n_tokens, out, out_stride);
        return;
    }
    for (uint32_t i = 0; i < n_tokens; i += 6, out += 6 * out_stride)
        switch (n_tokens - i) {
        case 1: MOEI_ROWS_BF16(1); break;
        case 2: MOEI_ROWS_BF16(2); break;
        case 3: MOEI_ROWS_BF16(3); break;
        case 4: MOEI_ROWS_BF16(4); break;
        case 5: MOEI_ROWS_BF16(5); break;
        default: MOEI_ROWS_BF16(6);
        }
}
static void moei_panel_bf16(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                            float *out, size_t out_stride) {
    moei_rows rows = *w;
    rows.data = (const uint8_t *)panel, rows.row0 = 0, rows.row_stride = moei_bf16_row_bytes(w->k);
    rows.ask = MOEI_ASK_L2; /* as in moei_panel_avx512 */
    /* It is in the caches: nothing streams, and tiles are faster at once (Zen 4, 2, 3, 6 tokens, k = 768: 62 79 85 % of the peak, rows 36 47 65). */
    if (moei_few(n_rows, n_tokens, 1, 0)) moei_dot_bf16(&rows, n_rows, x, n_tokens, out, out_stride);
    else moei_sweep(&moei_tiles_bf16[w->whole], &rows, n_rows, x, n_tokens, out, out_stride);
}

/* f32, f16 and fp8 rows to bf16: the exact f32 value (fp8: rounded to f32 after its scale) to the nearest bf16, ties to even. */
MOEI_FORCE MOEI_BF16 void moei_store_bf16(void *to, __m512 low, __m512 high) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
MOEI_BF16 static void moei_prepare_bf16_avx512(void *row, const float *x, size_t k0, size_t n, size_t k) {
    uint16_t *o = (uint16_t *)row + k0;
    (void)k; /* n is no multiple of 32 at the end of the row only */
    for (size_t i = 0; i < n; i += 32) {
        __mmask32 m = moei_mask_bf16(n - i);
        __m512 high = _mm512_maskz_loadu_ps((__mmask16)(m >> 16), x + i + 16);
        moei_store_bf16(o + i, _mm512_maskz_loadu_ps((__mmask16)m, x + i), high);
    }
}
MOEI_BF16 static void moei_prepare_group_bf16(void *to, const float *x, size_t x_stride, uint32_t n, size_t k0, size_t len, size_t k) {
    uint8_t *o = (uint8_t *)to + 2 * k0 * n;
    (void)k;
    for (size_t i = 0; i < len; i += 32)
        for (uint32_t c = 0; c < n; c++, o += 64) moei_prepare_bf16_avx512(o, x + c * x_stride + i, 0, len - i < 32 ? len - i : 32, 32);
    moei_expect(o, 64 * n);
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
MOEI_FORCE MOEI_BF16 void moei_use_bf16(const int natural, const int C, const uint32_t R, size_t group, size_t k, const int j,
                                        const __m256 *a, const __m256 *b, const uint8_t *x, size_t odd, uint8_t *panel,
                                        moei_sums_e4m3 *sums) {
    __m256bh w[2];
    (void)natural, (void)odd;
    MOEI_UNROLL for (uint32_t i = 0; i < R; i++) w[i] = _mm256_cvtne2ps_pbh(b[i], a[i]);
    if (C == 0) _mm256_storeu_si256((__m256i *)(void *)(panel + 2 * k + 32 * (size_t)j), (__m256i)w[0]);
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        __m256bh xc = (__m256bh)_mm256_loadu_si256((const __m256i *)(const void *)(x + 2 * k * group + 64 * c + 32 * j));
        MOEI_UNROLL for (uint32_t i = 0; i < R; i++) sums[i][c][j] = _mm256_dpbf16_ps(sums[i][c][j], w[i], xc);
    }
}
MOEI_E4M3(bf16, MOEI_BF16, 1, 32, moei_use_bf16)

/* ---- fp8 by table, on AVX512-VBMI ----
   The 128 magnitudes times a scale are as many bf16 numbers, and a block of scales has many weights: their bytes in four registers
   are looked up, NaN and Inf like any others, in place of conversions, multiplications and the search for codes that f16 cannot be.
   SHAPES      4 rows x up to 3 tokens (a row's sum is one chain), 2 rows x 4 to 6, 1 row to a panel (C = 0)
   COST        of 64 weights 8 micro-ops for the first token. (8 rows x 1 token: 10 points of the read bandwidth slower, Zen 5.) */
typedef struct moei_table_e4m3 {
    uint8_t low[128], high[128]; /* bytes of bf16 */
} moei_table_e4m3;
enum { MOEI_TABLES_E4M3 = 128 }; /* at most */
/* The 128 values. Their fields are moved into those of f16. */
MOEI_FORCE MOEI_BF16 void moei_values_e4m3(float v[128]) {
    const __m256i lane = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int i = 0; i < 128; i += 16) {
        const __m256i codes = _mm256_add_epi16(lane, _mm256_set1_epi16((short)i));
        _mm512_storeu_ps(v + i, _mm512_mul_ps(_mm512_cvtph_ps(_mm256_slli_epi16(codes, 7)), _mm512_set1_ps(256.0f)));
    }
    v[127] = moei_float(0x7fc00000u);
}
MOEI_FORCE MOEI_BF16_VBMI void moei_fill_e4m3(const float v[128], float scale, moei_table_e4m3 *to) {
    const __m512i two = _mm512_set1_epi16(2), word = _mm512_cvtepi8_epi16(_mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
                                                                          16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31));
    const __m512i even = _mm512_add_epi16(_mm512_mullo_epi16(word, _mm512_set1_epi16(0x404)), _mm512_slli_epi16(two, 8));
    const __m512 by = _mm512_set1_ps(scale);
    MOEI_UNROLL for (int i = 0; i < 128; i += 64) {
        __m512i b[2];
        MOEI_UNROLL for (int j = 0; j < 2; j++) {
            const float *from = v + i + 32 * j;
            b[j] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_loadu_ps(from + 16), by), _mm512_mul_ps(_mm512_loadu_ps(from), by));
        }
        _mm512_storeu_si512(to->low + i, _mm512_permutex2var_epi8(b[0], even, b[1]));
        _mm512_storeu_si512(to->high + i, _mm512_permutex2var_epi8(b[0], _mm512_add_epi8(even, _mm512_set1_epi8(1)), b[1]));
    }
}
/* 64 codes to bf16, in order. */
MOEI_FORCE MOEI_BF16_VBMI void moei_look_e4m3(__m512i codes, const __m512i t[4], __m512i v[2]) {
    codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
    const __m512i low = _mm512_permutex2var_epi8(t[0], codes, t[1]), high = _mm512_permutex2var_epi8(t[2], codes, t[3]);
    const __m512i both = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(-128), 0x78); /* high ^ the sign */
    v[0] = _mm512_unpacklo_epi8(low, both), v[1] = _mm512_unpackhi_epi8(low, both);
}
/* MXFP8: 32 weights share a power of two, so there is one table of what codes are without it, and exponents are added to all but zeros.
   That is right where no sum leaves bf16's normal numbers; rows with other scales, or with a NaN, are done again from what
   moei_decode_row says. (Zen 5, one token in cache: 27 GB/s by conversions, 61 by table.) */
enum { MOEI_PART_MX = 1024, MOEI_NAN_MX = 15 }; /* weights whose scales are at hand; bits of a NaN that no number has */
typedef struct moei_mx {
    uint32_t add[4][MOEI_PART_MX / 32 + 16]; /* rows' exponents, twice 16 bits for every 32 weights */
    __mmask16 beyond;                           /* whether a scale was too small or too large */
} moei_mx;
/* Scales of n weights. */
MOEI_FORCE MOEI_BF16_VBMI void moei_scales_mx(const uint8_t *p, size_t n, uint32_t *add, moei_mx *mx) {
    for (size_t i = 0, left; i < (n + 31) / 32; i += 16) {
        left = (n + 31) / 32 - i;
        const __mmask16 some = (__mmask16)(left < 16 ? (1u << left) - 1 : 0xffff);
        const __m512i e = _mm512_cvtepu8_epi32(_mm_mask_loadu_epi8(_mm_set1_epi8(127), some, p + i));
        mx->beyond |= _mm512_cmpgt_epu32_mask(_mm512_sub_epi32(e, _mm512_set1_epi32(10)), _mm512_set1_epi32(246 - 10));
        const __m512i word = _mm512_slli_epi16(_mm512_sub_epi16(e, _mm512_set1_epi32(127)), 7);
        _mm512_storeu_si512(add + i, _mm512_mask_mov_epi16(_mm512_slli_epi32(word, 16), 0x55555555, word));
    }
}
MOEI_FORCE MOEI_BF16_VBMI __m512i moei_add_mx(__m512i v, uint32_t add) {
    return _mm512_mask_add_epi16(v, _mm512_test_epi16_mask(v, _mm512_set1_epi16(0x7fff)), v, _mm512_set1_epi32((int)add));
}
/* 64 codes (or what is left of them, up to 32 or more) of R rows: times C tokens, or (C = 0) to a panel. `mx` is NULL, or MXFP8's and
   `at` where its scales are; bits: of all weights so far, ored. */
MOEI_FORCE MOEI_BF16_VBMI void moei_step_table(const int C, const uint32_t R, const __m512i t[4], const __m512i *codes, const int two,
                                               const moei_mx *mx, size_t at, __m512i *bits, const void *const *x, size_t k, uint8_t *panel,
                                               __m512 sums[4][6]) {
    MOEI_UNROLL for (uint32_t i = 0; i < R; i++) {
        __m512i v[2];
        moei_look_e4m3(codes[i], t, v);
        if (mx) {
            *bits = _mm512_ternarylogic_epi32(*bits, v[0], v[1], 0xfe);
            v[0] = moei_add_mx(v[0], mx->add[i][at]);
            if (two) v[1] = moei_add_mx(v[1], mx->add[i][at + 1]);
        }
        if (C == 0) _mm512_storeu_si512(panel, v[0]);
        if (C == 0 && two) _mm512_storeu_si512(panel + 64, v[1]);
        MOEI_UNROLL for (int c = 0; c < C; c++) {
            sums[i][c] = _mm512_dpbf16_ps(sums[i][c], (__m512bh)v[0], (__m512bh)_mm512_loadu_si512(moei_line_bf16(C, x, k, c)));
            if (two) sums[i][c] = _mm512_dpbf16_ps(sums[i][c], (__m512bh)v[1], (__m512bh)_mm512_loadu_si512(moei_line_bf16(C, x, k + 32, c)));
        }
    }
}
/* Weights k .. end of R rows, of one table. */
MOEI_FORCE MOEI_BF16_VBMI void moei_block_table(uint32_t ask, const int C, const uint32_t R, const moei_table_e4m3 *table,
                                                const moei_mx *mx, __m512i *bits, const uint8_t *const *p, const uint8_t *const *later,
                                                size_t along, size_t k, size_t end, const void *const *x, uint8_t *panel, __m512 sums[4][6]) {
    const size_t whole = k + ((end - k) & ~(size_t)63), begin = k;
    __m512i t[4], codes[4];
    MOEI_UNROLL for (int i = 0; i < 2; i++) t[i] = _mm512_loadu_si512(table->low + 64 * i), t[2 + i] = _mm512_loadu_si512(table->high + 64 * i);
    for (; k < whole; k += 64) {
        MOEI_UNROLL for (uint32_t i = 0; i < R; i++) {
            if (C) moei_ask(ask, p[i] + k, later[i] + along * k, 64);
            codes[i] = _mm512_loadu_si512(p[i] + k);
        }
        moei_step_table(C, R, t, codes, 1, mx, (k - begin) / 32, bits, x, k, panel + 2 * k, sums);
    }
    if (k == end) return;
    MOEI_UNROLL for (uint32_t i = 0; i < R; i++) codes[i] = _mm512_maskz_loadu_epi8(((uint64_t)1 << (end - k)) - 1, p[i] + k);
    if (end - k > 32) moei_step_table(C, R, t, codes, 1, mx, (k - begin) / 32, bits, x, k, panel + 2 * k, sums);
    else moei_step_table(C, R, t, codes, 0, mx, (k - begin) / 32, bits, x, k, panel + 2 * k, sums);
}
MOEI_FORCE MOEI_BF16_VBMI void moei_fill_line_e4m3(const float v[128], const moei_rows *w, size_t line, size_t run, moei_table_e4m3 *tables) {
    const uint32_t type = w->scale.data ? w->scale.type : (uint32_t)MOE_TYPE_NONE;
    for (size_t b = 0; b * run < w->k; b++) {
        const uint8_t *scale = w->scale.data + line * w->scale.row_stride + b * moei_type_bytes[type];
        moei_fill_e4m3(v, type ? moei_scalar(type, scale) : 1.0f, &tables[b]);
    }
}
/* run: weights of a table along a row; MXFP8 (is_mx) has one. */
MOEI_FORCE MOEI_BF16_VBMI void moei_rows_table(const int is_mx, const int C, const moei_rows *w, uint32_t n_rows,
                                               const void *const *x, uint8_t *out, size_t out_stride, size_t run) {
    const uint32_t R = C == 0 ? 1 : C > 3 ? 2 : 4, tokens = (uint32_t)C;
    const size_t grid_rows = w->scale.data && !is_mx ? w->scale.rows : UINT32_MAX, rows = moei_rows_ahead(w, MOEI_AHEAD_BYTES);
    const int tight = w->row_stride == w->k; /* then they are prefetched in the order of memory (Zen 5, k = 2048, two cores: 92 % of the
                                                read bandwidth, to L1 95, row by row 77) */
    moei_table_e4m3 tables[MOEI_TABLES_E4M3];
    moei_mx mx;
    float v[128];
    moei_values_e4m3(v);
    if (is_mx) moei_fill_e4m3(v, 1.0f, tables), tables[0].low[127] |= MOEI_NAN_MX;
    for (uint32_t r = 0, n; r < n_rows; r += n) {
        const size_t in = (w->row0 + r) % grid_rows, left = grid_rows - in, rows_ahead = rows < R ? R : rows;
        const size_t ahead = moei_ahead_at(w, n_rows, r, rows_ahead);
        const uint8_t *p[4], *later[4], *scales[4];
        __m512 sums[4][6];
        if (!is_mx && (r == 0 || in == 0)) moei_fill_line_e4m3(v, w, (w->row0 + r) / grid_rows, run, tables);
        n = n_rows - r < R ? n_rows - r : R;
        if (left < n) n = (uint32_t)left;
        MOEI_UNROLL for (uint32_t i = 0; i < R; i++) {
            const uint32_t row = r + (i < n ? i : n - 1);
            p[i] = moei_row(w, row);
            later[i] = p[0] + ahead + (tight ? 64 : w->row_stride) * i;
            if (is_mx) scales[i] = moei_side_at(&w->scale, w->row0 + row, 0);
            if (is_mx && C) moei_side_ahead(&w->scale, w->row0 + row + rows_ahead, w->k / 32);
            MOEI_UNROLL for (int c = 0; c < C; c++) sums[i][c] = _mm512_setzero_ps();
        }
        uint8_t *panel = out + (C ? 0 : r * moei_bf16_row_bytes(w->k));
        __m512i bits = _mm512_setzero_si512();
        mx.beyond = 0;
        for (size_t k = 0, b = 0, end; k < w->k; k = end, b += !is_mx) {
            end = w->k - k < run ? w->k : k + run;
            MOEI_UNROLL for (uint32_t i = 0; i < R; i++)
                if (is_mx) moei_scales_mx(scales[i] + k / 32, end - k, mx.add[i], &mx);
            moei_block_table(w->ask, C, R, &tables[b], is_mx ? &mx : NULL, &bits, p, later, tight ? R : 1, k, end, x, panel, sums);
        }
        MOEI_UNROLL for (uint32_t i = 0; i < R; i++)
            MOEI_UNROLL for (int c = 0; c < C; c++)
                if (i < n) ((float *)(void *)out)[(size_t)c * out_stride + r + i] = moei_sum_avx512(sums[i][c]);
        if (is_mx && (mx.beyond || _mm512_test_epi16_mask(bits, _mm512_set1_epi16(MOEI_NAN_MX))))
            for (uint32_t i = 0; i < n; i++)
                for (uint32_t c = 0; c < tokens || !c; c += 3) {
                    float *to = C ? (float *)(void *)out + c * out_stride + r + i : (float *)(void *)panel;
                    moei_again_e4m3_bf16(w, r + i, tokens - c < 3 ? tokens - c : 3, C ? (const uint8_t *)x[c] : NULL, to, out_stride);
                }
    }
}
static int moei_is_mx(const moei_rows *w) {
    return w->scale.data && w->scale.type == MOE_TYPE_E8M0 && w->scale.rows == 1 && w->scale.cols == 32;
}
/* Weights of a table along a row, if there are tables for all of it, or 0. */
static size_t moei_run_e4m3(const moei_rows *w) {
    const size_t run = w->scale.data && w->scale.cols < w->k ? w->scale.cols : moei_round_up(w->k, 64);
    if (moei_is_mx(w)) return MOEI_PART_MX;
    return run % 64 == 0 && (w->k + run - 1) / run <= MOEI_TABLES_E4M3 ? run : 0;
}
#define MOEI_FEW_TABLE(is_mx, C) case C: moei_rows_table(is_mx, C, w, n_rows, x, (uint8_t *)out, out_stride, run); break
MOEI_FORCE MOEI_BF16_VBMI void moei_few_table(const int is_mx, const moei_rows *w, uint32_t n_rows, const void *const *x,
                                              uint32_t n, float *out, size_t out_stride, size_t run) {
    switch (n) {
        MOEI_FEW_TABLE(is_mx, 1);
        MOEI_FEW_TABLE(is_mx, 2);
        MOEI_FEW_TABLE(is_mx, 3);
        MOEI_FEW_TABLE(is_mx, 4);
        MOEI_FEW_TABLE(is_mx, 5);
        MOEI_FEW_TABLE(is_mx, 6);
    }
}
MOEI_BF16_VBMI static void moei_dot_e4m3_vbmi(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                                              size_t out_stride) {
    const size_t run = moei_run_e4m3(w);
    for (uint32_t i = 0; i < n_tokens && !run; i += 3)
        moei_dot_e4m3_bf16(w, n_rows, x + i, n_tokens - i < 3 ? n_tokens - i : 3, out + i * out_stride, out_stride);
    if (!run) return;
    if (moei_is_mx(w)) moei_few_table(1, w, n_rows, x, n_tokens, out, out_stride, run);
    else moei_few_table(0, w, n_rows, x, n_tokens, out, out_stride, run);
}
MOEI_BF16_VBMI static void moei_decode_fp8_vbmi(const moei_rows *w, uint32_t n_rows, void *panel) {
    const size_t run = moei_run_e4m3(w);
    if (!run) moei_decode_fp8_bf16(w, n_rows, panel);
    else if (moei_is_mx(w)) moei_rows_table(1, 0, w, n_rows, NULL, (uint8_t *)panel, 0, run);
    else moei_rows_table(0, 0, w, n_rows, NULL, (uint8_t *)panel, 0, run);
}

static const moei_packing moei_packing_bf16 = {3, 2, moei_pack_bf16, moei_prepare_group_bf16, NULL, NULL};
// clang-format off
#define MOEI_BF16_AVX512(fp8, most, ask, whole) {                                                                                   \
    MOE_COMPUTE_BF16, MOE_TIER_AVX512BF16, moei_bf16_row_bytes, moei_prepare_bf16_avx512, moei_panel_bytes_bf16, moei_panel_bf16, { \
        /* NONE         */ MOEI_NO_OPS,                                                                                             \
        /* F32          */ {NULL, moei_decode_f32_bf16, 0},                                                                         \
        /* F16          */ {NULL, moei_decode_f16_bf16, 0},                                                                         \
        /* BF16         */ {moei_dot_bf16, NULL, UINT32_MAX},                                                                       \
        /* Q8_0 - Q5_1  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                                         \
        /* Q2_K - Q6_K  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                                         \
        /* IQ4_NL, _XS  */ MOEI_NO_OPS, MOEI_NO_OPS,                                                                                \
        /* MXFP4, NVFP4 */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                                                      \
        /* MXFP8        */ {moei_dot_e4m3_##fp8, moei_decode_fp8_##fp8, most},                                                      \
        /* FP8_BLOCK    */ {moei_dot_e4m3_##fp8, moei_decode_fp8_##fp8, most},                                                      \
        /* FP8_CHANNEL  */ {moei_dot_e4m3_##fp8, moei_decode_fp8_##fp8, most},                                                      \
        /* INT8, INT4   */ MOEI_NO_OPS, MOEI_NO_OPS},                                                                               \
    &moei_packing_bf16, NULL, ask, whole, 1}
MOEI_TABLE const moei_arith moei_bf16_avx512bf16 = MOEI_BF16_AVX512(bf16, 3, MOEI_ASK_L2, 1);
MOEI_TABLE const moei_arith moei_bf16_avx512bf16_intel = MOEI_BF16_AVX512(bf16, 3, MOEI_ASK_BOTH, 0);
MOEI_TABLE const moei_arith moei_bf16_vbmi = MOEI_BF16_AVX512(vbmi, 6, MOEI_ASK_L2, 1);
MOEI_TABLE const moei_arith moei_bf16_vbmi_zen5 = MOEI_BF16_AVX512(vbmi, 6, MOEI_ASK_L1, 0);
MOEI_TABLE const moei_arith moei_bf16_vbmi_intel = MOEI_BF16_AVX512(vbmi, 6, MOEI_ASK_BOTH, 0);
// clang-format on
#endif

/* ==== >>amx: BF16 on AMX tiles ==========================================================================================
   SHAPES      32 rows (A: 2 tiles of 16 rows x 32 values, where the weights lie) x 32 tokens (B: 2 tiles of 16 pairs x 16 tokens)
   DEFINITION  all of it with subnormals in and out taken as zeros, k padded with zeros to whole blocks of 32: for each block in
               ascending k, e = the FMA chain from 0 over its even k, o = the one over its odd k, sum = sum + (e + o). That is what
               one TDPBF16PS does (Intel SDM, volume 2), so every k is summed in the same order however rows, tokens and k are cut.
   REGISTERS   4 sums, 1 A, 2 B; 4 tile loads per 4 products of 16 cycles. The eighth tile stays unused: where a core's other thread is
               busy and all are in use, loads wait for earlier products (Xeon, model 207, in L1, cycles of the TSC a product: 57 to 67 with 8
               tiles, 40 to 45 with 7; without such a neighbour 15.5 with either).
   Weights are used as the A operand, where they lie: nothing of bf16 rows is copied but those fewer than a tile's and a part that ends within
   a block of 32. Rows of other formats are decoded, a part at a time, to a panel in L1.
   Tokens come packed as B in groups of up to 16: dword i of token c of a group of n at i * n + c. A tile is always loaded with
   16 columns; those beyond n are the next pairs' values, and their sums are not stored. One token is packed as it is.
   Tiles are configured once per task, all alike, and released at its end (moei_packing).
   COST        (the same Xeon, one core: 16 GB/s, 2300 GFLOP/s) of a product with one tile load, from L1 15.5 cycles, from L2 20, rows 4 KB
               apart 23, with sums that wait between parts 27; results turned and stored 2 more. Lines from L2 and from memory share a core's
               16 buffers for misses, so rows from memory add what they take by themselves: a prefetch among loads from L2 costs 7 to 8 cycles,
               a line that is waited for 9.6. All rows prefetched by instructions: 474 GFLOP/s (64 tokens, k = 2048), nothing prefetched
               570, in parts of 16 blocks of k, of which the hardware's prefetchers fetch the next while tokens pass over one, 650, with the first
               lines of the next rows 700. Reached: 16 tokens 95 % of the read bandwidth, 32 80, 64 72, 128 tokens 45 % of
               the peak. Not faster: rows copied to a panel in L1 (0.75), tokens of the next step prefetched to L1 (0.98), parts of 8 or 32;
               of other formats the next part decoded between products (0.9). Nor would int8 tiles be for Q8: 32 rows x 32 tokens x 32 values take 113
               cycles with what stores them and 97 for scales and the sums of 8 lanes, 275 together: 500 GOP/s without decoding, as fast as VNNI. */

#if MOEI_HAVE_AMX
/* No intrinsics: gcc's don't tell that they read memory. */
#define MOEI_TILE_CONFIG(p) __asm__ volatile("ldtilecfg %0" : : "m"(*(const uint8_t(*)[64])(p)))
#define MOEI_TILE_RELEASE(none) __asm__ volatile("tilerelease" : : : "memory")
#define MOEI_TILE_ZERO(t) __asm__ volatile("tilezero {%%tmm" #t "|tmm" #t "}" : : : "memory")
#define MOEI_TILE_LOAD(t, p, stride)                                                                                      \
    __asm__ volatile("tileloadd {(%0,%1,1), %%tmm" #t "|tmm" #t ", [%0+%1*1]}" : : "r"(p), "r"((size_t)(stride)) : "memory")
#define MOEI_TILE_STORE(t, p, stride)                                                                                     \
    __asm__ volatile("tilestored {%%tmm" #t ", (%0,%1,1)|[%0+%1*1], tmm" #t "}" : : "r"(p), "r"((size_t)(stride)) : "memory")
#define MOEI_TILE_DOT(c, a, b)                                                                                            \
    __asm__ volatile("tdpbf16ps {%%tmm" #b ", %%tmm" #a ", %%tmm" #c "|tmm" #c ", tmm" #a ", tmm" #b "}" : : : "memory")
#ifndef MOEI_TILE /* tests replace these three, to run the same code on any processor */
#define MOEI_TILE(op, ...) MOEI_TILE_##op(__VA_ARGS__)
#define MOEI_AMX_ROLE(f) f
#define MOEI_AMX MOEI_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#endif
#define MOEI_AMX_TOKENS 256u /* at a time */
#define MOEI_AMX_STEPS 16u   /* blocks of 32 values of k at a time: 1 KB of each row, about as much as the prefetchers are ahead */
#define MOEI_AMX_X_BYTES ((size_t)512 << 10) /* of tokens that stay in L2 while rows pass */

static void moei_begin_amx(void) {
    uint8_t config[64] = {1}; /* palette 1 */
    for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = 16; /* bytes per row, rows */
    MOEI_TILE(CONFIG, config);
}
static void moei_end_amx(void) { MOEI_TILE(RELEASE, 0); }

/* 16 x 16 dwords transposed: to[j][i] = from[i][j] for i < n, j < m; the other rows of `from` are not read. */
MOEI_BF16 static void moei_transpose_amx(const uint8_t *const *from, uint32_t n, uint8_t *to, size_t to_stride, uint32_t m) {
    const __mmask16 mask = moei_mask_avx512(n);
    __m512i v[16], t[16];
    MOEI_UNROLL for (uint32_t i = 0; i < 16; i++) v[i] = i < n ? _mm512_loadu_si512(from[i]) : _mm512_setzero_si512();
    MOEI_UNROLL for (uint32_t i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    MOEI_UNROLL for (uint32_t i = 0; i < 16; i += 4) { /* lane l of v[i + c]: column 4 l + c of rows i .. i + 3 */
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    MOEI_UNROLL for (uint32_t c = 0; c < 4; c++) {
        __m512i a = _mm512_shuffle_i32x4(v[c], v[c + 4], 0x88), b = _mm512_shuffle_i32x4(v[c + 8], v[c + 12], 0x88);
        __m512i d = _mm512_shuffle_i32x4(v[c], v[c + 4], 0xdd), e = _mm512_shuffle_i32x4(v[c + 8], v[c + 12], 0xdd);
        t[c] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[c + 4] = _mm512_shuffle_i32x4(d, e, 0x88);
        t[c + 8] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[c + 12] = _mm512_shuffle_i32x4(d, e, 0xdd);
    }
    MOEI_UNROLL for (uint32_t j = 0; j < 16; j++)
        if (j < m) _mm512_mask_storeu_epi32(to + j * to_stride, mask, t[j]);
}
static void moei_pack_amx(void *to, const void *const *x, uint32_t n, size_t k0, size_t len, size_t k) {
    const uint8_t *from[16];
    (void)k;
    for (size_t s = 0; s < (len + 31) / 32; s++) {
        for (uint32_t i = 0; i < n; i++) from[i] = (const uint8_t *)x[i] + 64 * s;
        MOEI_AMX_ROLE(moei_transpose_amx)(from, n, (uint8_t *)to + 2 * k0 * n + 64 * n * s, 4 * n, 16);
    }
}

typedef struct moei_amx { /* a part of k of up to 32 rows and 32 tokens */
    size_t steps;
    const uint8_t *a;                         /* 16 rows, and 16 more */
    size_t a_row;                             /* bytes from row to row */
    const uint8_t *b[2], *b_last[2];          /* two groups of tokens; of the last step, whose tile may lie elsewhere */
    size_t b_row[2];                          /* (16 of them from step to step) */
    uint8_t *sums;                            /* [4] tiles */
    int first;                                /* they begin at 0 */
    const uint8_t *next;                      /* what is read next, so many bytes of 32 rows */
    size_t next_row, next_bytes;
} moei_amx;
MOEI_FORCE MOEI_AMX void moei_pass_amx(const int M, const int N, const moei_amx *p) {
    if (p->first) {
        MOEI_TILE(ZERO, 0);
        if (N == 2) MOEI_TILE(ZERO, 1);
        if (M == 2) MOEI_TILE(ZERO, 2);
        if (M * N == 4) MOEI_TILE(ZERO, 3);
    } else {
        MOEI_TILE(LOAD, 0, p->sums, 64);
        if (N == 2) MOEI_TILE(LOAD, 1, p->sums + 1024, 64);
        if (M == 2) MOEI_TILE(LOAD, 2, p->sums + 2048, 64);
        if (M * N == 4) MOEI_TILE(LOAD, 3, p->sums + 3072, 64);
    }
    for (size_t s = 0; s < p->steps; s++) {
        const int last = s + 1 == p->steps;
        const uint8_t *a = p->a + 64 * s, *next = p->next + 2 * s * p->next_row;
        MOEI_TILE(LOAD, 6, (last ? p->b_last[0] : p->b[0] + 16 * s * p->b_row[0]), p->b_row[0]);
        if (N == 2) MOEI_TILE(LOAD, 7, (last ? p->b_last[1] : p->b[1] + 16 * s * p->b_row[1]), p->b_row[1]);
        for (size_t i = 0; i < p->next_bytes; i += 64) {
            MOEI_PREFETCH_L2(next + i);
            MOEI_PREFETCH_L2(next + i + p->next_row);
        }
        MOEI_TILE(LOAD, 4, a, p->a_row);
        MOEI_TILE(DOT, 0, 4, 6);
        if (N == 2) MOEI_TILE(DOT, 1, 4, 7);
        if (M == 2) {
            MOEI_TILE(LOAD, 4, a + 16 * p->a_row, p->a_row);
            MOEI_TILE(DOT, 2, 4, 6);
            if (N == 2) MOEI_TILE(DOT, 3, 4, 7);
        }
    }
    MOEI_TILE(STORE, 0, p->sums, 64);
    if (N == 2) MOEI_TILE(STORE, 1, p->sums + 1024, 64);
    if (M == 2) MOEI_TILE(STORE, 2, p->sums + 2048, 64);
    if (M * N == 4) MOEI_TILE(STORE, 3, p->sums + 3072, 64);
}
MOEI_AMX static void moei_pass_amx_any(int two_a, int two_b, const moei_amx *p) {
    if (two_a && two_b) moei_pass_amx(2, 2, p);
    else if (two_a) moei_pass_amx(2, 1, p);
    else if (two_b) moei_pass_amx(1, 2, p);
    else moei_pass_amx(1, 1, p);
}

/* Up to MOEI_AMX_TOKENS tokens of a call: x[16 i] is group i. */
typedef struct moei_amx_call {
    const moei_rows *w;
    const void *const *x;
    moei_decode_fn *decode; /* moei_copy_amx: mostly in place */
    uint32_t n_rows, n_tokens;
    size_t steps, part;     /* of all of k; the most at a time */
    int by_view;            /* decode may be given a part of the rows */
    uint8_t *panel;         /* a part of the rows where they cannot be read in place: [32][64 part], or [16] of the longer parts in place */
    uint8_t *x_end;         /* the last step of the last group, where a tile would read beyond it: 17 lines */
    uint8_t *sums;          /* [blocks of rows at a time][blocks of tokens][4] tiles */
    float *out;
    size_t out_stride;
} moei_amx_call;
/* bf16 rows to a panel, padded with zeros. */
static void moei_copy_amx(const moei_rows *w, uint32_t n_rows, void *panel) {
    const size_t bytes = 2 * w->k, row = moei_bf16_row_bytes(w->k);
    uint8_t *to = (uint8_t *)panel;
    for (uint32_t r = 0; r < n_rows; r++, to += row) memcpy(to, moei_row(w, r), bytes), memset(to + bytes, 0, row - bytes);
}
/* Weights k .. k + n of n_rows rows to the panel. */
static void moei_panel_part_amx(const moei_amx_call *c, uint32_t row, uint32_t n_rows, size_t k, size_t n) {
    const moei_layout *l = &moei_layouts[c->w->format];
    moei_rows part = *c->w;
    float values[32 * MOEI_AMX_STEPS];
    part.data += k / l->n * l->bytes, part.k = n, part.row0 += row;
    if (part.scale.data) part.scale.data += k / part.scale.cols * moei_type_bytes[part.scale.type];
    if (c->by_view) c->decode(&part, n_rows, c->panel);
    for (uint32_t r = 0; r < n_rows && !c->by_view; r++) {
        moei_decode_row(c->w, row + r, k, n, values);
        MOEI_AMX_ROLE(moei_prepare_bf16_avx512)(c->panel + r * moei_bf16_row_bytes(n), values, 0, n, n);
    }
}
static void moei_rows_amx(const moei_amx_call *c, uint32_t row, uint32_t tall, size_t s, moei_amx *p) {
    const size_t k = 32 * s, n = moei_min(c->w->k - k, 32 * p->steps);
    p->a = moei_row(c->w, row) + 2 * k, p->a_row = c->w->row_stride;
    if (c->decode == moei_copy_amx && c->n_rows >= tall && n == 32 * p->steps) return;
    p->a = c->panel, p->a_row = 64 * p->steps;
    if (c->n_rows < tall) memset(c->panel, 0, tall * p->a_row);
    moei_panel_part_amx(c, row, moei_min32(c->n_rows, tall), k, n);
}
static void moei_tokens_amx(const moei_amx_call *c, uint32_t t, size_t s, moei_amx *p) {
    for (int i = 0; i < 2 && t < c->n_tokens; i++, t += 16) {
        const size_t n = moei_min32(c->n_tokens - t, 16);
        p->b[i] = (const uint8_t *)c->x[t] + 64 * n * s, p->b_row[i] = 4 * n;
        p->b_last[i] = n < 16 && s + p->steps == c->steps ? c->x_end : p->b[i] + 64 * n * (p->steps - 1);
    }
}
/* Sums of `tall` rows and 32 tokens to out[token][row]. */
static void moei_give_amx(const moei_amx_call *c, uint32_t row, uint32_t tall, uint32_t t, const uint8_t *sums) {
    const uint32_t end = moei_min32(t + 32, c->n_tokens);
    const uint8_t *from[16];
    for (; t < end; t += 16, sums += 1024)
        for (uint32_t r = 0; r < tall; r += 16) {
            float *out = c->out + t * c->out_stride + row + r;
            for (uint32_t i = 0; i < 16; i++) from[i] = sums + 128 * r + 64 * i;
            MOEI_AMX_ROLE(moei_transpose_amx)(from, moei_min32(c->n_rows, 16), (uint8_t *)out, 4 * c->out_stride, moei_min32(end - t, 16));
        }
}
/* The products of rows from `row` on are followed by those of rows from `next` on, from step s. The hardware's prefetchers are slow to
   begin with a row, so its first lines are prefetched; and all of what is decoded, for which memory has time while products come from a panel. */
static void moei_next_amx(const moei_amx_call *c, uint32_t row, uint32_t next, size_t s, moei_amx *p) {
    const moei_layout *l = &moei_layouts[c->w->format];
    const size_t at = 32 * s / l->n * l->bytes, begun = next == row;
    p->next = (next < c->n_rows || !c->w->prefetch ? moei_row(c->w, next) : c->w->prefetch) + at;
    p->next_bytes = c->decode != moei_copy_amx ? 32 * c->part / l->n * l->bytes : begun ? 0 : 128;
}
/* Steps from .. end of `tall` rows. */
static void moei_block_amx(const moei_amx_call *c, uint32_t row, uint32_t tall, size_t from, size_t end, uint8_t *sums) {
    moei_amx p;
    memset(&p, 0, sizeof p);
    p.next = moei_row(c->w, row), p.next_row = c->w->row_stride;
    for (size_t s = from; s < end; s += p.steps) {
        p.steps = moei_min(end - s, c->part), p.first = s == 0, p.next_bytes = 0;
        moei_rows_amx(c, row, tall, s, &p);
        for (uint32_t t = 0; t < c->n_tokens; t += 32) {
            const int more = s + p.steps < end, last = c->n_tokens - t <= 32;
            p.sums = sums + 128 * t;
            moei_tokens_amx(c, t, s, &p);
            if (last) moei_next_amx(c, row, more ? row : row + tall, more ? s + p.steps : from, &p);
            moei_pass_amx_any(tall > 16, c->n_tokens - t > 16, &p);
        }
    }
    for (uint32_t t = 0; t < c->n_tokens && end == c->steps; t += 32) moei_give_amx(c, row, tall, t, sums + 128 * t);
}
/* Blocks of 32 rows: one after the other; or, where the tokens do not stay in L2, as many as `sums` has room for meet as much of k as does.
   The last rows lie in a whole tile that begins before them, if there are enough. */
static void moei_blocks_amx(moei_amx_call *c) {
    const size_t sums = 128 * (((size_t)c->n_tokens + 31) / 32 * 32), room = c->w->n_sums * sizeof(float) / sums;
    const size_t fits = MOEI_AMX_X_BYTES / (64 * (size_t)c->n_tokens) / c->part * c->part, spans = fits < c->steps && room > 1;
    const size_t span = spans ? fits : c->steps, blocks = ((size_t)c->n_rows + 31) / 32, turns = spans ? (blocks + room - 1) / room : blocks;
    const uint32_t rows = (uint32_t)((blocks + turns - 1) / turns * 32);
    if (spans) c->sums = (uint8_t *)c->w->sums;
    for (uint32_t r0 = 0; r0 < c->n_rows; r0 += rows)
        for (size_t s = 0; s < c->steps; s += span)
            for (uint32_t r = r0, end; r < r0 + rows && r < c->n_rows; r = end) {
                const uint32_t tall = c->n_rows - r > 16 && c->n_rows >= 32 ? 32 : 16;
                end = moei_min32(r + tall, c->n_rows);
                moei_block_amx(c, end > tall ? end - tall : 0, tall, s, moei_min(s + span, c->steps), c->sums + (r - r0 + 31) / 32 * sums);
            }
}
/* Steps of a part: even parts; in place up to half as many more, rather than few. Those of a panel must have scales that are whole columns of
   the grid or lie in one; 0 = there are no such parts. */
static size_t moei_part_amx(const moei_side *scale, size_t steps, int in_place) {
    const size_t parts = (steps + (in_place ? MOEI_AMX_STEPS / 2 : MOEI_AMX_STEPS) - 1) / MOEI_AMX_STEPS;
    size_t part = parts > 1 ? (steps + parts - 1) / parts : steps;
    if (scale->data) part = MOEI_AMX_STEPS;
    while (scale->data && part && 32 * part % scale->cols && scale->cols % (32 * part)) part--;
    return part;
}
static void moei_dot_by_amx(moei_decode_fn *decode, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                            size_t out_stride) {
    uint8_t memory[128 * MOEI_AMX_TOKENS + 2048 * MOEI_AMX_STEPS + 64 * 17 + 63], *room = memory + (-(uintptr_t)memory & 63);
    const size_t steps = (w->k + 31) / 32, part = moei_part_amx(&w->scale, steps, decode == moei_copy_amx && w->k % 32 == 0);
    moei_amx_call c;
    c.w = w, c.decode = decode, c.n_rows = n_rows, c.steps = steps, c.out_stride = out_stride;
    c.part = part ? part : MOEI_AMX_STEPS, c.by_view = part != 0;
    c.panel = room + 128 * MOEI_AMX_TOKENS, c.x_end = c.panel + 2048 * MOEI_AMX_STEPS;
    for (uint32_t t = 0; t < n_tokens; t += MOEI_AMX_TOKENS) {
        c.x = x + t, c.n_tokens = moei_min32(n_tokens - t, MOEI_AMX_TOKENS), c.out = out + t * out_stride, c.sums = room;
        const size_t ragged = c.n_tokens % 16, line = 64 * ragged;
        memset(c.x_end + line, 0, 64);
        if (ragged) memcpy(c.x_end, (const uint8_t *)c.x[c.n_tokens - ragged] + line * (c.steps - 1), line);
        moei_blocks_amx(&c);
    }
}
#define MOEI_DOT_AMX(name, decode)                                                                                           \
    static void moei_dot_amx_##name(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out, \
                                    size_t out_stride) {                                                                      \
        moei_dot_by_amx(decode, w, n_rows, x, n_tokens, out, out_stride);                                                     \
    }
MOEI_DOT_AMX(bf16, moei_copy_amx)
MOEI_DOT_AMX(f32, MOEI_AMX_ROLE(moei_decode_f32_bf16))
MOEI_DOT_AMX(f16, MOEI_AMX_ROLE(moei_decode_f16_bf16))
MOEI_DOT_AMX(fp8, MOEI_AMX_ROLE(moei_decode_fp8_bf16))
MOEI_DOT_AMX(fp8_vbmi, MOEI_AMX_ROLE(moei_decode_fp8_vbmi))
static void moei_panel_amx(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens,
                           float *out, size_t out_stride) {
    moei_rows rows = *w;
    rows.data = (const uint8_t *)panel, rows.row0 = 0, rows.row_stride = moei_bf16_row_bytes(w->k), rows.k = rows.row_stride / 2;
    rows.format = MOE_FORMAT_BF16, rows.scale.data = NULL;
    moei_dot_amx_bf16(&rows, n_rows, x, n_tokens, out, out_stride);
}

static const moei_packing moei_packing_amx = {16, 2, moei_pack_amx, NULL, moei_begin_amx, moei_end_amx};
// clang-format off
#define MOEI_BF16_AMX(fp8) {                                                                                                 \
    MOE_COMPUTE_BF16, MOE_TIER_AMX, moei_bf16_row_bytes, MOEI_AMX_ROLE(moei_prepare_bf16_avx512), moei_panel_bytes_bf16,     \
    moei_panel_amx, {                                                                                                        \
        /* NONE         */ MOEI_NO_OPS,                                                                                      \
        /* F32          */ {moei_dot_amx_f32, NULL, UINT32_MAX},                                                             \
        /* F16          */ {moei_dot_amx_f16, NULL, UINT32_MAX},                                                             \
        /* BF16         */ {moei_dot_amx_bf16, NULL, UINT32_MAX},                                                            \
        /* Q8_0 - Q5_1  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                                  \
        /* Q2_K - Q6_K  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                                  \
        /* IQ4_NL, _XS  */ MOEI_NO_OPS, MOEI_NO_OPS,                                                                         \
        /* MXFP4, NVFP4 */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                                               \
        /* MXFP8        */ {moei_dot_amx_##fp8, NULL, UINT32_MAX},                                                           \
        /* FP8_BLOCK    */ {moei_dot_amx_##fp8, NULL, UINT32_MAX},                                                           \
        /* FP8_CHANNEL  */ {moei_dot_amx_##fp8, NULL, UINT32_MAX},                                                           \
        /* INT8, INT4   */ MOEI_NO_OPS, MOEI_NO_OPS},                                                                        \
    &moei_packing_amx, NULL, MOEI_ASK_L2, 0, 4}
MOEI_TABLE const moei_arith moei_bf16_amx = MOEI_BF16_AMX(fp8);
MOEI_TABLE const moei_arith moei_bf16_amx_vbmi = MOEI_BF16_AMX(fp8_vbmi);
// clang-format on
#endif
#if MOEI_HAVE_AVX512 && defined(__cplusplus) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic pop
#endif

/* ==== >>q8: Q8 on AVX2, AVX-VNNI and AVX512-VNNI =======================================================================
   LAYOUT      A step is 8 blocks of 32 weights of one row, and lane b of every vector of 8 belongs to block b. Its weights come as
               bytes, unsigned with a constant offset (on AVX2 wide formats signed), 4 weights of each block per register of 256 bits,
               8 per register of 512; its scales as moei_q8s, the same on both. So dot products add up in place: what puts weights
               there is paid once per step and not once per token.
   DEFINITION  acc = fma((float)isum, D * d_x, acc) per block, 8 accumulators by block mod 8, tree 4 2 1, + 0.0f; see >>reference.
               isum is exact, so it may be computed in any way: unsigned weights give sum(u q) - offset * sum(q), and the sums of
               q come with the prepared row.
   LIMITS      vpmaddubsw saturates when two products exceed 32767: unsigned weights up to 129 are safe, 8-bit weights and the
               IQ4 table are not and go as |w| x sign(q, w). Of u <= 63 two products fit 16 bits twice over, of u <= 32 four times. */
#if MOEI_HAVE_AVX512 && defined(__cplusplus) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic push /* as in >>avx512 */
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#if MOEI_HAVE_AVX2 && MOEI_HAVE_Q8

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
MOEI_FORCE int moei_q8_has_halves(uint32_t f) { return moei_q8_has_sub(f) || moei_q8_is_nvfp4(f); } /* scales per 16 */
MOEI_FORCE int moei_q8_is_e2m1(uint32_t f) {
    return moei_q8_is_nvfp4(f) || f == MOE_FORMAT_MXFP4 || f == MOE_FORMAT_MXFP4_HF;
}
MOEI_FORCE int moei_q8_has_table(uint32_t f) { return moei_q8_is_e2m1(f) || f == MOE_FORMAT_IQ4_NL || f == MOE_FORMAT_IQ4_XS; }
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
/* Nibbles are in order. */
MOEI_FORCE int moei_q8_has_order(uint32_t f) { return f == MOE_FORMAT_MXFP4_HF || f == MOE_FORMAT_NVFP4_HF || f == MOE_FORMAT_INT4_GROUP; }
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
    const __m128i h = moei_q8_ld128(p), low = _mm_srlv_epi32(_mm_shuffle_epi32(h, 0xed), _mm_setr_epi32(0, 0, 0, 4)); /* dwords 1 3 2 3 */
    const __m128i high = _mm_and_si128(_mm_srli_epi32(_mm_shuffle_epi32(h, 0xa5), 2), _mm_setr_epi32(0, 0x30303030, 0, 0x30303030)); /* 1 1 2 2 */
    const __m128i b = _mm_or_si128(high, _mm_and_si128(low, _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f)));
    const __m128 f = _mm_xor_ps(_mm_cvtph_ps(h), _mm_setr_ps(0.0f, -0.0f, 0.0f, 0.0f));
    *d = _mm256_mul_ps(_mm256_broadcastss_ps(f), moei_q8_i8f(b));
    *m = _mm256_mul_ps(_mm256_broadcastss_ps(_mm_movehdup_ps(f)), moei_q8_i8f(_mm_unpackhi_epi64(b, b)));
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
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_side_of(uint32_t type, __m256i from, float factor, int shift) {
    const __m128i low = _mm256_castsi256_si128(from);
    __m256i v = _mm256_setzero_si256(), nan = v;
    switch (type) {
    case MOE_TYPE_U8: return _mm256_cvtepu8_epi32(_mm_min_epu8(low, _mm_set1_epi8(127))); /* as the reference */
    case MOE_TYPE_U4X8: return _mm256_and_si256(_mm256_srlv_epi32(from, _mm256_set1_epi32(shift)), _mm256_set1_epi32(15));
    case MOE_TYPE_F32: v = from; break;
    case MOE_TYPE_F16: v = _mm256_castps_si256(_mm256_cvtph_ps(low)); break;
    case MOE_TYPE_BF16: v = _mm256_slli_epi32(_mm256_cvtepu16_epi32(low), 16); break;
    case MOE_TYPE_E8M0:
        v = _mm256_cvtepu8_epi32(low), nan = _mm256_cmpeq_epi32(v, _mm256_set1_epi32(255));
        v = _mm256_max_epi32(_mm256_slli_epi32(v, 23), _mm256_set1_epi32(0x400000));
        break;
    default: { /* E4M3: as half floats 2^-8 too small */
        const __m128i top = _mm_set1_epi16(0x3f80), fields = _mm_set1_epi16((short)0xbf80);
        __m128i b = _mm_and_si128(_mm_slli_epi16(_mm_cvtepi8_epi16(low), 7), fields);
        nan = _mm256_cvtepi16_epi32(_mm_cmpeq_epi16(_mm_and_si128(b, top), top));
        return _mm256_or_si256(_mm256_castps_si256(_mm256_mul_ps(_mm256_cvtph_ps(b), _mm256_set1_ps(256.0f * factor))), nan);
    }
    }
    v = _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(v), _mm256_set1_ps(factor)));
    return _mm256_or_si256(v, nan);
}
MOEI_FORCE size_t moei_q8_side_bytes(uint32_t type) {
    return type == MOE_TYPE_F32 || type == MOE_TYPE_U4X8 ? 4 : type == MOE_TYPE_F16 || type == MOE_TYPE_BF16 ? 2 : 1;
}
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_side8(uint32_t type, const uint8_t *p, float factor, int shift) {
    const size_t size = moei_q8_side_bytes(type);
    const __m256i from = size == 4 ? moei_q8_ld256(p) : _mm256_castsi128_si256(size == 2 ? moei_q8_ld128(p) : moei_q8_ld64(p));
    return moei_q8_side_of(type, from, factor, shift);
}
/* out[0 .. n) = the row's values for units of `unit` weights from unit i on; up to out[n + 7] is written. The grid's cols is a
   multiple of unit; a power of two of units (and i a multiple of it) is spread by permutation, others one by one. */
MOEI_FORCE MOEI_AVX2 void moei_q8_side_fill(uint32_t type, const moei_side *s, size_t row, size_t unit, size_t i, size_t n,
                                            float factor, int32_t *out) {
    const size_t size = moei_q8_side_bytes(type), per = s->cols / unit, line = row / s->rows, fast = (per & (per - 1)) == 0 && i % per == 0;
    const uint8_t *p = s->data + (type == MOE_TYPE_U4X8 ? line / 8 : line) * s->row_stride + i / per * size;
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    size_t left = (i + n - 1) / per + 1 - i / per, skip = i % per, log2 = 0;
    for (; per == 1 && left >= 8; p += 8 * size, left -= 8, out += 8)
        _mm256_storeu_si256((__m256i *)out, moei_q8_side8(type, p, factor, (int)(4 * (line % 8))));
    for (int32_t *end = out + (per == 1 ? left : n); out < end; p += 8 * size, left -= 8) {
        uint8_t tail[32] = {0};
        __m256i v = moei_q8_side8(type, left < 8 ? (const uint8_t *)memcpy(tail, p, left * size) : p, factor, (int)(4 * (line % 8)));
        if (per == 1) {
            _mm256_storeu_si256((__m256i *)out, v), out += 8;
            continue;
        }
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
MOEI_FORCE MOEI_AVX2 void moei_q8_side_rest(int32_t *to, size_t i, size_t end, int32_t value) { /* end: a multiple of 8 */
    for (; i % 8; i++) to[i] = value;
    for (; i < end; i += 8) _mm256_storeu_si256((__m256i *)(void *)(to + i), _mm256_set1_epi32(value));
}
/* Scales and zero points of MOEI_Q8_CHUNK steps from step i of row r; what is beyond the row's end counts as 1 (8). */
static MOEI_AVX2 MOEI_NOINLINE void moei_q8_sides(uint32_t f, const moei_rows *w, size_t r, size_t i, moei_q8side *side) {
    const size_t unit = moei_q8_is_nvfp4(f) ? 16 : 32, first = i * 256 / unit, room = MOEI_Q8_CHUNK * 256 / unit, all = w->k / unit - first;
    const size_t n = all < room ? all : room, padded = (n + 256 / unit - 1) & ~(256 / unit - 1);
    const float factor = moei_q8_is_e2m1(f) ? 0.5f : 1.0f;
    if (w->scale.data) moei_q8_side_values(&w->scale, w->row0 + r, unit, first, n, factor, side->d);
    moei_q8_side_rest(side->d, w->scale.data ? n : 0, padded, (int32_t)moei_bits(factor));
    if (f != MOE_FORMAT_INT4_GROUP) return;
    if (w->zero.data) moei_q8_side_values(&w->zero, w->row0 + r, unit, first, n, factor, side->zero);
    moei_q8_side_rest(side->zero, w->zero.data ? n : 0, padded, 8);
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
/* A dword of each of 4 rows or blocks. (Of _mm_setr_epi32 gcc makes vectors in memory, written in parts: Q5_1 on AVX2, one core of a Zen 5,
   10 GB/s, inserted 20.) */
MOEI_FORCE MOEI_AVX2 __m128i moei_q8_dwords4(const uint8_t *p, size_t stride) {
    __m128i v = moei_q8_ld32(p);
    v = _mm_insert_epi32(v, (int)moei_q8_u32(p + stride), 1), v = _mm_insert_epi32(v, (int)moei_q8_u32(p + 2 * stride), 2);
    return _mm_insert_epi32(v, (int)moei_q8_u32(p + 3 * stride), 3);
}
MOEI_FORCE MOEI_AVX2 void moei_q8_scales_nvfp4(const uint8_t *p, moei_q8s *s) {
    __m128i b = moei_q8_dwords4(p, 36);
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

/* A row of scales or zero points that live apart, straight from memory: where each belongs to a power of two of blocks. Through memory
   (moei_q8_sides) they take as long as half the weights (Zen 5, in cache: MXFP4_HF 34 GB/s, now 44; AVX2 20, now 23). */
typedef struct moei_q8grid {
    const uint8_t *p;
    size_t log2, n, few; /* blocks of each; of a row; enough for a step */
    int shift;      /* of the row's nibble in U4X8 */
    __m128i spread; /* words to blocks */
} moei_q8grid;
MOEI_FORCE size_t moei_q8_log2(size_t n) { /* of a power of two, else 32 */
    size_t i = 0;
    while (i < 32 && (size_t)1 << i != n) i++;
    return i;
}
/* What is taken apart on the way. */
MOEI_FORCE int moei_q8_grid_is(uint32_t f, const moei_side *scale, const moei_side *zero) {
    if (!moei_q8_has_side(f)) return 0;
    if (!scale->data) return f == MOE_FORMAT_INT8_CHANNEL;
    if (f == MOE_FORMAT_MXFP4_HF) return scale->type == MOE_TYPE_E8M0 && scale->cols == 32;
    if (f == MOE_FORMAT_NVFP4_HF) return scale->type == MOE_TYPE_E4M3 && scale->cols == 16;
    if (f == MOE_FORMAT_INT4_GROUP && zero->data && moei_q8_log2(zero->cols / 32) > 31) return 0;
    return (scale->type == MOE_TYPE_BF16 || scale->type == MOE_TYPE_F16) && moei_q8_log2(scale->cols / 32) < 32;
}
MOEI_FORCE MOEI_AVX2 void moei_q8_grid_of(const moei_side *s, size_t k, moei_q8grid *g) {
    g->p = NULL, g->log2 = moei_q8_log2(s->cols / 32), g->n = s->data ? (k + s->cols - 1) / s->cols : 0, g->shift = 0;
    g->few = g->log2 ? 4 : 8;
    const __m128i word = _mm_srl_epi16(_mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7), _mm_cvtsi64_si128((long long)g->log2));
    g->spread = _mm_add_epi16(_mm_mullo_epi16(word, _mm_set1_epi16(0x0202)), _mm_set1_epi16(0x0100));
}
MOEI_FORCE void moei_q8_grid_row(moei_q8grid *g, const moei_side *s, size_t row, size_t rows_ahead) {
    const size_t line = s->rows == 1 ? row : row / s->rows;
    if (rows_ahead) moei_side_ahead(s, row + rows_ahead, g->n * moei_q8_side_bytes(s->type));
    g->p = s->data + (s->type == MOE_TYPE_U4X8 ? line / 8 : line) * s->row_stride, g->shift = (int)(4 * (line % 8));
}
/* n values of a row from `first` on, or, where there are fewer, its last n, the first *skip of them to be left out. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_grid_at(const moei_q8grid *g, size_t first, size_t size, size_t n, size_t *skip) {
    const size_t at = g->n - first >= n || g->n < n ? first : g->n - n;
    const uint8_t *p = g->p + size * at;
    uint8_t tail[32];
    if (g->n < n) p = (const uint8_t *)memcpy(memset(tail, 0x20, sizeof tail), p, size * (g->n - first)); /* no subnormals of any type */
    *skip = first - at;
    if (size * n == 32) return moei_q8_ld256(p);
    return _mm256_castsi128_si256(size * n == 16 ? moei_q8_ld128(p) : size * n == 8 ? moei_q8_ld64(p) : moei_q8_ld32(p));
}
/* The scales of step i as they are: 8 bytes of MXFP4_HF, 16 of NVFP4_HF (those of first halves first), or 8 words. */
MOEI_FORCE MOEI_AVX2 __m128i moei_q8_grid_raw(uint32_t f, const moei_q8grid *g, size_t i) {
    const int mx = f == MOE_FORMAT_MXFP4_HF, nv = f == MOE_FORMAT_NVFP4_HF;
    const size_t first = nv ? 16 * i : 8 * i >> (mx ? 0 : g->log2), size = mx || nv ? 1 : 2, n = nv ? 16 : mx ? 8 : g->few;
    const __m128i from = nv ? _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15) : g->spread;
    size_t skip = 0;
    if (g->n - first >= n) { /* all but the last steps */
        const uint8_t *p = g->p + size * first;
        const __m128i v = size * n == 16 ? moei_q8_ld128(p) : moei_q8_ld64(p);
        return mx ? v : _mm_shuffle_epi8(v, from);
    }
    const __m128i v = _mm256_castsi256_si128(moei_q8_grid_at(g, first, size, n, &skip)), some = _mm_set1_epi8(0x20);
    if (mx) /* what is beyond the end must be no subnormal number: 120 cycles each */
        return _mm_xor_si128(_mm_srl_epi64(_mm_xor_si128(v, some), _mm_cvtsi64_si128((long long)(8 * skip))), some);
    return _mm_shuffle_epi8(v, _mm_add_epi8(from, _mm_set1_epi8((char)(nv ? skip : 2 * skip))));
}
/* The zero points of step i. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_grid_zero(uint32_t type, const moei_q8grid *g, size_t i) {
    size_t skip;
    const __m256i from = moei_q8_grid_at(g, 8 * i >> g->log2, type == MOE_TYPE_U8 ? 1 : 4, g->few, &skip);
    const __m256i v = type == MOE_TYPE_U8 ? moei_q8_side_of(MOE_TYPE_U8, from, 1.0f, 0) : moei_q8_side_of(MOE_TYPE_U4X8, from, 1.0f, g->shift);
    const __m256i lane = _mm256_srl_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm_cvtsi64_si128((long long)g->log2));
    return _mm256_permutevar8x32_epi32(v, _mm256_add_epi32(lane, _mm256_set1_epi32((int)skip)));
}
MOEI_FORCE int moei_q8_has_zeros(uint32_t f, const moei_rows *w) { return f == MOE_FORMAT_INT4_GROUP && w->zero.data; }
/* Before the steps of row r: where its scales and zero points are; rows_ahead: to what is prefetched of them, or 0. */
MOEI_FORCE MOEI_AVX2 void moei_q8_grid_rows(uint32_t f, const moei_rows *w, size_t r, size_t rows_ahead, moei_q8grid g[2]) {
    if (w->scale.data) moei_q8_grid_row(&g[0], &w->scale, w->row0 + r, rows_ahead);
    if (moei_q8_has_zeros(f, w)) moei_q8_grid_row(&g[1], &w->zero, w->row0 + r, rows_ahead);
}

/* ---- from integer sums to the accumulators ---- */

/* What times sum16 is to be added to the sums over the first and second 16 of every block: the offset that is still in the weights,
   or the zero points. (But for NVFP4 all of it goes to the first, and the second is not used.) */
MOEI_FORCE MOEI_AVX2 void moei_q8_less(uint32_t f, int offset, const moei_q8s *s, __m256i less[2]) {
    if (moei_q8_has_sub(f)) less[0] = _mm256_mullo_epi16(s->sub, _mm256_set1_epi16((short)-offset));
    else if (f == MOE_FORMAT_INT4_GROUP) less[0] = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_or_si256(s->zero, _mm256_slli_epi32(s->zero, 16)));
    else if (moei_q8_is_nvfp4(f)) less[0] = _mm256_set1_epi32(-offset & 0xffff), less[1] = _mm256_set1_epi32(-offset * 65536);
    else less[0] = _mm256_set1_epi16((short)-offset);
}
MOEI_FORCE int moei_q8_is_less(uint32_t f, int offset) { return offset || f == MOE_FORMAT_INT4_GROUP; }
/* acc + one step: h[0], h[1] are the sums over the first and second 16 of every block. */
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_add(uint32_t f, const moei_q8s *s, const __m256i h[2], const moei_q8 *x, __m256 acc) {
    const __m256 dx = _mm256_loadu_ps(x->d);
    if (moei_q8_is_nvfp4(f)) {
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(h[0]), _mm256_mul_ps(s->d, dx), acc);
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(h[1]), _mm256_mul_ps(s->m, dx), acc);
    }
    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(h[0], h[1])), _mm256_mul_ps(s->d, dx), acc);
    if (moei_q8_has_min(f)) acc = _mm256_fmadd_ps(s->m, _mm256_loadu_ps(x->s), acc);
    if (f == MOE_FORMAT_Q2_K)
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(s->min, moei_q8_ld256(x->sum16))), _mm256_mul_ps(s->m, dx), acc);
    return acc;
}
MOEI_FORCE MOEI_AVX2 float moei_q8_tree(__m256 v) {
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a))) + 0.0f;
}
/* The last, partial step of a row, padded with zeros. */
static MOEI_AVX2 MOEI_NOINLINE const uint8_t *moei_q8_tail(uint32_t f, const moei_rows *w, const uint8_t *p, uint8_t *tail) {
    memset(tail, 0, moei_q8_step_bytes(f));
    return (const uint8_t *)memcpy(tail, p, w->k % 256 / 32 * (moei_q8_step_bytes(f) / 8));
}
/* One address for all lines: gcc has one for each otherwise, in vector registers where there are no others left. */
MOEI_FORCE const uint8_t *moei_q8_opaque(const uint8_t *p) {
#if MOEI_ASM
    __asm__("" : "+r"(p));
#endif
    return p;
}
/* Just before a step at p is unpacked: its lines of what is read `ahead` bytes later. Without them one core of a Xeon (model 207) reads rows of
   Q4_K at 51 % of its bandwidth of 15.5 GB/s, with them at 82 % (Q8_0 65, 87). To L2: on Zen 4 the hardware brings lines from there in time, and
   prefetched to L1 they get in its way (Q8_0, 1 / 2 / 4 tokens, GB/s of 34: to L1 23 / 20 / 14, to L2 31 / 27 / 20, none 30 / 25 / 20; 4 KB ahead
   to L2 22 / 21 / 18). And MOEI_TO_L1 later to L1 too: on Zen 4 that is level or faster (layer, one token, one core: MXFP4 1.14 times, Q4_1 1.07,
   IQ4_XS 1.05, Q3_K, Q5_0, Q5_1, Q6_K 1.03; 1 KB later level, 4 KB slower), but on AVX2 as often slower. Intel's core has 16 lines on their way
   to L1 at a time, those to L2 among them, and its prefetchers do not bring rows there that are unpacked (Xeon, model 207, one token, one core,
   GB/s of 16.7: Q4_0 11.4 and 12.6, Q4_K 11.0 and 12.3, Q8_0 12.4 and 13.4, MXFP4 10.8 and 11.1, AVX2 4 to 12 % more. 1 and 2 KB later are level;
   all to L1 9 to 11 % slower, nothing to L2 20 to 40, no prefetches 40 to 45). Past L3 (Zen 5) all go to L1, 8 KB ahead (layer, one token, one
   core: Q4_0 1.07, Q8_0, NVFP4_HF 1.05, int8 1.04 times faster than to L2, others level or up to 1.02; two cores Q4_0 1.1, Q8_0 1.05, int8 1.02.
   PREFETCHT0 is as fast, but hands every line to L3, which can keep a router instead. 4 KB ahead 4 to 6 % slower, 16 KB up to 3). */
MOEI_FORCE void moei_q8_ask(const moei_rows *w, const uint8_t *p, size_t ahead, const size_t bytes) {
    moei_ask(w->ask, p, moei_q8_opaque(p + ahead), bytes);
}

/* ---- 256 bits: the weights of one step ----
   Two tiers share all of this but for one instruction: `vex` is the tier avxvnni, whose vpdpbusd replaces vpmaddubsw, vpmaddwd and
   additions, and does not saturate.
   LAYOUT      v[j] holds weights 4 j .. 4 j + 3 of every block, a dword to a block; q of a prepared row likewise. What can be is
               transposed while still packed: 12 shuffles for 4 bits, 16 for 8. */

typedef struct moei_q8entry {
    __m256i v[8];
    moei_q8s s;
} moei_q8entry;

MOEI_FORCE MOEI_AVX2 __m256i moei_q8_both128(__m128i a, __m128i b) { return _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1); }
/* By a blend of memory, which Zen 3 does twice a cycle; an insertion once (3 to 5 % of a step). */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_two(const uint8_t *p, const uint8_t *q) { /* 16 bytes of each, and 16 before q */
    return _mm256_blend_epi32(_mm256_castsi128_si256(moei_q8_ld128(p)), moei_q8_ld256(q - 16), 0xf0);
}
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_low4(__m256i v) { return moei_q8_and(v, 15); }
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_high4(__m256i v) { return moei_q8_and(_mm256_srli_epi16(v, 4), 15); }
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_each4(__m256i v, size_t j) { /* dword j of 4 to all 4 */
    const __m256i first = _mm256_set1_epi32(0x03020100);
    return _mm256_shuffle_epi8(v, _mm256_add_epi8(first, _mm256_set1_epi8((char)(4 * j))));
}
/* 16 bytes with a bit per block: those of blocks 0 - 3 from bit 4 on in the low half, those of 4 - 7 in the high half. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_planes(const uint8_t *p) {
    return _mm256_sllv_epi32(moei_q8_both(moei_q8_ld128(p)), _mm256_setr_epi32(4, 4, 4, 4, 0, 0, 0, 0));
}
/* A dword of every block: block b's is dword b of the 32 bytes that begin 4 b before it. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_dwords8(const uint8_t *p, size_t size) {
    const size_t step = size - 4;
    __m256i v = _mm256_blend_epi32(moei_q8_ld256(p), moei_q8_ld256(p + step), 0x02);
    v = _mm256_blend_epi32(v, moei_q8_ld256(p + 2 * step), 0x04), v = _mm256_blend_epi32(v, moei_q8_ld256(p + 3 * step), 0x08);
    v = _mm256_blend_epi32(v, moei_q8_ld256(p + 4 * step), 0x10), v = _mm256_blend_epi32(v, moei_q8_ld256(p + 5 * step), 0x20);
    return _mm256_blend_epi32(_mm256_blend_epi32(v, moei_q8_ld256(p + 6 * step), 0x40), moei_q8_ld256(p + 7 * step), 0x80);
}
/* t[j] = dword j of 16 bytes of every block; the second and the third block are `one` and `two` bytes behind the first. */
MOEI_FORCE MOEI_AVX2 void moei_q8_columns_avx2(const uint8_t *p, size_t one, size_t two, __m256i t[4]) {
    __m256i a[4], b[4];
    MOEI_UNROLL for (size_t i = 0; i < 4; i++) {
        const uint8_t *q = p + i / 2 * two + i % 2 * one;
        a[i] = moei_q8_two(q, q + 2 * two);
    }
    b[0] = _mm256_unpacklo_epi32(a[0], a[1]), b[1] = _mm256_unpackhi_epi32(a[0], a[1]);
    b[2] = _mm256_unpacklo_epi32(a[2], a[3]), b[3] = _mm256_unpackhi_epi32(a[2], a[3]);
    t[0] = _mm256_unpacklo_epi64(b[0], b[2]), t[1] = _mm256_unpackhi_epi64(b[0], b[2]);
    t[2] = _mm256_unpacklo_epi64(b[1], b[3]), t[3] = _mm256_unpackhi_epi64(b[1], b[3]);
}
/* E2M1 codes, doubled, + 16; the IQ4 table. */
MOEI_FORCE MOEI_AVX2 __m128i moei_q8_e2m1_table(void) { return _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4); }
MOEI_FORCE MOEI_AVX2 __m128i moei_q8_iq4_table(void) {
    return _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
}
/* Low nibbles are the first half of a block (of 16 weights in NVFP4), or nibbles are in order; sorted: as moei_q8_sort_256 has them. */
MOEI_FORCE MOEI_AVX2 void moei_q8_nibbles_avx2(uint32_t f, int sorted, const __m256i t[4], __m256i v[8]) {
    MOEI_UNROLL for (int j = 0; j < 4; j++) {
        const __m256i low = moei_q8_low4(t[j]), high = moei_q8_high4(t[j]);
        if (moei_q8_has_order(f) && !sorted) {
            const __m256 a = _mm256_castsi256_ps(_mm256_unpacklo_epi8(low, high)), b = _mm256_castsi256_ps(_mm256_unpackhi_epi8(low, high));
            v[2 * j] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), v[2 * j + 1] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
        } else if (f == MOE_FORMAT_NVFP4 || moei_q8_has_order(f)) v[j / 2 * 4 + j % 2] = low, v[j / 2 * 4 + j % 2 + 2] = high;
        else v[j] = low, v[j + 4] = high;
    }
}
/* + 16 where a block's dword at p has bit 4 j + i, for byte i. */
MOEI_FORCE MOEI_AVX2 void moei_q8_fifth_avx2(const uint8_t *p, size_t size, __m256i v[8]) {
    const __m256i dword = moei_q8_dwords8(p, size), low = _mm256_set1_epi32(0x08040201), high = _mm256_set1_epi32((int)0x80402010u);
    const __m256i byte = moei_q8_both(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    const __m256i sixteen = moei_q8_both(_mm_setr_epi8(0, 16, 16, 0, 16, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0)); /* of 1, 2, 4 and 8 */
    MOEI_UNROLL for (int j = 0; j < 8; j += 2) {
        const __m256i b = _mm256_shuffle_epi8(dword, _mm256_add_epi8(byte, _mm256_set1_epi8((char)(j / 2))));
        v[j] = _mm256_or_si256(v[j], _mm256_shuffle_epi8(sixteen, _mm256_and_si256(b, low)));
        v[j + 1] = _mm256_or_si256(v[j + 1], _mm256_min_epu8(_mm256_and_si256(b, high), _mm256_set1_epi8(16)));
    }
}
/* v | (w & mask) */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_plus(__m256i v, __m256i w, int mask) { return _mm256_or_si256(v, moei_q8_and(w, mask)); }
MOEI_FORCE MOEI_AVX2 void moei_q8_q45k_avx2(uint32_t f, const uint8_t *p, __m256i v[8]) { /* 32 bytes hold two blocks */
    const int five = f == MOE_FORMAT_Q5_K;
    MOEI_UNROLL for (int h = 0; h < 2; h++) {
        const uint8_t *q = p + (five ? 48 : 16) + 16 * h;
        const __m256i a = moei_q8_two(q, q + 64), b = moei_q8_two(q + 32, q + 96);
        const __m256i bits = moei_q8_planes(p + 16 + 16 * h), bits2 = _mm256_srli_epi16(bits, 2);
        MOEI_UNROLL for (int i = 0; i < 2; i++) {
            const __m256i u = i ? _mm256_unpackhi_epi32(a, b) : _mm256_unpacklo_epi32(a, b);
            __m256i even = moei_q8_low4(u), odd = moei_q8_high4(u);
            if (five) {
                const __m256i high = i ? _mm256_unpackhi_epi32(bits, bits2) : _mm256_unpacklo_epi32(bits, bits2);
                even = moei_q8_plus(even, high, 16), odd = moei_q8_plus(odd, _mm256_srli_epi16(high, 1), 16);
            }
            v[4 * h + 2 * i] = _mm256_unpacklo_epi32(even, odd), v[4 * h + 2 * i + 1] = _mm256_unpackhi_epi32(even, odd);
        }
    }
}
MOEI_FORCE MOEI_AVX2 void moei_q8_q6k_avx2(const uint8_t *p, __m256i v[8]) { /* 64 bytes hold four blocks */
    MOEI_UNROLL for (int h = 0; h < 2; h++, p += 16) {
        const __m256i a = moei_q8_two(p, p + 64), b = moei_q8_two(p + 32, p + 96);
        const __m256i bits = moei_q8_two(p + 128, p + 160), bits2 = _mm256_srli_epi16(bits, 2);
        MOEI_UNROLL for (int i = 0; i < 2; i++) {
            const __m256i u = i ? _mm256_unpackhi_epi32(a, b) : _mm256_unpacklo_epi32(a, b);
            const __m256i high = i ? _mm256_unpackhi_epi32(bits, bits2) : _mm256_unpacklo_epi32(bits, bits2);
            const __m256i first = moei_q8_plus(moei_q8_low4(u), _mm256_slli_epi16(high, 4), 0x30);
            const __m256i second = moei_q8_plus(moei_q8_high4(u), high, 0x30);
            v[4 * h + 2 * i] = _mm256_unpacklo_epi64(first, second), v[4 * h + 2 * i + 1] = _mm256_unpackhi_epi64(first, second);
        }
    }
}
MOEI_FORCE MOEI_AVX2 void moei_q8_q2k_avx2(const uint8_t *p, __m256i v[8]) { /* 32 bytes hold four blocks */
    const __m256i shift = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    MOEI_UNROLL for (size_t j = 0; j < 8; j++) {
        const uint8_t *q = p + 16 + j / 4 * 16;
        v[j] = moei_q8_and(_mm256_srlv_epi32(moei_q8_each4(moei_q8_two(q, q + 32), j % 4), shift), 3);
    }
}
/* As Q2_K, and a bit more: first all three bits of a weight to a nibble, those of blocks 0 and 2 (4 and 6) to one byte, of 1 and 3 to another;
   the bits of four blocks, a nibble too, are looked up. (Zen 5, in cache: bit by bit 14 GB/s, so 16.) */
MOEI_FORCE MOEI_AVX2 void moei_q8_q3k_avx2(const uint8_t *p, __m256i v[8]) {
    const __m256i even_bits = moei_q8_both(_mm_setr_epi8(0, 4, 0, 4, 64, 68, 64, 68, 0, 4, 0, 4, 64, 68, 64, 68));
    const __m256i odd_bits = moei_q8_both(_mm_setr_epi8(0, 0, 4, 4, 0, 0, 4, 4, 64, 64, 68, 68, 64, 64, 68, 68));
    MOEI_UNROLL for (int h = 0; h < 2; h++) {
        const __m256i q = moei_q8_two(p + 32 + 16 * h, p + 64 + 16 * h);
        const __m256i bits = moei_q8_low4(_mm256_srlv_epi64(moei_q8_both(moei_q8_ld128(p + 16 * h)), _mm256_setr_epi64x(0, 0, 4, 4)));
        const __m256i even = moei_q8_plus(_mm256_shuffle_epi8(even_bits, bits), q, 0x33);
        const __m256i odd = moei_q8_plus(_mm256_shuffle_epi8(odd_bits, bits), _mm256_srli_epi16(q, 2), 0x33);
        MOEI_UNROLL for (int i = 0; i < 2; i++) {
            const __m256i u = i ? _mm256_unpackhi_epi32(even, odd) : _mm256_unpacklo_epi32(even, odd);
            const __m256i low = moei_q8_low4(u), high = moei_q8_high4(u);
            v[4 * h + 2 * i] = _mm256_unpacklo_epi64(low, high), v[4 * h + 2 * i + 1] = _mm256_unpackhi_epi64(low, high);
        }
    }
}
MOEI_FORCE MOEI_AVX2 void moei_q8_bytes_avx2(uint32_t f, int vex, int sorted, const uint8_t *p, __m256i v[8]) {
    const size_t size = moei_q8_step_bytes(f) / 8; /* of a block, where blocks are of 32 */
    __m256i t[4];
    switch (f) {
    case MOE_FORMAT_Q8_0:
    case MOE_FORMAT_INT8_CHANNEL:
        moei_q8_columns_avx2(p + size - 32, size, 2 * size, v), moei_q8_columns_avx2(p + size - 16, size, 2 * size, v + 4);
        break;
    case MOE_FORMAT_Q4_K:
    case MOE_FORMAT_Q5_K: moei_q8_q45k_avx2(f, p, v); break;
    case MOE_FORMAT_Q6_K: moei_q8_q6k_avx2(p, v); break;
    case MOE_FORMAT_Q2_K: moei_q8_q2k_avx2(p, v); break;
    case MOE_FORMAT_Q3_K: moei_q8_q3k_avx2(p, v); break;
    default:
        if (f == MOE_FORMAT_NVFP4) moei_q8_columns_avx2(p + 4, 16, 36, t);
        else if (f == MOE_FORMAT_IQ4_XS) moei_q8_columns_avx2(p + 8, 16, 32, t);
        else moei_q8_columns_avx2(p + size - 16, size, 2 * size, t);
        moei_q8_nibbles_avx2(f, sorted, t, v);
    }
    if (f == MOE_FORMAT_Q5_0 || f == MOE_FORMAT_Q5_1) moei_q8_fifth_avx2(p + size - 20, size, v);
    MOEI_UNROLL for (size_t j = 0; j < 8; j++) {
        if (moei_q8_is_e2m1(f)) v[j] = _mm256_shuffle_epi8(moei_q8_both(moei_q8_e2m1_table()), v[j]);
        if (f == MOE_FORMAT_IQ4_NL || f == MOE_FORMAT_IQ4_XS) v[j] = _mm256_shuffle_epi8(moei_q8_both(moei_q8_iq4_table()), v[j]);
        if (moei_q8_is_wide(f) && vex) v[j] = _mm256_xor_si256(v[j], _mm256_set1_epi8(-128));
    }
}

/* ---- 256 bits: dot products ----
   COST        of a step and token: 8 vpmaddubsw, 7 additions of 16 bits and a vpmaddwd where weights have 4 bits (more fall back to 32
               bits earlier: LIMITS), 8 times sign, vpmaddubsw, vpmaddwd and an addition where they have 8; on avxvnni 8 vpdpbusd. Then a
               conversion, a multiplication, an fma, and an addition (an offset) or an fma (a minimum). Per 256 products in L1, a tile of
               2 x 4 (Zen 5, of which 4 cycles are the peak): Q4_0 6.3 cycles, Q8_0 10.8, Q6_K 7.8; avxvnni 5.5, 5.5, 7.3. */

/* s + the sums of 4 products. By its name, as the functions around have the target of AVX2. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_dot_vex(__m256i s, __m256i u, __m256i x) {
#if !MOEI_HAVE_AVXVNNI
    (void)u, (void)x;
#elif MOEI_ASM
    __asm__("%{vex%} vpdpbusd {%2, %1, %0|%0, %1, %2}" : "+x"(s) : "x"(u), "x"(x));
#else
    s = _mm256_dpbusd_avx_epi32(s, u, x);
#endif
    return s;
}
/* How many dwords of unsigned weights fit 16 bits (LIMITS). */
MOEI_FORCE size_t moei_q8_fit(uint32_t f) {
    return f == MOE_FORMAT_Q6_K ? 2 : f == MOE_FORMAT_Q5_0 || f == MOE_FORMAT_Q5_1 || f == MOE_FORMAT_Q5_K || moei_q8_is_e2m1(f) ? 4 : 8;
}
/* Rows of a tile: with two kinds of sums there are registers for one. */
MOEI_FORCE int moei_q8_tile_rows(uint32_t f, int vex) { return moei_q8_has_halves(f) || (!vex && moei_q8_fit(f) < 8) ? 1 : 2; }

/* One token of weights that are never -128 takes |q| x sign(w, q), |q| from one place for all rows: x[1].q, a step has two moei_q8 (Zen 3,
   IQ4_NL in cache: 31 cycles a step, so 29). */
MOEI_FORCE int moei_q8_has_abs(uint32_t f, int vex, int c) { return c == 1 && !vex && (f == MOE_FORMAT_IQ4_NL || f == MOE_FORMAT_IQ4_XS); }

/* n[row][token] (+)= dwords [j, end) of rows x c; by: what 16-bit sums are multiplied by, per row. */
MOEI_FORCE MOEI_AVX2 void moei_q8_sums_avx2(uint32_t f, int vex, int rows, int c, size_t j, size_t end, const moei_q8entry *const *e,
                                            const __m256i *by, int fresh, const moei_q8 *const *x, __m256i *n) {
    const size_t begin = j, fit = moei_q8_fit(f);
    const int wide = moei_q8_is_wide(f) && !vex, lone = moei_q8_has_abs(f, vex, c);
    __m256i s[8];
    MOEI_UNROLL for (; j < end; j++) {
        __m256i v[2], size[2];
        MOEI_UNROLL for (int r = 0; r < rows; r++) {
            v[r] = e[r]->v[j];
            if (rows > 1) MOEI_PIN(v[r]);
            if (wide && !lone) size[r] = _mm256_abs_epi8(v[r]);
        }
        MOEI_UNROLL for (int t = 0; t < c; t++) {
            __m256i q = moei_q8_ld256(x[t]->q[j]);
            if (rows > 1) MOEI_PIN(q);
            MOEI_UNROLL for (int r = 0; r < rows; r++) {
                const int i = r * c + t;
                if (vex) {
                    n[i] = moei_q8_dot_vex(n[i], v[r], q);
                    continue;
                }
                __m256i p;
                if (lone) p = _mm256_maddubs_epi16(moei_q8_ld256(x[t][1].q[j]), _mm256_sign_epi8(v[r], q));
                else if (wide) p = _mm256_maddubs_epi16(size[r], _mm256_sign_epi8(q, v[r]));
                else p = _mm256_maddubs_epi16(v[r], q);
                if (!wide) {
                    s[i] = j == begin || j % fit == 0 ? p : _mm256_add_epi16(s[i], p);
                    if (c > 1) MOEI_PIN(s[i]);
                    if (j % fit != fit - 1 && j + 1 != end) continue;
                    p = s[i];
                }
                p = _mm256_madd_epi16(p, by[r]);
                n[i] = fresh && (wide ? j == begin : j - begin < fit) ? p : _mm256_add_epi32(n[i], p);
                if (c > 1) MOEI_PIN(n[i]); /* integer sums are reassociated otherwise, and spilled */
            }
        }
    }
}
/* What no step changes: ones, and what moei_q8_less says then. In memory, or gcc makes them of integers again in every step. */
typedef struct moei_q8const {
    __m256i one, less[2];
} moei_q8const;
MOEI_FORCE int moei_q8_offset_avx2(uint32_t f, int vex) { return moei_q8_is_wide(f) && !vex ? 0 : moei_q8_offset(f); }
MOEI_FORCE MOEI_AVX2 void moei_q8_const_avx2(uint32_t f, int vex, moei_q8const *k) {
    moei_q8s none;
    none.zero = k->less[1] = _mm256_setzero_si256(), none.sub = k->one = _mm256_set1_epi16(1);
    moei_q8_less(f, moei_q8_offset_avx2(f, vex), &none, k->less);
    MOEI_SPILL(*k);
}
/* acc[row][token] += a step of rows x c. */
MOEI_FORCE MOEI_AVX2 void moei_q8_step_avx2(uint32_t f, int vex, int rows, int c, const moei_q8entry *const *e, const moei_q8 *const *x,
                                            const moei_q8const *k, __m256 *acc) {
    const int offset = moei_q8_offset_avx2(f, vex), sub = moei_q8_has_sub(f), halves = moei_q8_has_halves(f);
    __m256i n[2][8], less[2][2], by[2][2];
    MOEI_UNROLL for (int r = 0; r < rows; r++) {
        by[0][r] = by[1][r] = k->one, less[r][0] = k->less[0], less[r][1] = k->less[1];
        if (sub) less[r][0] = _mm256_mullo_epi16(e[r]->s.sub, k->less[0]);
        else if (f == MOE_FORMAT_INT4_GROUP) moei_q8_less(f, offset, &e[r]->s, less[r]);
        if (!sub) continue;
        if (vex) by[0][r] = _mm256_srai_epi32(_mm256_slli_epi32(e[r]->s.sub, 16), 16), by[1][r] = _mm256_srai_epi32(e[r]->s.sub, 16);
        else { /* twice each */
            const __m256i first = moei_q8_both(_mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13));
            by[0][r] = _mm256_shuffle_epi8(e[r]->s.sub, first);
            by[1][r] = _mm256_shuffle_epi8(e[r]->s.sub, _mm256_add_epi8(first, _mm256_set1_epi8(2)));
        }
    }
    MOEI_UNROLL for (int h = 0; h <= halves; h++) {
        __m256i *to = n[sub && !vex ? 0 : h];
        MOEI_UNROLL for (int i = 0; i < rows * c; i++) {
            const int least = moei_q8_is_less(f, offset) && !sub;
            if (vex) to[i] = least ? _mm256_madd_epi16(less[i / c][h], moei_q8_ld256(x[i % c]->sum16)) : _mm256_setzero_si256();
        }
        moei_q8_sums_avx2(f, vex, rows, c, h ? 4 : 0, halves && !h ? 4 : 8, e, by[h], to == n[h], x, to);
        MOEI_UNROLL for (int i = 0; i < rows * c; i++) {
            if (sub && vex) to[i] = _mm256_mullo_epi32(to[i], by[h][i / c]);
            if (sub && h == 0) continue;
            if (moei_q8_is_less(f, offset) && !(vex && !sub))
                to[i] = _mm256_add_epi32(to[i], _mm256_madd_epi16(less[i / c][sub ? 0 : h], moei_q8_ld256(x[i % c]->sum16)));
        }
    }
    MOEI_UNROLL for (int i = 0; i < rows * c; i++) {
        const __m256i two[2] = {n[0][i], halves && !(sub && !vex) ? n[1][i] : _mm256_setzero_si256()};
        acc[i] = moei_q8_add(f, &e[i / c]->s, two, x[i % c], acc[i]);
    }
}
/* As moei_q8_half8, by blends of memory (70 instructions a step of Q4_0, by shifts 90): block b's scale is word b of what begins 2 b before. */
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_half8_avx2(const uint8_t *p, size_t size) {
    const size_t step = size - 2;
    __m128i v = _mm_blend_epi16(moei_q8_ld128(p), moei_q8_ld128(p + step), 0x02);
    v = _mm_blend_epi16(v, moei_q8_ld128(p + 2 * step), 0x04), v = _mm_blend_epi16(v, moei_q8_ld128(p + 3 * step), 0x08);
    v = _mm_blend_epi16(v, moei_q8_ld128(p + 4 * step), 0x10), v = _mm_blend_epi16(v, moei_q8_ld128(p + 5 * step), 0x20);
    return _mm256_cvtph_ps(_mm_blend_epi16(_mm_blend_epi16(v, moei_q8_ld128(p + 6 * step), 0x40), moei_q8_ld128(p + 7 * step), 0x80));
}
/* 8 bytes as f32 by way of memory: a load widens them at once, while from a register that is 3 instructions of Zen 3. */
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_u8f(uint64_t v) {
    MOEI_SPILL(v);
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(moei_q8_ld64(&v)));
}
/* As moei_q8_scales_k, the bits apart in general registers: vector instructions are what bounds a step of one token. */
MOEI_FORCE MOEI_AVX2 void moei_q8_scales_k_avx2(const uint8_t *p, __m256 *d, __m256 *m) {
    const uint64_t low = moei_q8_u32(p + 4) | (uint64_t)moei_q8_u32(p + 8) << 32, c = moei_q8_u32(p + 12);
    const uint64_t six = low & 0x3f3f3f3f3f3f3f3fu, rest = (c | c << 28) & 0x0f0f0f0f0f0f0f0fu;
    const uint64_t more = rest | (low >> 2 & 0x3030303030303030u);
    const __m256 f = _mm256_cvtph_ps(_mm_set1_epi32((int)(moei_q8_u32(p) ^ 0x80000000u)));
    *d = _mm256_mul_ps(_mm256_moveldup_ps(f), moei_q8_i8f(_mm_cvtsi64_si128((long long)((six & 0xffffffffu) | more << 32))));
    *m = _mm256_mul_ps(_mm256_movehdup_ps(f), moei_q8_i8f(_mm_cvtsi64_si128((long long)(six >> 32 | (more >> 32 << 32)))));
}
/* As moei_q8_scales_q3, likewise. */
MOEI_FORCE MOEI_AVX2 __m256i moei_q8_scales_q3_avx2(const uint8_t *p) {
    const uint64_t a = moei_q8_u32(p) | (uint64_t)moei_q8_u32(p + 4) << 32, c = moei_q8_u32(p + 8);
    const uint64_t four = 0x0f0f0f0f0f0f0f0fu, two = 0x3030303030303030u;
    const uint64_t low = (a & four) | ((c << 4 | c << 34) & two), high = (a >> 4 & four) | ((c | c >> 2 << 32) & two);
    const __m128i b = _mm_insert_epi64(_mm_cvtsi64_si128((long long)low), (long long)high, 1);
    return _mm256_cvtepi8_epi16(_mm_sub_epi8(b, _mm_set1_epi8(32)));
}
/* As moei_q8_scales_iq4xs, likewise: nibbles and pairs of bits are spread to bytes. */
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_scales_iq4xs_avx2(const uint8_t *p) {
    uint64_t low = moei_q8_u32(p + 4), high = moei_q8_u16(p + 2);
    low = (low | low << 16) & 0x0000ffff0000ffffu, high = (high | high << 24) & 0x000000ff000000ffu;
    low = (low | low << 8) & 0x00ff00ff00ff00ffu, high = (high | high << 12) & 0x000f000f000f000fu;
    low = (low | low << 4) & 0x0f0f0f0f0f0f0f0fu, high = (high | high << 6) & 0x0303030303030303u;
    return _mm256_mul_ps(moei_q8_half1(p), _mm256_sub_ps(moei_q8_u8f(low | high << 4), _mm256_set1_ps(32.0f)));
}
/* As moei_q8_scales_q2: a load widens the bytes, and both halves are converted at once. */
MOEI_FORCE MOEI_AVX2 void moei_q8_scales_q2_avx2(const uint8_t *p, moei_q8s *s) {
    const __m256i b = _mm256_cvtepu8_epi16(moei_q8_ld128(p));
    const __m256 f = _mm256_cvtph_ps(_mm_set1_epi32((int)(moei_q8_u32(p + 80) ^ 0x80000000u)));
    s->sub = _mm256_and_si256(b, _mm256_set1_epi16(15)), s->min = _mm256_srli_epi16(b, 4);
    s->d = _mm256_moveldup_ps(f), s->m = _mm256_movehdup_ps(f);
}
MOEI_FORCE MOEI_AVX2 void moei_q8_scales_avx2(uint32_t f, const uint8_t *p, const moei_q8side *side, size_t j, moei_q8s *s) {
    const size_t size = moei_q8_step_bytes(f) / 8;
    if (f == MOE_FORMAT_Q4_K || f == MOE_FORMAT_Q5_K) moei_q8_scales_k_avx2(p, &s->d, &s->m);
    else if (f == MOE_FORMAT_Q3_K) s->d = moei_q8_half1(p + 108), s->sub = moei_q8_scales_q3_avx2(p + 96);
    else if (f == MOE_FORMAT_Q2_K) moei_q8_scales_q2_avx2(p, s);
    else if (f == MOE_FORMAT_IQ4_XS) s->d = moei_q8_scales_iq4xs_avx2(p);
    else if (f == MOE_FORMAT_Q8_0 || f == MOE_FORMAT_Q4_0 || f == MOE_FORMAT_Q5_0 || f == MOE_FORMAT_IQ4_NL) s->d = moei_q8_half8_avx2(p, size);
    else moei_q8_scales(f, p, side, j, s);
}

/* ---- 256 bits: straight from the rows ---- */

/* COST        of one token on Zen 5, GB/s in cache (avxvnni), where memory gives a core 38 and two 31 each: Q8_0 51 (56), Q4_0 34 (34),
               Q4_1 36 (39), Q6_K 32 (34), Q4_K 30 (31), INT4_GROUP 28, MXFP4_HF 26 (28), MXFP4 25 (28), NVFP4 25 (28), Q5_K 24 (26),
               IQ4_NL 24 (29), Q5_0 22 (23), NVFP4_HF 21, IQ4_XS 22 (24), Q2_K 19 (18), Q3_K 17 (18): 16 to 27 cycles a step, 4 vector
               instructions in each. A block to a register and its sums folded for every token (34 instructions a token) was as fast at
               one token (Q5_K: 27), and at 4 tokens 10.5 GB/s where this has 15 (Q4_0; avxvnni 18).
               Zen 3, AVX2, cycles a step (memory gives a core 4 bytes a cycle): Q4_0 22, Q4_1 23, Q2_K 24, INT4_GROUP 26, Q4_K 26, MXFP4 27, MXFP4_HF
               29, NVFP4 29, INT8_CHANNEL 30, Q8_0 31, IQ4_NL 32, Q3_K 32, NVFP4_HF 33, Q6_K 34, IQ4_XS 35, Q5_K 37, Q5_0 39, Q5_1 40: 2.5
               vector instructions a cycle. Rows cold, lines to L1 or 4 KB ahead are as fast. */
enum { MOEI_Q8_SHARE = 4 }; /* up to so many tokens share a step that stays in registers, more go through panels */

/* 16 scales of NVFP4_HF, those of first halves first, halved: as moei_q8_side_of, all at once, and NaN, which is rare, apart. */
MOEI_FORCE MOEI_AVX2 void moei_q8_scales_e4m3_avx2(__m128i raw, moei_q8s *s) {
    const __m256i top = _mm256_set1_epi16(0x3f80);
    const __m256 half = _mm256_set1_ps(128.0f);
    const __m256i b = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(raw), 7), _mm256_set1_epi16((short)0xbf80));
    const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(b, top), top);
    s->d = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(b)), half);
    s->m = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(b, 1)), half);
    if (!_mm256_movemask_epi8(nan)) return;
    s->d = _mm256_or_ps(s->d, _mm256_castsi256_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(nan))));
    s->m = _mm256_or_ps(s->m, _mm256_castsi256_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(nan, 1))));
}
/* Scales of step i from memory. */
MOEI_FORCE MOEI_AVX2 void moei_q8_near_256(uint32_t f, const moei_rows *w, const moei_q8grid g[2], size_t i, moei_q8s *s) {
    const __m256i one = _mm256_castps_si256(_mm256_set1_ps(1.0f)), raw = w->scale.data ? _mm256_castsi128_si256(moei_q8_grid_raw(f, &g[0], i)) : one;
    if (moei_q8_is_nvfp4(f)) moei_q8_scales_e4m3_avx2(_mm256_castsi256_si128(raw), s);
    else if (f == MOE_FORMAT_MXFP4_HF) s->d = _mm256_castsi256_ps(moei_q8_side_of(MOE_TYPE_E8M0, raw, 0.5f, 0));
    else if (!w->scale.data) s->d = _mm256_castsi256_ps(one);
    else if (w->scale.type == MOE_TYPE_BF16) s->d = _mm256_castsi256_ps(moei_q8_side_of(MOE_TYPE_BF16, raw, 1.0f, 0));
    else s->d = _mm256_castsi256_ps(moei_q8_side_of(MOE_TYPE_F16, raw, 1.0f, 0));
    if (f == MOE_FORMAT_INT4_GROUP) s->zero = w->zero.data ? moei_q8_grid_zero(w->zero.type, &g[1], i) : _mm256_set1_epi32(8);
}
/* Steps k .. k_end of rows that begin there, times n tokens, a constant; where k does not begin or end, sums are in memory. */
typedef struct moei_q8sums { /* of a row or two */
    float v[MOEI_Q8_SHARE][16];
} moei_q8sums;
typedef void moei_q8_few_fn(const moei_rows *w, uint32_t n_rows, size_t k, size_t k_end, const moei_q8 *const *x, moei_q8sums *sums, float *out,
                            size_t out_stride);
MOEI_FORCE MOEI_AVX2 void moei_q8_rows_256(uint32_t f, int vex, int by_grid, const moei_rows *w, uint32_t n_rows, size_t k, size_t k_end,
                                           const moei_q8 *const *x, int n, moei_q8sums *sums, float *out, size_t out_stride) {
    const size_t full = w->k / 256, steps = (w->k + 255) / 256, size = moei_q8_step_bytes(f);
    const size_t rows_ahead = MOEI_AHEAD_BYTES / ((k_end - k) * size + 1) + 1;
    uint8_t tail[272];
    moei_q8side side;
    moei_q8grid grid[2];
    moei_q8const fixed;
    moei_q8_const_avx2(f, vex, &fixed);
    if (by_grid) moei_q8_grid_of(&w->scale, w->k, &grid[0]), moei_q8_grid_of(&w->zero, w->k, &grid[1]);
    for (uint32_t r = 0; r < n_rows; r++) {
        const size_t ahead = moei_ahead_at(w, n_rows, r, rows_ahead);
        const uint8_t *p = moei_row(w, r);
        __m256 acc[MOEI_Q8_SHARE];
        if (by_grid) moei_q8_grid_rows(f, w, r, k ? 0 : rows_ahead, grid);
        MOEI_UNROLL for (int t = 0; t < n; t++) acc[t] = k ? _mm256_loadu_ps(sums[r].v[t]) : _mm256_setzero_ps();
        for (size_t i = k; i < k_end; i++, p += size) {
            moei_q8entry step;
            const moei_q8entry *e = &step;
            const moei_q8 *q[MOEI_Q8_SHARE];
            if (i == full) p = moei_q8_tail(f, w, p, tail);
            else moei_q8_ask(w, p, ahead, size);
            if (moei_q8_has_side(f) && !by_grid && i % MOEI_Q8_CHUNK == 0) moei_q8_sides(f, w, r, i, &side);
            if (by_grid) moei_q8_near_256(f, w, grid, i, &step.s);
            else moei_q8_scales_avx2(f, p, &side, i % MOEI_Q8_CHUNK, &step.s);
            moei_q8_bytes_avx2(f, vex, 1, p, step.v);
            MOEI_UNROLL for (int t = 0; t < n; t++) q[t] = x[t] + (i - k) * (moei_q8_has_abs(f, vex, n) ? 2 : 1);
            moei_q8_step_avx2(f, vex, 1, n, &e, q, &fixed, acc);
        }
        MOEI_UNROLL for (int t = 0; t < n; t++) {
            if (k_end < steps) _mm256_storeu_ps(sums[r].v[t], acc[t]);
            else out[(size_t)t * out_stride + r] = moei_q8_tree(acc[t]);
        }
    }
}
/* All but q. (gcc copies structs by rep movs, 50 cycles.) */
MOEI_FORCE MOEI_AVX2 void moei_q8_copy_rest(const moei_q8 *from, moei_q8 *to) {
    _mm256_storeu_ps(to->d, _mm256_loadu_ps(from->d)), _mm256_storeu_ps(to->s, _mm256_loadu_ps(from->s));
    _mm256_storeu_si256((__m256i *)(void *)to->sum, moei_q8_ld256(from->sum));
    _mm256_storeu_si256((__m256i *)(void *)to->sum16, moei_q8_ld256(from->sum16));
}
/* Where nibbles are in order: of every 8 values of a block the even ones, then the odd ones (of 16, as NVFP4 has its own), once for all
   rows rather than of every row's weights (Zen 5, one token in cache, AVX2: MXFP4_HF 20 GB/s, so 24). */
static MOEI_AVX2 void moei_q8_sort_256(const moei_q8 *from, moei_q8 *to) {
    const __m256i two = moei_q8_both(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
    moei_q8_copy_rest(from, to);
    MOEI_UNROLL for (int j = 0; j < 4; j++) {
        const __m256i a = _mm256_shuffle_epi8(moei_q8_ld256(from->q[2 * j]), two), b = _mm256_shuffle_epi8(moei_q8_ld256(from->q[2 * j + 1]), two);
        const int at = j / 2 * 4 + j % 2;
        _mm256_storeu_si256((__m256i *)(void *)to->q[at], _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa));
        _mm256_storeu_si256((__m256i *)(void *)to->q[at + 2], _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xaa));
    }
}
static MOEI_AVX2 void moei_q8_abs_256(const moei_q8 *from, moei_q8 *to) {
    moei_q8_copy_rest(from, to);
    MOEI_UNROLL for (int j = 0; j < 8; j++) {
        const __m256i q = moei_q8_ld256(from->q[j]);
        _mm256_storeu_si256((__m256i *)(void *)to[0].q[j], q), _mm256_storeu_si256((__m256i *)(void *)to[1].q[j], _mm256_abs_epi8(q));
    }
}
typedef struct moei_q8_arrange { /* what is done to a step of a token once for all rows */
    void (*fn)(const moei_q8 *from, moei_q8 *to); /* NULL: nothing */
    uint32_t per;                                 /* of `to` */
} moei_q8_arrange;
MOEI_FORCE moei_q8_arrange moei_q8_arrange_256(uint32_t f, int vex, uint32_t n) {
    moei_q8_arrange a = {moei_q8_has_order(f) ? moei_q8_sort_256 : NULL, 1};
    if (moei_q8_has_abs(f, vex, (int)n)) a.fn = moei_q8_abs_256, a.per = 2;
    return a;
}
/* Up to MOEI_Q8_SHARE tokens: all steps of rows or, where the tokens would not stay in L1, many rows a part of k at a time: else they
   came from L2 for every row (Zen 5, VNNI, two cores, k = 14336, % of the read bandwidth at 2, 3 and 4 tokens: Q4_K 83 86 84, was
   77 55 51; MXFP4_HF 88 89 74, was 65 49 36. Parts of 16 or 32 steps are up to 15 points slower at 2 tokens). Zen 4 reads pieces of rows at half
   of its speed, and rows stay whole there (moei_rows.whole; one core, cold, GB/s, k = 14336, 2 and 4 tokens: Q8_0 13 12, so 26 18, Q4_K 12 9,
   so 20 13), but where tokens are put in another order first, for which there is room for MOEI_Q8_ONE steps. */
enum { MOEI_Q8_PART = 8, MOEI_Q8_ROUND = 32, MOEI_Q8_L1 = 48, MOEI_Q8_ONE = 64 }; /* steps; rows; steps of all tokens, of one, in L1 */
static MOEI_AVX2 void moei_q8_turns(moei_q8_few_fn *few, moei_q8_arrange a, const moei_rows *w, uint32_t n_rows,
                                    const void *const *x, uint32_t n, float *out, size_t out_stride) {
    const size_t steps = (w->k + 255) / 256, step = moei_q8_step_bytes(w->format);
    size_t at_once = steps;
    if (w->whole && a.fn) at_once = MOEI_Q8_ONE / (n * a.per);
    if (!w->whole && steps * n * a.per > (n == 1 ? MOEI_Q8_ONE : MOEI_Q8_L1)) at_once = MOEI_Q8_PART;
    uint8_t room[MOEI_Q8_ONE * sizeof(moei_q8) + 63];
    moei_q8 *const arranged = (moei_q8 *)(void *)(((uintptr_t)room + 63) & ~(uintptr_t)63);
    moei_q8sums sums[MOEI_Q8_ROUND];
    moei_rows part = *w;
    for (uint32_t r = 0, rows; r < n_rows; r += rows) {
        rows = at_once < steps && n_rows - r > MOEI_Q8_ROUND ? (uint32_t)MOEI_Q8_ROUND : n_rows - r, part.row0 = w->row0 + r;
        for (size_t k = 0, end; k < steps; k = end) {
            const moei_q8 *q[MOEI_Q8_SHARE];
            end = steps - k > at_once ? k + at_once : steps;
            for (uint32_t t = 0; t < n; t++) {
                q[t] = (const moei_q8 *)x[t] + k;
                if (!a.fn) continue;
                moei_q8 *to = arranged + t * (end - k) * a.per;
                for (size_t i = 0; i < end - k; i++) a.fn(q[t] + i, to + i * a.per);
                q[t] = to;
            }
            part.data = w->data + k * step;
            part.prefetch = end < steps ? moei_row(w, r) + end * step : r + rows < n_rows ? moei_row(w, r + rows) : w->prefetch;
            few(&part, rows, k, end, q, sums, out + r, out_stride);
        }
    }
}
/* A format's rows times 1 to 4 tokens. Where scales live apart they are taken on the way (by_grid); rows of other grids than
   moei_q8_grid_is says, which are rare, meet the tokens one by one (`apart`). */
#define MOEI_Q8_TIMES(isa, target, f, name, times)                                                                       \
    static target void moei_q8_##name##_##isa##_##f(const moei_rows *w, uint32_t n_rows, size_t k, size_t k_end,         \
                                                    const moei_q8 *const *x, moei_q8sums *sums, float *out, size_t out_stride) { \
        times;                                                                                                           \
    }
#define MOEI_Q8_TURNS(isa, target, f, other, arrange)                                                                    \
    static target void moei_q8_dot_##isa##_##f(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, \
                                               float *out, size_t out_stride) {                                          \
        static moei_q8_few_fn *const few[] = {moei_q8_times1_##isa##_##f, moei_q8_times2_##isa##_##f, moei_q8_times3_##isa##_##f, \
                                              moei_q8_times4_##isa##_##f};                                               \
        moei_q8_few_fn *const apart = other;                                                                             \
        const uint32_t n = apart ? 1 : n_tokens;                                                                         \
        for (uint32_t t = 0; t < n_tokens; t += n)                                                                       \
            moei_q8_turns(apart ? apart : few[n - 1], arrange, w, n_rows, x + t, n, out + t * out_stride, out_stride);   \
    }
#define MOEI_Q8_APART(isa, f) moei_q8_grid_is(MOE_FORMAT_##f, &w->scale, &w->zero) ? NULL : moei_q8_apart_##isa##_##f
#define MOEI_Q8_TIMES_256(isa, vex, f, name, n, by_grid)                                                                 \
    MOEI_Q8_TIMES(isa, MOEI_AVX2, f, name, moei_q8_rows_256(MOE_FORMAT_##f, vex, by_grid, w, n_rows, k, k_end, x, n, sums, out, out_stride))
#define MOEI_Q8_DOT_256(isa, vex, f, by_grid, other)                                                                     \
    MOEI_Q8_TIMES_256(isa, vex, f, times1, 1, by_grid) MOEI_Q8_TIMES_256(isa, vex, f, times2, 2, by_grid)                \
    MOEI_Q8_TIMES_256(isa, vex, f, times3, 3, by_grid) MOEI_Q8_TIMES_256(isa, vex, f, times4, 4, by_grid)                \
    MOEI_Q8_TURNS(isa, MOEI_AVX2, f, other, moei_q8_arrange_256(MOE_FORMAT_##f, vex, n))
#define MOEI_Q8_PLAIN_256(isa, vex, f) MOEI_Q8_DOT_256(isa, vex, f, 0, NULL)
#define MOEI_Q8_SIDE_256(isa, vex, f) MOEI_Q8_TIMES_256(isa, vex, f, apart, 1, 0) MOEI_Q8_DOT_256(isa, vex, f, 1, MOEI_Q8_APART(isa, f))
#define MOEI_Q8_FORMATS_PLAIN(X, isa, target)                                                                            \
    X(isa, target, Q8_0) X(isa, target, Q4_0) X(isa, target, Q4_1) X(isa, target, Q5_0) X(isa, target, Q5_1)             \
    X(isa, target, Q2_K) X(isa, target, Q3_K) X(isa, target, Q4_K) X(isa, target, Q5_K) X(isa, target, Q6_K)             \
    X(isa, target, IQ4_NL) X(isa, target, IQ4_XS) X(isa, target, MXFP4) X(isa, target, NVFP4)
#define MOEI_Q8_FORMATS_SIDE(X, isa, target) /* moei_q8_has_side */                                                      \
    X(isa, target, MXFP4_HF) X(isa, target, NVFP4_HF) X(isa, target, INT8_CHANNEL) X(isa, target, INT4_GROUP)
#define MOEI_Q8_FORMATS(X, isa, target) MOEI_Q8_FORMATS_PLAIN(X, isa, target) MOEI_Q8_FORMATS_SIDE(X, isa, target)

/* ---- activations ---- */

static size_t moei_q8_prepared_bytes(size_t k) { return (k + 255) / 256 * sizeof(moei_q8); }

/* Bytes 8 j .. 8 j + 7 of block b of q. The tier `vnni` has them at 64 j, blocks in the order 0 1 4 5 2 3 6 7: see there. The others
   have 4 of them, and 32 bytes later the other 4. */
MOEI_FORCE size_t moei_q8_at(int vnni, size_t b, size_t j) {
    return vnni ? 64 * j + 8 * ((b & 1) | (b & 2) << 1 | (b & 4) >> 1) : 64 * j + 4 * b;
}
MOEI_FORCE void moei_q8_put8(int vnni, int8_t *q, size_t b, size_t j, const int8_t *from) {
    memcpy(q + moei_q8_at(vnni, b, j), from, vnni ? 8 : 4);
    if (!vnni) memcpy(q + moei_q8_at(vnni, b, j) + 32, from + 4, 4);
}
/* One block of 32. The integer comes out of the fma's low bits: 12582912 + q. */
static MOEI_AVX2 void moei_q8_block(moei_q8 *row, size_t b, const float *x, int vnni) {
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
    for (size_t j = 0; j < 4; j++) moei_q8_put8(vnni, (int8_t *)to->q, b % 8, j, (const int8_t *)&p + 8 * j);
    p = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), p), _mm256_set1_epi16(1)); /* 4 sums of each half */
    p = _mm256_add_epi32(p, _mm256_shuffle_epi32(p, 0x4e)), p = _mm256_add_epi32(p, _mm256_shuffle_epi32(p, 0xb1));
    const int lo = _mm256_cvtsi256_si32(p), hi = _mm_cvtsi128_si32(_mm256_extracti128_si256(p, 1));
    const float d = nan ? moei_float(0x7fc00000u) : zero ? 0.0f : amax / 127.0f;
    to->sum16[b % 8][0] = (int16_t)lo, to->sum16[b % 8][1] = (int16_t)hi, to->sum[b % 8] = lo + hi;
    to->d[b % 8] = d, to->s[b % 8] = d * (float)(lo + hi);
}
MOEI_FORCE MOEI_AVX2 void moei_q8_blocks(int vnni, void *row, const float *x, size_t k0, size_t n, size_t k) {
    const int8_t zero[8] = {0};
    const size_t b = (k0 + n) / 32 % 8, none = 8 - b;
    moei_q8 *last = (moei_q8 *)row + (k0 + n) / 256;
    for (size_t i = 0; i < n / 32; i++) moei_q8_block((moei_q8 *)row, k0 / 32 + i, x + 32 * i, vnni);
    if (k0 + n != k || !b) return;
    for (size_t i = 4 * b; i < 32; i++) moei_q8_put8(vnni, (int8_t *)last->q, i / 4, i % 4, zero);
    memset(&last->d[b], 0, 4 * none), memset(&last->s[b], 0, 4 * none);
    memset(&last->sum[b], 0, 4 * none), memset(last->sum16[b], 0, 4 * none);
}
static MOEI_AVX2 void moei_q8_prepare(void *row, const float *x, size_t k0, size_t n, size_t k) { moei_q8_blocks(0, row, x, k0, n, k); }

/* The panel decodes itself, as it is first used: this only says that there is one. */
static void moei_q8_decode_later(const moei_rows *w, uint32_t n_rows, void *panel) { (void)w, (void)n_rows, (void)panel; }

/* ---- 256 bits: many tokens ----
   LAYOUT      A panel is MOEI_Q8_ROWS rows (8 and 32 are as fast), unpacked as they are multiplied by the first tokens: written all at
               once it would wait for the stores. MOEI_Q8_CHUNK steps of a row lie together, then those of the next row.
   REGISTERS   2 rows x 4 tokens, 6 loads for 8 dot products: a sum each, the weights, an activation. Accumulators are in L1.
               Times the FMA peak, of 4, 4 / 32 / 128 tokens, unpacking included (Zen 5): Q4_0 1.6 / 2.2 / 2.3, Q4_K 1.4 / 2.1 / 2.1, Q6_K
               1.2 / 1.8 / 1.9, Q8_0 1.2 / 1.4 / 1.3; avxvnni Q4_0 1.9 / 2.5 / 2.6, Q4_K 1.4 / 2.4 / 2.5, Q6_K 1.3 / 1.8 / 2.0, Q8_0 1.3 /
               2.4 / 2.7. */

enum { MOEI_Q8_ROWS = 16, MOEI_Q8_FOUR = 4 }; /* a panel's rows; a tile's tokens */

static size_t moei_q8_panel_bytes_avx2(uint32_t n_rows, size_t k) {
    return n_rows ? (k + 255) / 256 * MOEI_Q8_ROWS * sizeof(moei_q8entry) : 0;
}
/* Formats of a kind share a tile. */
MOEI_FORCE uint32_t moei_q8_kind_256(uint32_t f) {
    if (moei_q8_is_wide(f)) return MOE_FORMAT_Q8_0;
    if (moei_q8_has_min(f)) return f == MOE_FORMAT_Q5_1 || f == MOE_FORMAT_Q5_K ? MOE_FORMAT_Q5_K : MOE_FORMAT_Q4_K;
    if (moei_q8_is_nvfp4(f)) return MOE_FORMAT_NVFP4;
    return moei_q8_is_e2m1(f) ? (uint32_t)MOE_FORMAT_Q5_0 : f; /* Q4_0 Q5_0 INT4_GROUP Q2_K Q3_K Q6_K */
}
/* n steps of pairs of rows times c tokens. */
typedef struct moei_q8pairs {
    const moei_q8entry *e; /* [n_pairs][2][n] */
    const moei_q8 *x[MOEI_Q8_FOUR];
    size_t n, n_pairs;
    const uint8_t *ahead, *ahead_end; /* to prefetch, ahead_step bytes a step */
    size_t ahead_step;
    int first;             /* the sums begin here */
    __m256 *acc;           /* [n_pairs][2][c] */
} moei_q8pairs;
MOEI_FORCE MOEI_AVX2 void moei_q8_tile_256(uint32_t f, int vex, int c, const moei_q8pairs *p) {
    const int rows = moei_q8_tile_rows(f, vex);
    const uint8_t *ahead = p->ahead, *ahead_end = p->ahead_end;
    const moei_q8entry *w = p->e;
    __m256 acc[2 * MOEI_Q8_FOUR], *to = p->acc;
    moei_q8const fixed;
    moei_q8_const_avx2(f, vex, &fixed);
    for (size_t pair = p->n_pairs; pair; pair--, w += p->n, to += 2 * c) {
        const moei_q8 *x[MOEI_Q8_FOUR];
        MOEI_UNROLL for (int t = 0; t < c; t++) x[t] = p->x[t];
        MOEI_UNROLL for (int i = 0; i < 2 * c; i++) acc[i] = p->first ? _mm256_setzero_ps() : to[i];
        for (size_t i = 0; i < p->n; i++, w++) {
            MOEI_AHEAD(p->ahead_step);
            MOEI_UNROLL for (int r = 0; r < 2; r += rows) {
                const moei_q8entry *const e[2] = {w + (size_t)r * p->n, w + p->n};
                moei_q8_step_avx2(f, vex, rows, c, e, x, &fixed, acc + r * c);
            }
            MOEI_UNROLL for (int t = 0; t < c; t++) x[t]++;
        }
        MOEI_UNROLL for (int i = 0; i < 2 * c; i++) to[i] = acc[i];
    }
}
typedef void moei_q8_pairs_fn(const moei_q8pairs *t);
typedef void moei_q8_unpack_fn(const moei_rows *w, size_t r, size_t i, moei_q8entry *e);
#define MOEI_Q8_TILE_256(isa, vex, f, c)                                                                                 \
    static MOEI_AVX2 void moei_q8_tile_##isa##_##f##_##c(const moei_q8pairs *t) { moei_q8_tile_256(MOE_FORMAT_##f, vex, c, t); }
#define MOEI_Q8_TILES_256(isa, vex, f)                                                                                   \
    MOEI_Q8_TILE_256(isa, vex, f, 1) MOEI_Q8_TILE_256(isa, vex, f, 2)                                                    \
    MOEI_Q8_TILE_256(isa, vex, f, 3) MOEI_Q8_TILE_256(isa, vex, f, 4)                                                    \
    static moei_q8_pairs_fn *const moei_q8_tiles_##isa##_##f[MOEI_Q8_FOUR] = {                                           \
        moei_q8_tile_##isa##_##f##_1, moei_q8_tile_##isa##_##f##_2, moei_q8_tile_##isa##_##f##_3, moei_q8_tile_##isa##_##f##_4};
#define MOEI_Q8_KINDS(X, isa, vex)                                                                                       \
    X(isa, vex, Q8_0) X(isa, vex, Q4_0) X(isa, vex, Q5_0) X(isa, vex, Q4_K) X(isa, vex, Q5_K) X(isa, vex, Q2_K)          \
    X(isa, vex, Q3_K) X(isa, vex, Q6_K) X(isa, vex, NVFP4) X(isa, vex, INT4_GROUP)
#define MOEI_Q8_TILES_CASE(isa, vex, f) case MOE_FORMAT_##f: return moei_q8_tiles_##isa##_##f;
/* MOEI_Q8_CHUNK steps of row r from step i on, or as many as there are. */
MOEI_FORCE MOEI_AVX2 void moei_q8_unpack_256(uint32_t f, int vex, const moei_rows *w, size_t r, size_t i, moei_q8entry *e) {
    const size_t full = w->k / 256, steps = (w->k + 255) / 256, n = steps - i < MOEI_Q8_CHUNK ? steps - i : (size_t)MOEI_Q8_CHUNK;
    const uint8_t *p = moei_row(w, r) + i * moei_q8_step_bytes(f);
    uint8_t tail[272];
    moei_q8side side;
    if (moei_q8_has_side(f)) moei_q8_sides(f, w, r, i, &side);
    for (size_t j = 0; j < n; j++, p += moei_q8_step_bytes(f)) {
        if (i + j == full) p = moei_q8_tail(f, w, p, tail);
        moei_q8_scales_avx2(f, p, &side, j, &e[j].s), moei_q8_bytes_avx2(f, vex, 0, p, e[j].v);
    }
}
#define MOEI_Q8_UNPACK_256(isa, vex, f)                                                                                  \
    static MOEI_AVX2 void moei_q8_unpack_##isa##_##f(const moei_rows *w, size_t r, size_t i, moei_q8entry *e) {          \
        moei_q8_unpack_256(MOE_FORMAT_##f, vex, w, r, i, e); }
#define MOEI_Q8_UNPACK_CASE(isa, vex, f) case MOE_FORMAT_##f: return moei_q8_unpack_##isa##_##f;
/* moei_q8_tree of 8 rows: lane r has that of a[r]. */
MOEI_FORCE MOEI_AVX2 __m256 moei_q8_tree8(const __m256 a[8]) {
    __m256 b[4], c[2];
    MOEI_UNROLL for (int i = 0; i < 4; i++)
        b[i] = _mm256_add_ps(_mm256_permute2f128_ps(a[i], a[i + 4], 0x20), _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    MOEI_UNROLL for (int i = 0; i < 2; i++) {
        const __m256d u = _mm256_castps_pd(b[i]), v = _mm256_castps_pd(b[i + 2]);
        c[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(u, v)), _mm256_castpd_ps(_mm256_unpackhi_pd(u, v)));
    }
    b[0] = _mm256_add_ps(_mm256_shuffle_ps(c[0], c[1], 0x88), _mm256_shuffle_ps(c[0], c[1], 0xdd)); /* rows 0 2 1 3, 4 6 5 7 */
    return _mm256_add_ps(_mm256_permute_ps(b[0], 0xd8), _mm256_setzero_ps());
}
MOEI_FORCE MOEI_AVX2 void moei_q8_store_avx2(const __m256 *acc, uint32_t c, uint32_t n_rows, float *out, size_t out_stride) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (uint32_t t = 0; t < c; t++)
        for (uint32_t r = 0; r < n_rows; r += 8) {
            __m256 a[8];
            MOEI_UNROLL for (uint32_t i = 0; i < 8; i++) a[i] = acc[(r + i) * c + t];
            float *to = out + t * out_stride + r;
            const __m256 sums = moei_q8_tree8(a);
            if (n_rows - r >= 8) _mm256_storeu_ps(to, sums); /* masked stores are slow on AMD (Zen 3) */
            else _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n_rows - r)), lane), sums);
        }
}
static MOEI_AVX2 void moei_q8_panel_256(moei_q8_unpack_fn *unpack, moei_q8_pairs_fn *const *tiles, void *panel, const moei_rows *w,
                                        uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out, size_t out_stride) {
    const size_t steps = (w->k + 255) / 256, chunks = (steps + MOEI_Q8_CHUNK - 1) / MOEI_Q8_CHUNK;
    const uint32_t passes = (n_tokens + MOEI_Q8_FOUR - 1) / MOEI_Q8_FOUR;
    moei_ahead later = moei_ahead_next(w, (n_rows + 1) / 2 * passes * chunks);
    __m256 acc[MOEI_Q8_ROWS * MOEI_Q8_FOUR];
    moei_q8pairs p;
    memset(acc, 0, sizeof acc); /* rows that no tile has are added up too, and not stored */
    for (uint32_t r0 = 0; r0 < n_rows; r0 += MOEI_Q8_ROWS) {
        const uint32_t rows = n_rows - r0 < MOEI_Q8_ROWS ? n_rows - r0 : (uint32_t)MOEI_Q8_ROWS, pairs = (rows + 1) / 2;
        for (uint32_t t = 0, c; t < n_tokens; t += c) {
            c = n_tokens - t < MOEI_Q8_FOUR ? n_tokens - t : (uint32_t)MOEI_Q8_FOUR;
            if (n_tokens - t == MOEI_Q8_FOUR + 1) c--; /* one alone takes as long as two */
            for (size_t i = 0; i < steps; i += p.n) {
                moei_q8entry *e = (moei_q8entry *)panel + i * MOEI_Q8_ROWS;
                p.n = steps - i < MOEI_Q8_CHUNK ? steps - i : (size_t)MOEI_Q8_CHUNK, p.n_pairs = t ? pairs : 1, p.first = i == 0;
                for (uint32_t j = 0; j < c; j++) p.x[j] = (const moei_q8 *)x[t + j] + i;
                for (uint32_t r = 0; r < rows; r += 2 * (uint32_t)p.n_pairs, e += 2 * p.n) {
                    if (t == 0) unpack(w, r0 + r, i, e), unpack(w, r0 + (r + 1 < rows ? r + 1 : r), i, e + p.n);
                    p.e = e, p.acc = acc + r * c;
                    p.ahead_step = moei_ahead_take(&later, (uint32_t)p.n_pairs, p.n * p.n_pairs, &p.ahead, &p.ahead_end);
                    tiles[c - 1](&p);
                }
            }
            moei_q8_store_avx2(acc, c, rows, out + t * out_stride + r0, out_stride);
        }
    }
}
#define MOEI_Q8_256(isa, vex)                                                                                            \
    MOEI_Q8_FORMATS_PLAIN(MOEI_Q8_PLAIN_256, isa, vex)                                                                   \
    MOEI_Q8_FORMATS_SIDE(MOEI_Q8_SIDE_256, isa, vex)                                                                     \
    MOEI_Q8_FORMATS(MOEI_Q8_UNPACK_256, isa, vex)                                                                        \
    MOEI_Q8_KINDS(MOEI_Q8_TILES_256, isa, vex)                                                                           \
    static moei_q8_unpack_fn *moei_q8_unpack_##isa(uint32_t f) {                                                         \
        switch (f) { MOEI_Q8_FORMATS(MOEI_Q8_UNPACK_CASE, isa, vex) default: return NULL; }                              \
    }                                                                                                                    \
    static moei_q8_pairs_fn *const *moei_q8_tiles_##isa(uint32_t f) {                                                    \
        switch (moei_q8_kind_256(f)) { MOEI_Q8_KINDS(MOEI_Q8_TILES_CASE, isa, vex) default: return NULL; }               \
    }                                                                                                                    \
    static void moei_q8_panel_##isa(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, \
                                    float *out, size_t out_stride) {                                                     \
        const uint32_t f = w->format;                                                                                    \
        moei_q8_panel_256(moei_q8_unpack_##isa(f), moei_q8_tiles_##isa(f), panel, w, n_rows, x, n_tokens, out, out_stride); \
    }
MOEI_Q8_256(avx2, 0)
#if MOEI_HAVE_AVXVNNI
MOEI_Q8_256(avxvnni, 1)
#endif

#define MOEI_Q8_BOTH(isa, f) {moei_q8_dot_##isa##_##f, moei_q8_decode_later, MOEI_Q8_SHARE}
#define MOEI_Q8_NONE {NULL, NULL, 0}
/* clang-format off */
#define MOEI_Q8_ARITH_256(name, id, isa, ask)                                                                            \
MOEI_TABLE const moei_arith moei_q8_##name = {                                                                           \
    MOE_COMPUTE_Q8, MOE_TIER_##id, moei_q8_prepared_bytes, moei_q8_prepare, moei_q8_panel_bytes_avx2, moei_q8_panel_##isa, \
    {MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, /* NONE F32 F16 BF16 */                                     \
     MOEI_Q8_BOTH(isa, Q8_0), MOEI_Q8_BOTH(isa, Q4_0), MOEI_Q8_BOTH(isa, Q4_1), MOEI_Q8_BOTH(isa, Q5_0),                 \
     MOEI_Q8_BOTH(isa, Q5_1), MOEI_Q8_BOTH(isa, Q2_K), MOEI_Q8_BOTH(isa, Q3_K), MOEI_Q8_BOTH(isa, Q4_K),                 \
     MOEI_Q8_BOTH(isa, Q5_K), MOEI_Q8_BOTH(isa, Q6_K), MOEI_Q8_BOTH(isa, IQ4_NL), MOEI_Q8_BOTH(isa, IQ4_XS),             \
     MOEI_Q8_BOTH(isa, MXFP4), MOEI_Q8_BOTH(isa, NVFP4), MOEI_Q8_BOTH(isa, MXFP4_HF), MOEI_Q8_BOTH(isa, NVFP4_HF),       \
     MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, /* MXFP8 FP8_BLOCK FP8_CHANNEL */                                         \
     MOEI_Q8_BOTH(isa, INT8_CHANNEL), MOEI_Q8_BOTH(isa, INT4_GROUP)}, NULL, NULL, ask, 0, 1};
MOEI_Q8_ARITH_256(avx2, AVX2, avx2, MOEI_ASK_L2)
MOEI_Q8_ARITH_256(avx2_intel, AVX2, avx2, MOEI_ASK_BOTH)
#if MOEI_HAVE_AVXVNNI
MOEI_Q8_ARITH_256(avxvnni, AVXVNNI, avxvnni, MOEI_ASK_L2)
MOEI_Q8_ARITH_256(avxvnni_intel, AVXVNNI, avxvnni, MOEI_ASK_BOTH)
#endif
/* clang-format on */

#if MOEI_HAVE_VNNI
/* ---- AVX512-VNNI: the weights of one step ----
   LAYOUT      v[j] holds weights 8 j .. 8 j + 7 of every block, blocks in the order 0 1 4 5 2 3 6 7 (Q6_K: see moei_q8_zq6); q of a prepared row
               likewise. So the dot products of a token add up in one register, two dwords per block, and its two halves shuffled give the sums in
               order. What puts the weights there is paid once per step and not once per token.
   COST        on Zen 5 (4 vector micro-ops a cycle: dot products and multiplications go to pipes 0 and 1, permutations to 1 and 2, shifts and
               conversions to 2 and 3, logic, unpacking and shufps anywhere; 2.7 are reached; a load that crosses a line takes two of two). GB/s
               in cache with 1, 2 and 4 tokens, where memory gives 36 to one core and 60 to two (before rows took turns and Q6_K kept its order):
               Q8_0 71 52 34, Q4_0 56 40 26, Q4_1 58 43 27, Q5_0 44 36 25, Q5_1 47 38 27, Q4_K 42 34 24, Q5_K 51 39 27, Q6_K 50 42 28, IQ4_NL 57
               41 25, IQ4_XS 44 35 23, MXFP4 44 32 22, MXFP4_HF 41 32 22, NVFP4 40 31 19, INT4_GROUP 36 29 20, INT8_CHANNEL 78 50 33. Bound by it:
               NVFP4_HF 34 27 18, Q3_K 31 25 16, Q2_K 27 21 14: few bytes for the dot products of 256 weights. Zen 4, where memory gives 27 to 30
               and 34 to 60: Q8_0 41 35 24, Q4_0 34 24 14, Q4_K 27 20 14, Q5_K 27 21 15, Q6_K 31 22 14, IQ4_NL 30 21 13, MXFP4 23 18 11, NVFP4_HF
               20 15 9, Q3_K 17 12 8, Q2_K 16 11 7. */

MOEI_FORCE MOEI_VNNI __m512i moei_q8_ld512(const void *p) { return _mm512_loadu_si512(p); }
/* Weights that are used more than once, loaded once: gcc makes them a memory operand of each use, and most are in two cache lines. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_once(const void *p) {
    __m512i v = _mm512_loadu_si512(p);
    MOEI_PIN(v);
    return v;
}
MOEI_FORCE MOEI_VNNI __m512i moei_q8_z128(__m128i v) { return _mm512_broadcast_i32x4(v); }
MOEI_FORCE MOEI_VNNI __m512i moei_q8_zand(__m512i v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi8((char)mask)); }
/* v | (w & mask), in one instruction */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_zput(__m512i v, __m512i w, int mask) {
    return _mm512_ternarylogic_epi32(v, w, _mm512_set1_epi8((char)mask), 0xf8);
}
/* For blocks 0 to 7 a qword of the 16 in p and q; four words from one of the 64. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_qwords(__m512i p, __m512i q, int a, int b, int c, int d, int e, int f, int g, int h) {
    return _mm512_permutex2var_epi64(p, _mm512_setr_epi64(a, b, e, f, c, d, g, h), q);
}
MOEI_FORCE long long moei_q8_four(size_t i) { return (long long)(0x0003000200010000u + i * 0x0001000100010001u); }
MOEI_FORCE MOEI_VNNI __m512i moei_q8_words(size_t a, size_t b, size_t c, size_t d, size_t e, size_t f, size_t g, size_t h) {
    return _mm512_setr_epi64(moei_q8_four(a), moei_q8_four(b), moei_q8_four(e), moei_q8_four(f), moei_q8_four(c), moei_q8_four(d),
                             moei_q8_four(g), moei_q8_four(h));
}
/* What is used of a step more than once, at most four lines of it (only the first ones named are loaded). */
MOEI_FORCE MOEI_VNNI void moei_q8_lines(uint32_t f, const uint8_t *p, __m512i z[4]) {
    size_t at[4] = {0, 64, 128, 0}, n = 2;
    switch (f) {
    case MOE_FORMAT_Q4_0:
    case MOE_FORMAT_IQ4_NL:
    case MOE_FORMAT_NVFP4: at[1] = 72, at[2] = 8, at[3] = 80, n = 4; break;
    case MOE_FORMAT_Q4_1:
    case MOE_FORMAT_Q5_0: at[1] = 56, at[2] = moei_q8_step_bytes(f) - 64, n = 3; break;
    case MOE_FORMAT_Q5_1: n = 3; break;
    case MOE_FORMAT_Q2_K: at[0] = 16, n = 1; break;
    case MOE_FORMAT_Q3_K: at[0] = 32, n = 1; break;
    case MOE_FORMAT_Q4_K: at[0] = 16, at[1] = 80; break;
    case MOE_FORMAT_Q5_K: at[0] = 48, at[1] = 112; break;
    case MOE_FORMAT_IQ4_XS: at[0] = 8, at[1] = 72; break;
    case MOE_FORMAT_MXFP4: at[0] = 1, at[1] = 65, at[2] = 16, at[3] = 72, n = 4; break;
    case MOE_FORMAT_Q8_0:
    case MOE_FORMAT_INT8_CHANNEL: n = 0; break;
    default: break;
    }
    MOEI_UNROLL for (size_t i = 0; i < n; i++) z[i] = moei_q8_once(p + at[i]);
}
/* 8 bytes at `at` of 8 blocks of 20, 22 or 24: words of z[0] and z[1], and those from 64 on of z[2]. */
MOEI_FORCE size_t moei_q8_word(size_t size, size_t at) {
    const size_t middle = size == 24 ? 64 : 56;
    return (at <= 56 ? at : at <= middle + 56 ? at + 64 - middle : at + 128 - (8 * size - 64)) / 2;
}
MOEI_FORCE MOEI_VNNI __m512i moei_q8_each(const __m512i *z, size_t size, size_t at) {
    size_t i[8];
    __mmask32 last = 0;
    MOEI_UNROLL for (size_t b = 0; b < 8; b++) {
        i[b] = moei_q8_word(size, b * size + at);
        if (i[b] >= 64) last |= 15u << 4 * ((b & 1) | (b & 2) << 1 | (b & 4) >> 1);
    }
    const __m512i from = moei_q8_words(i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7]); /* 64 wraps around */
    return _mm512_mask_permutexvar_epi16(_mm512_permutex2var_epi16(z[0], from, z[1]), last, from, z[2]);
}
/* What does not change from step to step, pinned: gcc would make it anew in each, through a general register (NVFP4_HF 29 GB/s in cache
   on Zen 5, pinned and its scales shared 34). */
typedef struct moei_q8fixed {
    __m512i low, high, table, one, less[2];
} moei_q8fixed;
MOEI_FORCE MOEI_VNNI void moei_q8_fix(uint32_t f, moei_q8fixed *c) {
    const int two = f == MOE_FORMAT_Q2_K || f == MOE_FORMAT_Q3_K, five = f == MOE_FORMAT_Q5_0 || f == MOE_FORMAT_Q5_1 || f == MOE_FORMAT_Q5_K;
    const int offset = f == MOE_FORMAT_INT4_GROUP ? 8 : moei_q8_offset(f); /* where it has no zero points of its own */
    c->low = _mm512_set1_epi8(two ? 3 : 15), c->high = _mm512_set1_epi8(five ? 16 : f == MOE_FORMAT_Q6_K ? 0x30 : 4), c->one = _mm512_set1_epi16(1);
    c->table = moei_q8_z128(moei_q8_is_e2m1(f) ? moei_q8_e2m1_table() : _mm_xor_si128(moei_q8_iq4_table(), _mm_set1_epi8(-128)));
    c->less[0] = moei_q8_is_nvfp4(f) ? _mm512_set1_epi32(-offset & 0xffff) : _mm512_set1_epi16((short)-offset);
    c->less[1] = _mm512_set1_epi32(-offset * 65536);
    MOEI_PIN(c->low);
    MOEI_PIN(c->high);
    MOEI_PIN(c->table);
    MOEI_PIN(c->one);
    MOEI_PIN(c->less[0]);
    MOEI_PIN(c->less[1]);
}
/* From 8 and 8 bytes of every block, whose low nibbles come first. */
MOEI_FORCE MOEI_VNNI void moei_q8_znibbles(__m512i low, __m512i m0, __m512i m1, __m512i v[4]) {
    v[0] = _mm512_and_si512(m0, low), v[2] = _mm512_and_si512(_mm512_srli_epi16(m0, 4), low);
    v[1] = _mm512_and_si512(m1, low), v[3] = _mm512_and_si512(_mm512_srli_epi16(m1, 4), low);
}
/* 8 blocks of 32 bytes, `size` apart. */
MOEI_FORCE MOEI_VNNI void moei_q8_z8bit(const uint8_t *p, size_t size, __m512i v[4]) {
    __m512i z[4], t[4];
    MOEI_UNROLL for (size_t i = 0; i < 4; i++) {
        z[i] = _mm512_inserti64x4(_mm512_castsi256_si512(moei_q8_ld256(p + i * size)), moei_q8_ld256(p + (i + 4) * size), 1);
        z[i] = _mm512_xor_si512(z[i], _mm512_set1_epi8(-128));
    }
    t[0] = _mm512_unpacklo_epi64(z[0], z[1]), t[1] = _mm512_unpackhi_epi64(z[0], z[1]);
    t[2] = _mm512_unpacklo_epi64(z[2], z[3]), t[3] = _mm512_unpackhi_epi64(z[2], z[3]);
    v[0] = _mm512_shuffle_i64x2(t[0], t[2], 0x88), v[2] = _mm512_shuffle_i64x2(t[0], t[2], 0xdd);
    v[1] = _mm512_shuffle_i64x2(t[1], t[3], 0x88), v[3] = _mm512_shuffle_i64x2(t[1], t[3], 0xdd);
}
/* 8 words from word a, b, c and d on. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_eights(size_t a, size_t b, size_t c, size_t d) {
    return _mm512_setr_epi64(moei_q8_four(a), moei_q8_four(a + 4), moei_q8_four(b), moei_q8_four(b + 4), moei_q8_four(c), moei_q8_four(c + 4),
                             moei_q8_four(d), moei_q8_four(d + 4));
}
/* MXFP4: of blocks of 17 bytes the even ones are words of z[0] and z[1], the odd ones of z[2] and z[3]. */
MOEI_FORCE MOEI_VNNI void moei_q8_zmxfp4(__m512i low, const __m512i *z, __m512i v[4]) {
    const __m512i even = _mm512_permutex2var_epi16(z[0], moei_q8_eights(0, 34, 17, 51), z[1]);
    const __m512i odd = _mm512_permutex2var_epi16(z[2], moei_q8_eights(1, 39, 18, 56), z[3]);
    moei_q8_znibbles(low, _mm512_unpacklo_epi64(even, odd), _mm512_unpackhi_epi64(even, odd), v);
}
/* Q4_K, Q5_K: four times 32 bytes, the low nibbles of a block and the high ones of the next. The bytes are put together before the
   nibbles are taken apart: unpacking qwords may be done by any port (Zen 5), permuting and shifting by two. */
MOEI_FORCE MOEI_VNNI void moei_q8_z45k(__m512i fifteen, const __m512i *z, __m512i v[4]) {
    MOEI_UNROLL for (int i = 0; i < 2; i++) {
        const __m512i from = _mm512_add_epi64(_mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), _mm512_set1_epi64(2 * i));
        const __m512i m = _mm512_permutex2var_epi64(z[0], from, z[1]);
        const __m512i low = _mm512_and_si512(m, fifteen), high = _mm512_and_si512(_mm512_srli_epi16(m, 4), fifteen);
        v[2 * i] = _mm512_unpacklo_epi64(low, high), v[2 * i + 1] = _mm512_unpackhi_epi64(low, high);
    }
}
/* Q2_K, Q3_K and the high bits of Q5_K, a register of the step at a time. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_zk(uint32_t f, const uint8_t *p, const __m512i *z, const moei_q8fixed *c, int j, __m512i v) {
    const __m512i b = _mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7);
    const __m512i two = _mm512_setr_epi64(0, 2, 0, 2, 4, 6, 4, 6); /* 2 (b % 4) */
    const __m512i i4 = _mm512_setr_epi64(j, j, j + 4, j + 4, j, j, j + 4, j + 4);
    if (f != MOE_FORMAT_Q5_K) v = _mm512_and_si512(_mm512_srlv_epi64(_mm512_permutexvar_epi64(i4, z[0]), two), c->low);
    if (f == MOE_FORMAT_Q2_K) return v;
    const int to = f == MOE_FORMAT_Q5_K ? 4 : 2; /* the high bit */
    uint64_t high;
    memcpy(&high, p + (f == MOE_FORMAT_Q5_K ? 16 : 0) + 8 * j, 8);
    const __m512i bits = _mm512_rorv_epi64(_mm512_set1_epi64((long long)high), _mm512_sub_epi64(b, _mm512_set1_epi64(to)));
    return _mm512_ternarylogic_epi32(v, bits, c->high, 0xf8); /* v | (bits & high) */
}
/* Q6_K stays as it lies, 64 weights in a row to a register: moei_q8_sort_q6 puts the tokens in that order. (Put in the order of the others
   it takes 16 permutations and shifts, and not 6. Zen 4, in cache, GB/s, 1, 2 and 4 tokens: 26 20 14, so 31 22 14. Q4_K and Q5_K, where
   sums per 32 would take more steps than now, gain nothing at one token and lose 6 and 20 %; Q2_K and Q3_K 6 %, and lose 8 and 20.) */
MOEI_FORCE MOEI_VNNI void moei_q8_zq6(const uint8_t *p, const __m512i *z, const moei_q8fixed *c, __m512i v[4]) {
    MOEI_UNROLL for (int j = 0; j < 4; j++) {
        const __m512i high = _mm512_broadcast_i64x4(moei_q8_ld256(p + 128 + j / 2 * 32));
        const __m512i by = _mm512_add_epi64(_mm512_setr_epi64(-4, -4, -4, -4, -2, -2, -2, -2), _mm512_set1_epi64(j % 2 * 4));
        v[j] = _mm512_and_si512(j % 2 ? _mm512_srli_epi16(z[j / 2], 4) : z[j / 2], c->low);
        v[j] = _mm512_ternarylogic_epi32(v[j], _mm512_rorv_epi64(high, by), c->high, 0xf8); /* v | (turned & high) */
    }
}
/* + 16 where byte `at` + j of a block's qword has the bit. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_zfifth(__m512i v, __m512i head, __m512i sixteen, size_t at) {
    const __m512i from = moei_q8_z128(_mm_add_epi8(_mm_set_epi64x(0x0808080808080808, 0), _mm_set1_epi8((char)at)));
    const __mmask64 high = _mm512_test_epi8_mask(_mm512_shuffle_epi8(head, from), _mm512_set1_epi64((long long)0x8040201008040201u));
    return _mm512_mask_add_epi8(v, high, v, sixteen);
}
MOEI_FORCE MOEI_VNNI void moei_q8_bytes_vnni(uint32_t f, const uint8_t *p, const __m512i *z, const moei_q8fixed *c, __m512i v[4]) {
    const size_t size = moei_q8_step_bytes(f) / 8;
    switch (f) {
    case MOE_FORMAT_Q8_0: moei_q8_z8bit(p + 2, 34, v); break;
    case MOE_FORMAT_INT8_CHANNEL: moei_q8_z8bit(p, 32, v); break;
    case MOE_FORMAT_Q4_K: moei_q8_z45k(c->low, z, v); break;
    case MOE_FORMAT_Q2_K:
    case MOE_FORMAT_Q3_K:
    case MOE_FORMAT_Q5_K:
        if (f == MOE_FORMAT_Q5_K) moei_q8_z45k(c->low, z, v);
        MOEI_UNROLL for (int j = 0; j < 4; j++) v[j] = moei_q8_zk(f, p, z, c, j, v[j]);
        break;
    case MOE_FORMAT_Q6_K: moei_q8_zq6(p, z, c, v); break;
    case MOE_FORMAT_MXFP4: moei_q8_zmxfp4(c->low, z, v); break;
    case MOE_FORMAT_NVFP4: {
        const __m512i from = _mm512_setr_epi32(1, 2, 5, 6, 17, 18, 21, 22, 10, 11, 14, 15, 26, 27, 30, 31);
        const __m512i m0 = _mm512_permutex2var_epi32(z[0], from, z[1]);
        moei_q8_znibbles(c->low, m0, _mm512_permutex2var_epi32(z[2], from, z[3]), v);
        break;
    }
    case MOE_FORMAT_IQ4_XS:
    case MOE_FORMAT_MXFP4_HF: /* these three as moei_q8_sort_vnni has them */
    case MOE_FORMAT_NVFP4_HF:
    case MOE_FORMAT_INT4_GROUP: {
        const __m512i m1 = moei_q8_qwords(z[0], z[1], 1, 3, 5, 7, 9, 11, 13, 15);
        moei_q8_znibbles(c->low, moei_q8_qwords(z[0], z[1], 0, 2, 4, 6, 8, 10, 12, 14), m1, v);
        break;
    }
    case MOE_FORMAT_Q4_0:
    case MOE_FORMAT_IQ4_NL: {
        const __m512i from = moei_q8_words(1, 10, 19, 28, 33, 42, 51, 60);
        const __m512i m0 = _mm512_permutex2var_epi16(z[0], from, z[1]);
        moei_q8_znibbles(c->low, m0, _mm512_permutex2var_epi16(z[2], from, z[3]), v);
        break;
    }
    default: moei_q8_znibbles(c->low, moei_q8_each(z, size, size - 16), moei_q8_each(z, size, size - 8), v);
    }
    const __m512i head = f == MOE_FORMAT_Q5_0 || f == MOE_FORMAT_Q5_1 ? moei_q8_each(z, size, 0) : v[0];
    MOEI_UNROLL for (int j = 0; j < 4; j++) {
        if (f == MOE_FORMAT_Q5_0 || f == MOE_FORMAT_Q5_1) v[j] = moei_q8_zfifth(v[j], head, c->high, size - 20 + (size_t)j);
        if (moei_q8_has_table(f)) v[j] = _mm512_shuffle_epi8(c->table, v[j]);
    }
    if (f == MOE_FORMAT_NVFP4 || moei_q8_has_order(f)) { /* 8 bytes are 16 weights in a row */
        const __m512i swap = v[1];
        v[1] = v[2], v[2] = swap;
    }
}

/* Scales as moei_q8_scales; where a few registers hold all of a step, one permutation replaces 8 scalar loads. */
MOEI_FORCE MOEI_VNNI __m128i moei_q8_pick(__m512i p, __m512i q, __m128i from) { /* 8 words of both */
    return _mm512_castsi512_si128(_mm512_permutex2var_epi16(p, _mm512_castsi128_si512(from), q));
}
MOEI_FORCE MOEI_VNNI void moei_q8_scales_z(uint32_t f, const uint8_t *p, const __m512i *z, moei_q8s *s) {
    if (f == MOE_FORMAT_Q4_1 || f == MOE_FORMAT_Q5_1) { /* words 0 and 1 of the blocks' qwords */
        const __m256i d = _mm256_setr_epi16(0, 4, 16, 20, 8, 12, 24, 28, 1, 5, 17, 21, 9, 13, 25, 29);
        const __m512i each = moei_q8_each(z, moei_q8_step_bytes(f) / 8, 0);
        const __m512 h = _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(_mm512_castsi256_si512(d), each)));
        s->d = _mm512_castps512_ps256(h), s->m = _mm512_extractf32x8_ps(h, 1);
    } else moei_q8_scales(f, p, NULL, 0, s);
}

/* ---- AVX512-VNNI: straight from the rows ---- */

/* Where integer scales [block][half] belong: the first and second halves of two blocks, twice each. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_halves_at(void) {
    return _mm512_setr_epi64(0x0002000200000000, 0x0003000300010001, 0x000a000a00080008, 0x000b000b00090009, 0x0006000600040004,
                             0x0007000700050005, 0x000e000e000c000c, 0x000f000f000d000d);
}
/* Q6_K: its scales in the order of v[0] v[1] packed and of v[2] v[3] packed. */
MOEI_FORCE MOEI_VNNI void moei_q8_spread_q6(__m256i sub, __m512i pair[2]) {
    const __m512i at = _mm512_setr_epi64(0, 0x0004000400040004, 0x0001000100010001, 0x0005000500050005, 0x0002000200020002, 0x0006000600060006,
                                         0x0003000300030003, 0x0007000700070007);
    pair[0] = _mm512_permutexvar_epi16(at, _mm512_castsi256_si512(sub));
    pair[1] = _mm512_permutexvar_epi16(_mm512_add_epi16(at, _mm512_set1_epi16(8)), _mm512_castsi256_si512(sub));
}
/* The dot products of 8 blocks, two dwords each to be added; where scales are per 16, of two blocks the first halves, then the second. Of
   Q6_K lane l has half l % 2 of blocks l / 2, l / 2 + 2, + 4, + 6.
   LIMITS: 8 products fit 16 bits where u <= 31, 4 where u <= 63. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_dot8_vnni(uint32_t f, const __m512i v[4], const __m512i *pair, __m512i one, const moei_q8 *x) {
    const int sub = moei_q8_has_sub(f), halves = moei_q8_has_halves(f);
    __m512i s[4];
    MOEI_UNROLL for (int j = 0; j < 4; j++) {
        const int fresh = j == 0 || f == MOE_FORMAT_Q6_K || (halves && j == 2);
        s[j] = _mm512_dpbusd_epi32(fresh ? _mm512_setzero_si512() : s[j - 1], v[j], moei_q8_ld512(x->q[2 * j]));
    }
    if (f == MOE_FORMAT_Q6_K) {
        const __m512 a = _mm512_castsi512_ps(_mm512_madd_epi16(_mm512_packs_epi32(s[0], s[1]), pair[0]));
        const __m512 b = _mm512_castsi512_ps(_mm512_madd_epi16(_mm512_packs_epi32(s[2], s[3]), pair[1]));
        return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd)));
    }
    if (!halves) return s[3];
    s[3] = _mm512_packs_epi32(s[1], s[3]);
    return sub ? s[3] : _mm512_madd_epi16(s[3], one); /* Q2_K, Q3_K: their scales are those of two rows */
}
/* Of two rows' dot products the sums of 8 blocks in order, one row after the other; for NVFP4 those of the halves. */
MOEI_FORCE MOEI_VNNI void moei_q8_sums2(uint32_t f, __m512i a, __m512i b, __m512i h[2]) {
    const __m512i rows = _mm512_setr_epi64(0, 4, 2, 6, 1, 5, 3, 7);
    const __m512 fa = _mm512_castsi512_ps(a), fb = _mm512_castsi512_ps(b);
    const int halves = moei_q8_has_halves(f);
    if (f == MOE_FORMAT_Q6_K) {
        const __m512i first = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 16, 24, 17, 25, 18, 26, 19, 27);
        const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(4));
        h[0] = _mm512_add_epi32(_mm512_permutex2var_epi32(a, first, b), _mm512_permutex2var_epi32(a, second, b));
        return;
    }
    h[0] = halves ? _mm512_unpacklo_epi64(a, b) : _mm512_castps_si512(_mm512_shuffle_ps(fa, fb, 0x88));
    h[1] = halves ? _mm512_unpackhi_epi64(a, b) : _mm512_castps_si512(_mm512_shuffle_ps(fa, fb, 0xdd));
    if (!moei_q8_is_nvfp4(f)) h[0] = _mm512_add_epi32(h[0], h[1]);
    h[0] = _mm512_permutexvar_epi64(rows, h[0]), h[1] = _mm512_permutexvar_epi64(rows, h[1]);
}
enum { MOEI_Q8_FEW = 4 }; /* up to so many tokens share an unpacked step, more go through panels: 3 to 8 were tried (Zen 4) */

/* The last, partial step of a row, at p. It is copied when the row begins: read at once, its lines would wait for the stores to reach L1
   (Zen 5, k = 2880: Q4_0 30 GB/s in cache, so 54). Padded with what is a small normal number in any type of scale: 0 in e8m0 is not. */
MOEI_FORCE MOEI_VNNI void moei_q8_cut(uint32_t f, size_t k, const uint8_t *p, uint8_t *tail) {
    const size_t step = moei_q8_step_bytes(f), n = k % 256 / 32 * (step / 8);
    if (n)
        MOEI_UNROLL for (size_t i = 0; i < step; i += 64) {
            const uint64_t some = n <= i ? 0 : n - i < 64 ? ((uint64_t)1 << (n - i)) - 1 : ~(uint64_t)0;
            _mm512_storeu_si512(tail + i, _mm512_mask_loadu_epi8(_mm512_set1_epi8(0x20), some, p + i));
        }
}
MOEI_FORCE MOEI_VNNI __m512i moei_q8_both256(__m256i a, __m256i b) { return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1); }
MOEI_FORCE MOEI_VNNI __m512 moei_q8_both256f(__m256 a, __m256 b) { return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1); }
/* acc + a step of two rows, as moei_q8_add. */
MOEI_FORCE MOEI_VNNI __m512 moei_q8_add2(uint32_t f, __m512 d, __m512 m, __m512i min, const __m512i less[2], __m512i h[2], const moei_q8 *x,
                                         __m512 acc) {
    const int nv = moei_q8_is_nvfp4(f), terms = nv || f == MOE_FORMAT_Q2_K || moei_q8_has_min(f) ? 2 : 1;
    const int sums = moei_q8_is_less(f, moei_q8_offset(f)) || f == MOE_FORMAT_Q2_K;
    const __m512 dx = _mm512_broadcast_f32x8(_mm256_loadu_ps(x->d));
    const __m512i sum16 = sums ? _mm512_broadcast_i64x4(moei_q8_ld256(x->sum16)) : h[0];
    MOEI_UNROLL for (int j = 0; j <= nv; j++)
        if (moei_q8_is_less(f, moei_q8_offset(f))) h[j] = _mm512_dpwssd_epi32(h[j], less[j], sum16);
    if (f == MOE_FORMAT_Q2_K) h[1] = _mm512_madd_epi16(min, sum16);
    MOEI_UNROLL for (int j = 0; j < terms; j++) {
        if (j && moei_q8_has_min(f)) acc = _mm512_fmadd_ps(m, _mm512_broadcast_f32x8(_mm256_loadu_ps(x->s)), acc);
        else acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(h[j]), _mm512_mul_ps(j ? m : d, dx), acc);
    }
    return acc;
}
/* What the sums of a row's step are multiplied by. */
typedef struct moei_q8step {
    __m256i less;
    __m128i raw, more; /* scales that two rows take apart together */
    __m256 d, m;       /* other ones, as in moei_q8s */
} moei_q8step;
/* The scales of two rows, one after the other, from 16 bytes of each: conversions are paid once for both. */
MOEI_FORCE int moei_q8_is_q23(uint32_t f) { return f == MOE_FORMAT_Q2_K || f == MOE_FORMAT_Q3_K; }
MOEI_FORCE int moei_q8_is_raw(uint32_t f) {
    return f == MOE_FORMAT_Q4_0 || f == MOE_FORMAT_IQ4_NL || f == MOE_FORMAT_Q8_0 || f == MOE_FORMAT_Q5_0 || f == MOE_FORMAT_MXFP4 ||
           f == MOE_FORMAT_NVFP4 || f == MOE_FORMAT_Q4_K || f == MOE_FORMAT_Q5_K || moei_q8_is_q23(f);
}
MOEI_FORCE MOEI_VNNI __m128i moei_q8_raw(uint32_t f, const uint8_t *p, const __m512i *z) {
    if (f == MOE_FORMAT_Q4_0 || f == MOE_FORMAT_IQ4_NL) return moei_q8_pick(z[0], z[1], _mm_setr_epi16(0, 9, 18, 27, 32, 41, 50, 59));
    if (f == MOE_FORMAT_Q8_0) {
        const __m128i a = moei_q8_pick(moei_q8_ld512(p), moei_q8_ld512(p + 68), _mm_setr_epi16(0, 17, 32, 49, 0, 0, 0, 0));
        const __m128i b = moei_q8_pick(moei_q8_ld512(p + 136), moei_q8_ld512(p + 204), _mm_setr_epi16(0, 17, 32, 49, 0, 0, 0, 0));
        return _mm_unpacklo_epi64(a, b);
    }
    if (f == MOE_FORMAT_MXFP4) { /* every other one is in the high byte of its word */
        const __m128i e = moei_q8_pick(moei_q8_ld512(p), z[1], _mm_setr_epi16(0, 8, 17, 25, 33, 42, 50, 59));
        return _mm_srlv_epi16(e, _mm_setr_epi16(0, 8, 0, 8, 8, 0, 8, 0));
    }
    if (f == MOE_FORMAT_Q5_0) {
        const __m128i d = _mm_setr_epi16(0, 4, 16, 20, 8, 12, 24, 28);
        return _mm512_castsi512_si128(_mm512_permutexvar_epi16(_mm512_castsi128_si512(d), moei_q8_each(z, 22, 0)));
    }
    if (f == MOE_FORMAT_NVFP4) {
        const __m512i from = _mm512_castsi128_si512(_mm_setr_epi32(0, 9, 16, 25));
        const __m128i b = _mm512_castsi512_si128(_mm512_permutex2var_epi32(z[0], from, z[1]));
        return _mm_shuffle_epi8(b, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)); /* first halves first */
    }
    return moei_q8_ld128(f == MOE_FORMAT_Q3_K ? p + 94 : p); /* Q2_K, Q4_K, Q5_K; Q3_K: 12 bytes from the third on, and d */
}
/* As moei_q8_scales_k. */
MOEI_FORCE MOEI_VNNI void moei_q8_scales2_k(__m128i a, __m128i b, __m512 *d, __m512 *m) {
    const __m256i h = moei_q8_both128(a, b), high6 = _mm256_setr_epi32(0, 0x30303030, 0, 0x30303030, 0, 0x30303030, 0, 0x30303030);
    const __m256i low = _mm256_srlv_epi32(_mm256_shuffle_epi32(h, 0xed), _mm256_setr_epi32(0, 0, 0, 4, 0, 0, 0, 4)); /* dwords 1 3 2 3 */
    const __m256i high = _mm256_and_si256(_mm256_srli_epi32(_mm256_shuffle_epi32(h, 0xa5), 2), high6);               /* 1 1 2 2 */
    const __m256i four = moei_q8_both(_mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    const __m256i s = _mm256_permute4x64_epi64(_mm256_ternarylogic_epi32(high, low, four, 0xf8), 0xd8); /* scales, then minima */
    const __m512 f = _mm512_castps128_ps512(_mm_xor_ps(_mm_cvtph_ps(_mm_unpacklo_epi32(a, b)), _mm_setr_ps(0.0f, -0.0f, 0.0f, -0.0f)));
    const __m512i of = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2);
    const __m512i n = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(s)), n_m = _mm512_cvtepi8_epi32(_mm256_extracti128_si256(s, 1));
    *d = _mm512_mul_ps(_mm512_permutexvar_ps(of, f), _mm512_cvtepi32_ps(n));
    *m = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_add_epi32(of, _mm512_set1_epi32(1)), f), _mm512_cvtepi32_ps(n_m));
}
/* As moei_q8_scales_nvfp4 or, with signs, moei_q8_side_of. */
MOEI_FORCE MOEI_VNNI void moei_q8_scales2_nv(int hf, __m128i a, __m128i b, __m512 *d, __m512 *m) {
    const __m256i bytes = _mm256_permute4x64_epi64(moei_q8_both128(a, b), 0xd8);
    const __m512i all = _mm512_slli_epi16(_mm512_cvtepi8_epi16(bytes), 7), top = _mm512_set1_epi16(0x3f80);
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(_mm512_and_si512(all, top), top);
    __m512i h = _mm512_and_si512(all, _mm512_set1_epi16((short)(hf ? 0xbf80 : 0x3f80)));
    if (!hf) { /* as ggml: the sign is ignored, 0x7f is 0 */
        const __mmask32 zero = _mm512_cmpeq_epi16_mask(all, _mm512_set1_epi16(0x3f80));
        h = _mm512_mask_mov_epi16(h, zero, _mm512_setzero_si512());
    }
    const __m512 by = _mm512_set1_ps(128.0f); /* half of the scale; as half floats they are 2^-8 too small */
    *d = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(h)), by), *m = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1)), by);
    if (!hf) return;
    const __m512 ones = _mm512_castsi512_ps(_mm512_set1_epi32(-1));
    *d = _mm512_mask_mov_ps(*d, (__mmask16)nan, ones), *m = _mm512_mask_mov_ps(*m, (__mmask16)(nan >> 16), ones);
}
/* Q2_K: as moei_q8_scales_q2; d and dmin are two more halves of each. Q3_K: as moei_q8_scales_q3. sub: 32 int16. */
MOEI_FORCE MOEI_VNNI void moei_q8_scales2_q2(const moei_q8step *a, const moei_q8step *b, __m512 *d, __m512 *m, __m512i *sub, __m512i *min) {
    const __m256i s = moei_q8_both128(a->raw, b->raw), low = _mm256_set1_epi8(15);
    const __m128 h = _mm_xor_ps(_mm_cvtph_ps(_mm_unpacklo_epi32(a->more, b->more)), _mm_setr_ps(0.0f, -0.0f, 0.0f, -0.0f));
    const __m512i of = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2);
    *d = _mm512_permutexvar_ps(of, _mm512_castps128_ps512(h));
    *m = _mm512_permutexvar_ps(_mm512_add_epi32(of, _mm512_set1_epi32(1)), _mm512_castps128_ps512(h));
    *sub = _mm512_cvtepu8_epi16(_mm256_and_si256(s, low)), *min = _mm512_cvtepu8_epi16(_mm256_and_si256(_mm256_srli_epi16(s, 4), low));
}
MOEI_FORCE MOEI_VNNI void moei_q8_scales2_q3(const moei_q8step *a, const moei_q8step *b, __m512 *d, __m512i *sub) {
    const __m256i s = moei_q8_both128(a->raw, b->raw);
    const __m256i eight = moei_q8_both(_mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
    const __m256i four = moei_q8_both(_mm_setr_epi8(10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13));
    const __m256i low = _mm256_srlv_epi64(_mm256_shuffle_epi8(s, eight), _mm256_setr_epi64x(0, 4, 0, 4));
    const __m256i high = _mm256_rorv_epi32(_mm256_shuffle_epi8(s, four), _mm256_setr_epi32(-4, -2, 0, 2, -4, -2, 0, 2));
    const __m256i six = _mm256_ternarylogic_epi32(_mm256_and_si256(low, _mm256_set1_epi8(15)), high, _mm256_set1_epi8(0x30), 0xf8);
    *sub = _mm512_cvtepi8_epi16(_mm256_sub_epi8(six, _mm256_set1_epi8(32)));
    *d = _mm512_permutexvar_ps(_mm512_setr_epi32(7, 7, 7, 7, 7, 7, 7, 7, 15, 15, 15, 15, 15, 15, 15, 15), _mm512_cvtph_ps(s));
}
MOEI_FORCE MOEI_VNNI void moei_q8_scales2(uint32_t f, uint32_t type, __m128i a, __m128i b, __m512 *d, __m512 *m) {
    if (f == MOE_FORMAT_Q4_K || f == MOE_FORMAT_Q5_K) moei_q8_scales2_k(a, b, d, m);
    else if (moei_q8_is_nvfp4(f)) moei_q8_scales2_nv(f == MOE_FORMAT_NVFP4_HF, a, b, d, m);
    else if (f == MOE_FORMAT_MXFP4) { /* as moei_q8_half_e8m0 */
        const __m512i e = _mm512_and_si512(_mm512_cvtepu16_epi32(moei_q8_both128(a, b)), _mm512_set1_epi32(255));
        const __m512i normal = _mm512_sub_epi32(_mm512_slli_epi32(e, 23), _mm512_set1_epi32(0x800000));
        *d = _mm512_castsi512_ps(_mm512_max_epi32(normal, _mm512_max_epi32(_mm512_slli_epi32(e, 22), _mm512_set1_epi32(0x200000))));
    } else if (f == MOE_FORMAT_MXFP4_HF) { /* as moei_q8_side_of */
        const __m512i e = _mm512_cvtepu8_epi32(_mm_unpacklo_epi64(a, b));
        const __m512i v = _mm512_max_epi32(_mm512_slli_epi32(e, 23), _mm512_set1_epi32(0x400000));
        const __mmask16 nan = _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255));
        *d = _mm512_mul_ps(_mm512_castsi512_ps(v), _mm512_set1_ps(0.5f));
        *d = _mm512_mask_mov_ps(*d, nan, _mm512_castsi512_ps(_mm512_set1_epi32(-1)));
    } else if (f == MOE_FORMAT_INT8_CHANNEL && !type) *d = _mm512_set1_ps(1.0f);
    else if (moei_q8_has_side(f) && type == MOE_TYPE_BF16)
        *d = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(moei_q8_both128(a, b)), 16));
    else *d = _mm512_cvtph_ps(moei_q8_both128(a, b));
}
typedef struct moei_q8apart { /* a row's scales and zero points that live apart: by_grid, taken from memory on the way, or else from side */
    moei_q8grid grid[2];
    moei_q8side side;
} moei_q8apart;
typedef struct moei_q8pair { /* two rows on their way through k */
    moei_rows w;
    moei_q8fixed fixed;
    size_t row[2];                 /* of w */
    size_t k, full, ahead;         /* steps: the first one of x, whole ones of a row; bytes to what is asked for */
    const uint8_t *p[2];           /* where the rows are */
    const moei_q8 *const *x;
    uint8_t (*tail)[5 * 64];
    moei_q8apart apart[2];
} moei_q8pair;
/* Whether what is to be added is not the same for all rows and steps (moei_q8fixed.less), nor made of two rows' scales (Q3_K). */
MOEI_FORCE int moei_q8_has_less(uint32_t f, int by_grid, const moei_rows *w) {
    return f == MOE_FORMAT_Q6_K || (f == MOE_FORMAT_INT4_GROUP && (!by_grid || w->zero.data));
}
/* Step i of row a times n tokens, before the sums are in order. */
MOEI_FORCE MOEI_VNNI void moei_q8_step_vnni(uint32_t f, int by_grid, uint32_t n, moei_q8pair *g, int a, size_t i, moei_q8step *to, __m512i *h) {
    const moei_q8fixed *c = &g->fixed;
    moei_q8apart *apart = &g->apart[a];
    __m512i z[4], v[4], pair[2];
    __m256i less[2];
    moei_q8s s;
    if (i == g->full) g->p[a] = g->tail[a];
    else moei_q8_ask(&g->w, g->p[a], g->ahead, moei_q8_step_bytes(f));
    const uint8_t *p = g->p[a];
    if (by_grid) {
        to->raw = g->w.scale.data ? moei_q8_grid_raw(f, &apart->grid[0], i) : _mm_setzero_si128();
        if (moei_q8_has_zeros(f, &g->w)) s.zero = moei_q8_grid_zero(g->w.zero.type, &apart->grid[1], i);
    } else if (moei_q8_has_side(f)) {
        if (i % MOEI_Q8_CHUNK == 0) moei_q8_sides(f, &g->w, g->row[a], i, &apart->side);
        moei_q8_scales(f, p, &apart->side, i % MOEI_Q8_CHUNK, &s);
    }
    moei_q8_lines(f, p, z);
    moei_q8_bytes_vnni(f, p, z, c, v); /* before the scales: clang 14 makes loads that an earlier one covers shifts, word by word */
    if (moei_q8_is_raw(f)) to->raw = moei_q8_raw(f, p, z);
    else if (!moei_q8_has_side(f)) moei_q8_scales_z(f, p, z, &s);
    if (f == MOE_FORMAT_Q2_K) to->more = moei_q8_ld32(p + 80);
    if (f == MOE_FORMAT_Q6_K) moei_q8_spread_q6(s.sub, pair);
    if (moei_q8_has_less(f, by_grid, &g->w)) {
        moei_q8_less(f, moei_q8_offset(f), &s, less);
        to->less = less[0];
    }
    if (!moei_q8_is_raw(f) && !by_grid) {
        to->d = s.d;
        if (moei_q8_has_min(f) || moei_q8_is_nvfp4(f)) to->m = s.m;
    }
    MOEI_UNROLL for (uint32_t t = 0; t < n; t++) h[t] = moei_q8_dot8_vnni(f, v, pair, c->one, g->x[t] + (i - g->k));
    g->p[a] += moei_q8_step_bytes(f);
}
/* acc + step i of both rows, whose sums are ha and hb. */
MOEI_FORCE MOEI_VNNI void moei_q8_join_vnni(uint32_t f, int by_grid, uint32_t n, const moei_q8pair *g, size_t i, const moei_q8step *a,
                                            const moei_q8step *b, const __m512i *ha, const __m512i *hb, __m512 *acc) {
    const moei_q8fixed *c = &g->fixed;
    const uint32_t type = g->w.scale.data ? g->w.scale.type : (uint32_t)MOE_TYPE_NONE;
    __m512i less[2] = {c->less[0], c->less[1]}, sub = c->one, min = c->one;
    __m512 d, m = _mm512_setzero_ps();
    if (f == MOE_FORMAT_Q2_K) moei_q8_scales2_q2(a, b, &d, &m, &sub, &min);
    else if (f == MOE_FORMAT_Q3_K) moei_q8_scales2_q3(a, b, &d, &sub), less[0] = _mm512_mullo_epi16(sub, c->less[0]);
    else if (moei_q8_is_raw(f) || by_grid) moei_q8_scales2(f, type, a->raw, b->raw, &d, &m);
    else {
        d = moei_q8_both256f(a->d, b->d);
        if (moei_q8_has_min(f) || moei_q8_is_nvfp4(f)) m = moei_q8_both256f(a->m, b->m);
    }
    if (moei_q8_has_less(f, by_grid, &g->w)) less[0] = moei_q8_both256(a->less, b->less);
    const __m512i first = moei_q8_halves_at(), second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    const __m512i of_a = _mm512_permutexvar_epi16(first, sub), of_b = _mm512_permutexvar_epi16(second, sub);
    MOEI_UNROLL for (uint32_t t = 0; t < n; t++) {
        __m512i of[2] = {ha[t], hb[t]}, sums[2];
        if (moei_q8_is_q23(f)) of[0] = _mm512_madd_epi16(of[0], of_a), of[1] = _mm512_madd_epi16(of[1], of_b);
        moei_q8_sums2(f, of[0], of[1], sums);
        acc[t] = moei_q8_add2(f, d, m, min, less, sums, g->x[t] + (i - g->k), acc[t]);
    }
}
/* SHAPES      2 rows x n tokens, n a constant: the accumulators stay in registers, a row to a half, and a token costs 4 dot products and half
               of about 9 micro-ops per row. The rows take turns: of each a step, which what follows joins. (Zen 4, in cache, GB/s, two steps of
               one row joined instead, and so: one token of Q4_0 30, so 34, Q4_K 23, so 27, INT4_GROUP 24, so 27; 4 tokens of Q8_0 19, so 24.)
               But one token meets Q8_0, INT8_CHANNEL and Q6_K faster than memory gives them: there some steps of the first row wait in L1 for
               the second row's, so that memory is read in order (cold, one and two cores, % of the read bandwidth: Q8_0 89 96, in turns 75 90).
               What is asked for is always of the next pair: of the next row, half of the lines would come late (k = 14336, one core, one
               token: Q8_0 63, so 84, Q6_K 60, so 87). */
enum { MOEI_Q8_KEEP = 16, MOEI_Q8_KEEP_LONG = 8 }; /* steps of the first row, of one longer than that */
MOEI_FORCE int moei_q8_in_turns(uint32_t f, uint32_t n) { return n > 1 || moei_q8_step_bytes(f) < 200; }
MOEI_FORCE MOEI_VNNI void moei_q8_few_vnni(uint32_t f, int by_grid, const moei_rows *w, uint32_t n_rows, size_t k, size_t k_end,
                                           const moei_q8 *const *x, uint32_t n, moei_q8sums *sums, float *out, size_t out_stride) {
    const size_t steps = (w->k + 255) / 256, step = moei_q8_step_bytes(f), n_kept = k_end - k > MOEI_Q8_KEEP ? MOEI_Q8_KEEP_LONG : MOEI_Q8_KEEP;
    const size_t rows_ahead = (MOEI_AHEAD_BYTES / ((k_end - k) * step + 1) + 2) / 2 * 2;
    uint8_t tail[2][5 * 64];
    moei_q8pair g;
    moei_q8step keep[MOEI_Q8_KEEP], now[2];
    __m512i kept[MOEI_Q8_KEEP], h[2][MOEI_Q8_FEW];
    g.w = *w; /* of *w gcc would load what it needs again in every step (INT4_GROUP: 22 GB/s in cache, so 24) */
    g.k = k, g.full = w->k / 256, g.x = x, g.tail = tail;
    moei_q8_fix(f, &g.fixed);
    if (by_grid) {
        moei_q8_grid_of(&w->scale, w->k, &g.apart[0].grid[0]), moei_q8_grid_of(&w->zero, w->k, &g.apart[0].grid[1]);
        memcpy(g.apart[1].grid, g.apart[0].grid, sizeof g.apart[0].grid);
    }
    for (uint32_t r = 0; r < n_rows; r += 2) {
        __m512 acc[MOEI_Q8_FEW];
        g.ahead = moei_ahead_at(w, n_rows, r, rows_ahead), g.row[0] = r, g.row[1] = r + (r + 1 < n_rows);
        MOEI_UNROLL for (uint32_t t = 0; t < n; t++) acc[t] = k ? _mm512_loadu_ps(sums[r].v[t]) : _mm512_setzero_ps();
        MOEI_UNROLL for (int a = 0; a < 2; a++) {
            g.p[a] = moei_row(w, g.row[a]);
            if (by_grid) moei_q8_grid_rows(f, w, g.row[a], k ? 0 : rows_ahead, g.apart[a].grid);
            if (k_end == steps) moei_q8_cut(f, w->k, g.p[a] + (g.full - k) * step, tail[a]);
        }
        if (moei_q8_in_turns(f, n))
            for (size_t i = k; i < k_end; i++) {
                MOEI_UNROLL for (int a = 0; a < 2; a++) moei_q8_step_vnni(f, by_grid, n, &g, a, i, &now[a], h[a]);
                moei_q8_join_vnni(f, by_grid, n, &g, i, &now[0], &now[1], h[0], h[1], acc);
            }
        else
            for (size_t from = k, to; from < k_end; from = to) {
                to = k_end - from > n_kept ? from + n_kept : k_end;
                for (size_t i = from; i < to; i++) moei_q8_step_vnni(f, by_grid, n, &g, 0, i, &keep[i - from], &kept[i - from]);
                for (size_t i = from; i < to; i++) {
                    moei_q8_step_vnni(f, by_grid, n, &g, 1, i, &now[1], h[1]);
                    moei_q8_join_vnni(f, by_grid, n, &g, i, &keep[i - from], &now[1], &kept[i - from], h[1], acc);
                }
            }
        MOEI_UNROLL for (uint32_t t = 0; t < n; t++) {
            if (k_end < steps) {
                _mm512_storeu_ps(sums[r].v[t], acc[t]);
                continue;
            }
            out[t * out_stride + r] = moei_q8_tree(_mm512_castps512_ps256(acc[t]));
            if (r + 1 < n_rows) out[t * out_stride + r + 1] = moei_q8_tree(_mm512_extractf32x8_ps(acc[t], 1));
        }
    }
}
/* As moei_q8_sort_256, but the even ones of 16, then the odd ones. */
static MOEI_VNNI void moei_q8_sort_vnni(const moei_q8 *from, moei_q8 *to) {
    const __m512i four = moei_q8_z128(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    moei_q8_copy_rest(from, to);
    MOEI_UNROLL for (int j = 0; j < 8; j += 4) {
        const __m512i a = _mm512_shuffle_epi8(moei_q8_ld512(from->q[j]), four), b = _mm512_shuffle_epi8(moei_q8_ld512(from->q[j + 2]), four);
        const __m512i low = _mm512_unpacklo_epi32(a, b), high = _mm512_unpackhi_epi32(a, b);
        _mm512_storeu_si512(to->q[j], _mm512_unpacklo_epi64(low, high));
        _mm512_storeu_si512(to->q[j + 2], _mm512_unpackhi_epi64(low, high));
    }
}
/* 64 values in a row to a register, as moei_q8_zq6 has the weights. */
static MOEI_VNNI void moei_q8_sort_q6(const moei_q8 *from, moei_q8 *to) {
    const __m512i a = moei_q8_ld512(from->q[0]), b = moei_q8_ld512(from->q[2]), c = moei_q8_ld512(from->q[4]), d = moei_q8_ld512(from->q[6]);
    const __m512i first[2] = {_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)}; /* 16 each of blocks 0 4 2 6, of 1 5 3 7 */
    const __m512i last[2] = {_mm512_unpacklo_epi64(c, d), _mm512_unpackhi_epi64(c, d)};
    moei_q8_copy_rest(from, to);
    MOEI_UNROLL for (int block = 0; block < 4; block++) {
        const __m512i at = _mm512_add_epi64(_mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), _mm512_set1_epi64(block / 2 * 4));
        const __m512i both = _mm512_permutex2var_epi64(first[block % 2], at, last[block % 2]); /* block and block + 4 */
        _mm256_storeu_si256((__m256i *)(void *)to->q[block], _mm512_castsi512_si256(both));
        _mm256_storeu_si256((__m256i *)(void *)to->q[block + 4], _mm512_extracti64x4_epi64(both, 1));
    }
}
MOEI_FORCE moei_q8_arrange moei_q8_arrange_vnni(uint32_t f) {
    moei_q8_arrange a = {f == MOE_FORMAT_Q6_K ? moei_q8_sort_q6 : moei_q8_has_order(f) ? moei_q8_sort_vnni : NULL, 1};
    return a;
}
#define MOEI_Q8_TIMES_VNNI(f, name, n, by_grid)                                                                          \
    MOEI_Q8_TIMES(vnni, MOEI_VNNI, f, name, moei_q8_few_vnni(MOE_FORMAT_##f, by_grid, w, n_rows, k, k_end, x, n, sums, out, out_stride))
#define MOEI_Q8_DOT_VNNI(f, by_grid, other)                                                                              \
    MOEI_Q8_TIMES_VNNI(f, times1, 1, by_grid) MOEI_Q8_TIMES_VNNI(f, times2, 2, by_grid)                                  \
    MOEI_Q8_TIMES_VNNI(f, times3, 3, by_grid) MOEI_Q8_TIMES_VNNI(f, times4, 4, by_grid)                                  \
    MOEI_Q8_TURNS(vnni, MOEI_VNNI, f, other, moei_q8_arrange_vnni(MOE_FORMAT_##f))
#define MOEI_Q8_PLAIN_VNNI(isa, target, f) MOEI_Q8_DOT_VNNI(f, 0, NULL)
#define MOEI_Q8_SIDE_VNNI(isa, target, f) MOEI_Q8_TIMES_VNNI(f, apart, 1, 0) MOEI_Q8_DOT_VNNI(f, 1, MOEI_Q8_APART(isa, f))
MOEI_Q8_FORMATS_PLAIN(MOEI_Q8_PLAIN_VNNI, vnni, )
MOEI_Q8_FORMATS_SIDE(MOEI_Q8_SIDE_VNNI, vnni, )

/* ---- AVX512-VNNI: many tokens ----
   LAYOUT      A panel is 16 rows; an entry is a block of 32 weights of them, a row to a dword: 8 vectors of weights + 128, or 4 of
               nibbles (dwords 0 to 3 are the low ones), d, then what the kind has. Blocks of a lane (b mod 8) lie one after the other, so
               its float accumulators stay in registers; lanes lie as their sums meet, 0 4 2 6 1 5 3 7. Tokens are packed alike: a block
               of a group is 4 tokens, then the others, each as 8 n dwords of values and n times each of moei_q8_part.
   DEFINITION  as everywhere: sum x (w + 128) - 128 sum x is exact. Its second term is the same for all rows: it comes with the
               tokens, which are packed once, and not with the weights, which are decoded for every call.
   REGISTERS   P panels x C tokens: P C integer sums, as many accumulators, P weights, an activation; P C is 8, but for the last tokens
               of bytes: 4 and 1 or 2 more are one tile of one chain (1 alone would take as long as 3: layer, 256 and 512 tokens, Q8_0
               4 and 2 % faster). One panel x 8 tokens loads 81 times for 80 operations of ports 0 and 1, two x 4, where a broadcast
               serves two dot products, 58 times: in L1 71 and 77 % of the peak where two loads and two 512-bit operations go in a cycle
               (Zen 5). But two panels leave L1 while they are decoded, so few tokens take one (Zen 5, layer, two against one: 512 tokens
               2 to 9 % faster, 64 tokens 10 to 20 % slower). What several operations use is pinned: gcc makes it a memory operand of
               each use. Tried, and no faster: 5 or 6 tokens everywhere, panels side by side, lane by lane over all tokens (sums in
               memory: 2 to 10 % slower; block by block, where broadcasts wait for tokens in L2, 53 cycles an entry for 41, prefetched to
               L1 45), one panel x 8 tokens with half of the broadcasts by vpshufd, which has ports of its own here (as fast as two x 4, but
               tokens push the panel out: 512 tokens 3 to 6 % slower, 128 2 to 3 % faster for bytes), parts of k for long rows (Mixtral, 2048 of k
               of two pairs of panels: Q4_K 1 to 4 % faster, Q8_0 0 to 3, 128 tokens 7 % slower).
   ORDER       The bits are those of one token, whose vectors have 8 blocks side by side: 8 sums and their tree, where a tile alone would
               have one sum. That costs it 2 to 7 % where k = 768 and up to 3 where k = 2048 (Zen 5; bench_q8 order times both). No more than 3
               sums wait, and each is still in L1 when the next comes (lanes from 0 to 7, where 4 wait for the 4 after them: Q8_0 9 and 6 %,
               Q4_0 8 and 3, Q6_K 4 and 2; layer, 512 tokens: int8, Q5_K 5 % slower, Q8_0 2, Q4_0 1).
   NIBBLES     Weights of 4 bits stay packed in the panel, and the tile takes them apart once for all its tokens, on ports that the dot
               products leave free: the panel fits L1 or nearly, decoding stores half (23 cycles a block for 37), and pairs pay from 9
               tokens on (Zen 5, layer of qwen3-30b, 128 and 512 tokens: Q4_0 1.14 and 1.07, Q4_K 1.16 and 1.05, MXFP4 1.12 and 1.02
               times faster; the tile alone is level, but by table 3 % slower). Not on Intel, where all 512-bit arithmetic shares two ports (Xeon,
               model 207, 32 and 128 tokens, cold, % of the peak: Q4_0 50 and 70 from bytes, 45 and 58 from nibbles).
   INTEL       L1 and L2 exchange lines more slowly, so there is one panel for any number of tokens (Xeon, model 207, k = 2048, cold, 32, 64,
               128 and 256 tokens, % of the peak, one panel: Q8_0 50 57 62 62, Q4_0 54 62 65 66, Q4_K 49 54 58 56; two: 46 55 60 61, 52 60 62
               62, 47 52 56 55). What is left of the time is decoding: 30 to 55 cycles a block in L1, near what its operations need of two
               ports, and 25 to 35 more where rows come from memory, prefetched to L1 or not.
   LIMITS      A block and token is 8 dot products, a conversion, a multiplication and an fma; a minimum and scales per 16 an fma
               more; two chains an addition. On Zen conversions and additions have other ports: at most 80 % of the peak (73 with a
               minimum, 67 with scales per 16); where ports 0 and 5 do all 512-bit arithmetic (Intel) 73 %, of two
               chains 67, with a minimum 67 and 62, scales per 16 62 %, NVFP4 57 %. */

/* Tokens of a group; of a tile of two panels; P C at most; tokens up to which bytes have one panel (nibbles: a group). */
enum { MOEI_Q8_TOKENS = 8, MOEI_Q8_WIDTH = 4, MOEI_Q8_SUMS = 12, MOEI_Q8_PAIR = 16 };
/* What a packed block has of each token after its values. */
enum moei_q8_part {
    MOEI_Q8_D = 8, MOEI_Q8_S, MOEI_Q8_SUM16,
    MOEI_Q8_ALL, MOEI_Q8_FIRST, MOEI_Q8_SECOND, /* integer sums start there: -128 sum(q), of all or half; FIRST at MOEI_MAGIC */
    MOEI_Q8_PARTS
};
MOEI_FORCE size_t moei_q8_group_bytes(uint32_t n) { return MOEI_Q8_PARTS * 4 * (size_t)n; } /* of a block of n tokens */
static size_t moei_q8_row_bytes_vnni(size_t k) { return (k + 255) / 256 * 8 * moei_q8_group_bytes(1); } /* prepared ones need less */
enum { MOEI_Q8_BYTES = 8, MOEI_Q8_NIBBLES = 4 }; /* as what a panel holds weights: so many vectors of an entry */
MOEI_FORCE size_t moei_q8_entry(uint32_t f, int as) {
    size_t scales = moei_q8_has_min(f) || moei_q8_is_nvfp4(f) ? 2 : 1; /* d, m */
    if (moei_q8_has_sub(f)) scales = f == MOE_FORMAT_Q2_K ? 5 : 3;     /* d, scale 0, scale 1 as floats; m, minima as two int16 */
    return 64 * ((size_t)as + scales);
}
static size_t moei_q8_panel_bytes(uint32_t n_rows, size_t k) { /* of up to two */
    return (n_rows > 16 ? 2 : n_rows > 0) * ((k + 255) / 256 * 8 * moei_q8_entry(MOE_FORMAT_Q2_K, MOEI_Q8_BYTES));
}
/* Weights of 4 bits whose offset is a constant. */
#define MOEI_Q8_FORMATS_4(X, as, target)                                                                                 \
    X(as, target, Q4_0) X(as, target, Q4_1) X(as, target, Q4_K) X(as, target, IQ4_NL) X(as, target, IQ4_XS) X(as, target, MXFP4) \
    X(as, target, NVFP4) X(as, target, MXFP4_HF) X(as, target, NVFP4_HF)
#define MOEI_Q8_IS_4(as, target, f) case MOE_FORMAT_##f:
MOEI_FORCE int moei_q8_has_nibbles(uint32_t f) {
    switch (f) { MOEI_Q8_FORMATS_4(MOEI_Q8_IS_4, , ) return 1; default: return 0; }
}
MOEI_FORCE int moei_q8_as(int intel, uint32_t f) { return !intel && moei_q8_has_nibbles(f) ? MOEI_Q8_NIBBLES : MOEI_Q8_BYTES; }
/* What the tile needs to know of a format: formats of a kind share its code. */
MOEI_FORCE uint32_t moei_q8_kind(uint32_t f, int as) {
    if (moei_q8_has_min(f)) return MOE_FORMAT_Q4_K;
    if (moei_q8_is_nvfp4(f)) return MOE_FORMAT_NVFP4;
    if (as == MOEI_Q8_NIBBLES) return moei_q8_has_table(f) ? MOE_FORMAT_MXFP4 : MOE_FORMAT_Q4_0;
    return f == MOE_FORMAT_Q2_K ? f : (uint32_t)(moei_q8_has_sub(f) ? MOE_FORMAT_Q6_K : MOE_FORMAT_Q8_0);
}
/* Which of 8 lanes lies where: 0 4 2 6 1 5 3 7. Its own inverse. And where block b lies. */
MOEI_FORCE size_t moei_q8_place(size_t lane) { return (lane & 1) << 2 | (lane & 2) | (lane >> 2 & 1); }
MOEI_FORCE size_t moei_q8_block_at(size_t b, size_t steps) { return moei_q8_place(b % 8) * steps + b / 8; }
/* The table's entries + 128. */
MOEI_FORCE MOEI_AVX2 __m128i moei_q8_table(uint32_t f) {
    return moei_q8_is_e2m1(f) ? _mm_add_epi8(moei_q8_e2m1_table(), _mm_set1_epi8(112)) : _mm_xor_si128(moei_q8_iq4_table(), _mm_set1_epi8(-128));
}
/* Dword `part` of token t of c: the first 4 are in x[0], the others in x[1]. */
MOEI_FORCE const uint8_t *moei_q8_at_token(const uint8_t *const *x, size_t part, int c, int t) {
    const int four = t >= MOEI_Q8_WIDTH, first = four * MOEI_Q8_WIDTH, n = c - first < MOEI_Q8_WIDTH ? c - first : MOEI_Q8_WIDTH;
    return x[four] + 4 * (part * (size_t)n + (size_t)(t - first));
}
MOEI_FORCE MOEI_VNNI __m512i moei_q8_of(const uint8_t *const *x, size_t part, int c, int t) {
    __m512i v = _mm512_set1_epi32((int)moei_q8_u32(moei_q8_at_token(x, part, c, t)));
    MOEI_PIN(v);
    return v;
}
/* s + w times the 4 values at x, in one instruction where they are used once. (gcc takes two: 2.5 % of a layer's time.) */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_dot512(__m512i s, __m512i w, const uint8_t *x) {
#if MOEI_ASM && !defined(__clang__)
    __asm__("vpdpbusd {%2%{1to16%}, %1, %0|%0, %1, %2%{1to16%}}" : "+v"(s) : "v"(w), "m"(*(const char(*)[4])x));
    return s;
#else
    return _mm512_dpbusd_epi32(s, w, _mm512_set1_epi32((int)moei_q8_u32(x)));
#endif
}
/* One entry of P panels, `apart` bytes from each other. */
typedef struct moei_q8at {
    const uint8_t *w;
    size_t apart;
} moei_q8at;
MOEI_FORCE MOEI_VNNI void moei_q8_vectors(int P, moei_q8at e, size_t i, __m512 *v) {
    MOEI_UNROLL for (int p = 0; p < P; p++) {
        v[p] = _mm512_loadu_ps((const float *)(const void *)(e.w + (size_t)p * e.apart + 64 * i));
        MOEI_PIN(v[p]);
    }
}
/* What takes nibbles apart. */
typedef struct moei_q8unpack {
    __m512i low, table;
} moei_q8unpack;
/* Of dot products, to a sum. Two where they are bytes of two panels, nibbles or scales per 16: see moei_q8_dots. One panel of bytes has one, for
   the addition takes a port of Intel's dot products (Xeon, model 207, 32 tokens, cold: Q8_0, Q4_0, Q4_K 1.02 to 1.05 times faster). */
MOEI_FORCE int moei_q8_chains(uint32_t kind, int as, int P, int c) {
    return moei_q8_has_halves(kind) || (P * c <= 8 && (P == 2 || as == MOEI_Q8_NIBBLES)) ? 2 : 1;
}
/* Of s, f and acc, P t + p belongs to token t and panel p. s[h] = weights [4 h, 4 h + 4) of an entry times c tokens: the halves take turns, as
   a dot product waits 4 cycles (Intel: 5) for the one before it, in which 8 others start, no more than a tile of one chain has (Zen 5, layer,
   512 tokens: Q6_K 1.03 to 1.06, Q8_0, Q4_0 1.01 times faster. What is measured with scales whose products underflow is not true: 1.25). */
MOEI_FORCE MOEI_VNNI void moei_q8_dots(uint32_t kind, int as, int P, int c, moei_q8at e, const uint8_t *const *x, const moei_q8unpack *u,
                                       __m512i (*s)[MOEI_Q8_SUMS]) {
    const int halves = moei_q8_has_halves(kind), nibbles = as == MOEI_Q8_NIBBLES, chains = moei_q8_chains(kind, as, P, c);
    MOEI_UNROLL for (int i = 0; i < P * c; i++) {
        s[1][i] = halves ? moei_q8_of(x, MOEI_Q8_SECOND, c, i / P) : _mm512_setzero_si512();
        if (chains == 2) MOEI_PIN(s[1][i]);
        if (nibbles && kind == MOE_FORMAT_Q4_K) s[0][i] = _mm512_setzero_si512(); /* no offset */
        else s[0][i] = moei_q8_of(x, halves ? MOEI_Q8_FIRST : MOEI_Q8_ALL, c, i / P);
        if (nibbles && kind == MOE_FORMAT_Q4_0) s[0][i] = _mm512_srai_epi32(s[0][i], 4); /* its offset is 8 */
    }
    __m512 v[2];
    MOEI_UNROLL for (size_t i = 0; i < 8; i++) {
        const size_t h = i % 2, j = 4 * h + i / 2;
        __m512i *const sum = s[chains == 2 ? h : 0];
        __m512i w[2];
        if (!nibbles || !h) moei_q8_vectors(P, e, nibbles ? i / 2 : j, v);
        MOEI_UNROLL for (int p = 0; p < P; p++) {
            w[p] = _mm512_castps_si512(v[p]);
            if (nibbles) w[p] = _mm512_and_si512(h ? _mm512_srli_epi16(w[p], 4) : w[p], u->low);
            if (nibbles && moei_q8_has_table(kind)) w[p] = _mm512_shuffle_epi8(u->table, w[p]);
        }
        MOEI_UNROLL for (int t = 0; t < c; t++) {
            if (P == 1) sum[t] = moei_q8_dot512(sum[t], w[0], moei_q8_at_token(x, j, c, t));
            if (P == 1) continue;
            const __m512i q = moei_q8_of(x, j, c, t);
            MOEI_UNROLL for (int p = 0; p < P; p++) sum[P * t + p] = _mm512_dpbusd_epi32(sum[P * t + p], w[p], q);
        }
    }
}
/* acc += s * (d * d_x), d: vector i */
MOEI_FORCE MOEI_VNNI void moei_q8_scaled(int P, int c, moei_q8at e, size_t i, const uint8_t *const *x, const __m512 *s, __m512 *acc) {
    __m512 d[2];
    moei_q8_vectors(P, e, i, d);
    MOEI_UNROLL for (int t = 0; t < c; t++) {
        const __m512 dx = _mm512_castsi512_ps(moei_q8_of(x, MOEI_Q8_D, c, t));
        MOEI_UNROLL for (int p = 0; p < P; p++) acc[P * t + p] = _mm512_fmadd_ps(s[P * t + p], _mm512_mul_ps(d[p], dx), acc[P * t + p]);
    }
}
/* One entry times c tokens. */
MOEI_FORCE MOEI_VNNI void moei_q8_entry_vnni(uint32_t kind, int as, int P, int c, moei_q8at e, const uint8_t *const *x, const moei_q8unpack *u,
                                             __m512 *acc) {
    const __m512 magic = _mm512_set1_ps(MOEI_MAGIC);
    const size_t scales = (size_t)as;
    const int n = P * c;
    __m512i s[2][MOEI_Q8_SUMS];
    __m512 f[MOEI_Q8_SUMS], v[2];
    moei_q8_dots(kind, as, P, c, e, x, u, s);
    if (kind == MOE_FORMAT_NVFP4) {
        MOEI_UNROLL for (int i = 0; i < n; i++) f[i] = _mm512_sub_ps(_mm512_castsi512_ps(s[0][i]), magic);
        moei_q8_scaled(P, c, e, scales, x, f, acc);
    } else if (moei_q8_has_halves(kind)) { /* (MOEI_MAGIC + h) * scale - MOEI_MAGIC * scale = h * scale: all exact */
        __m512 less[2];
        moei_q8_vectors(P, e, scales + 1, v);
        MOEI_UNROLL for (int p = 0; p < P; p++) less[p] = _mm512_mul_ps(v[p], _mm512_set1_ps(-MOEI_MAGIC));
        MOEI_UNROLL for (int i = 0; i < n; i++) f[i] = _mm512_fmadd_ps(_mm512_castsi512_ps(s[0][i]), v[i % P], less[i % P]);
    } else
        MOEI_UNROLL for (int i = 0; i < n; i++) s[1][i] = moei_q8_chains(kind, as, P, c) == 2 ? _mm512_add_epi32(s[0][i], s[1][i]) : s[0][i];
    if (moei_q8_has_sub(kind)) {
        moei_q8_vectors(P, e, scales + 2, v);
        MOEI_UNROLL for (int i = 0; i < n; i++) f[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[1][i]), v[i % P], f[i]);
    } else
        MOEI_UNROLL for (int i = 0; i < n; i++) f[i] = _mm512_cvtepi32_ps(s[1][i]);
    moei_q8_scaled(P, c, e, kind == MOE_FORMAT_NVFP4 ? scales + 1 : scales, x, f, acc);
    if (kind == MOE_FORMAT_Q4_K) {
        moei_q8_vectors(P, e, scales + 1, v);
        MOEI_UNROLL for (int i = 0; i < n; i++)
            acc[i] = _mm512_fmadd_ps(v[i % P], _mm512_castsi512_ps(moei_q8_of(x, MOEI_Q8_S, c, i / P)), acc[i]);
    }
    if (kind != MOE_FORMAT_Q2_K) return;
    moei_q8_vectors(P, e, scales + 4, v);
    MOEI_UNROLL for (int i = 0; i < n; i++)
        f[i] = _mm512_cvtepi32_ps(_mm512_madd_epi16(_mm512_castps_si512(v[i % P]), moei_q8_of(x, MOEI_Q8_SUM16, c, i / P)));
    moei_q8_scaled(P, c, e, scales + 3, x, f, acc);
}
/* One or two panels times tokens of a group. */
typedef struct moei_q8tile {
    const uint8_t *panel, *x[2];      /* 4 tokens and the others */
    size_t n_blocks, apart, x_block[2]; /* bytes from a panel to the next, from a block of a group to the next */
    const uint8_t *ahead, *ahead_end; /* to prefetch, ahead_step bytes per entry */
    size_t ahead_step;
    float *out;
    size_t out_stride;
    uint32_t n_rows, format;          /* stored: up to 16 of each panel */
} moei_q8tile;
typedef void moei_q8_times_fn(const moei_q8tile *t);
MOEI_FORCE MOEI_VNNI void moei_q8_tile_vnni(uint32_t kind, int as, int P, int c, const moei_q8tile *p) {
    const size_t steps = (p->n_blocks + 7) / 8, size = moei_q8_entry(kind, as);
    const int n = P * c;
    const uint8_t *ahead = p->ahead, *ahead_end = p->ahead_end;
    const __mmask16 mask[2] = {moei_mask_avx512(p->n_rows), moei_mask_avx512(p->n_rows < 16 ? 0 : p->n_rows - 16)};
    const moei_q8unpack u = {_mm512_set1_epi8(15), moei_q8_z128(moei_q8_table(p->format))};
    __m512 sum[3][MOEI_Q8_SUMS], a[MOEI_Q8_SUMS];
    for (size_t i = 0; i < 8; i++) {
        const size_t lane = moei_q8_place(i);
        moei_q8at e = {p->panel + i * steps * size, p->apart};
        const uint8_t *x[2] = {p->x[0] + i * steps * p->x_block[0], p->x[1] + i * steps * p->x_block[1]};
        MOEI_UNROLL for (int j = 0; j < n; j++) a[j] = _mm512_setzero_ps();
        for (size_t b = p->n_blocks / 8 + (lane < p->n_blocks % 8); b; b--, e.w += size, x[0] += p->x_block[0], x[1] += p->x_block[1]) {
            MOEI_AHEAD(p->ahead_step);
            moei_q8_entry_vnni(kind, as, P, c, e, x, &u, a);
        }
        MOEI_UNROLL for (size_t level = 0; level < 3; level++) {
            if (!(i >> level & 1)) {
                MOEI_UNROLL for (int j = 0; j < n; j++) sum[level][j] = a[j];
                break;
            }
            MOEI_UNROLL for (int j = 0; j < n; j++) a[j] = _mm512_add_ps(sum[level][j], a[j]);
        }
    }
    MOEI_UNROLL for (int i = 0; i < n; i++)
        _mm512_mask_storeu_ps(p->out + (size_t)(i / P) * p->out_stride + 16 * (i % P), mask[i % P], _mm512_add_ps(a[i], _mm512_setzero_ps()));
}
#define MOEI_Q8_TILE(f, as, P, c)                                                                                        \
    static MOEI_VNNI void moei_q8_tile_##f##_##as##_##P##_##c(const moei_q8tile *t) {                                    \
        moei_q8_tile_vnni(MOE_FORMAT_##f, MOEI_Q8_##as, P, c, t);                                                        \
    }
#define MOEI_Q8_TILES(f, as, five, six)                                                                                  \
    MOEI_Q8_TILE(f, as, 1, 1) MOEI_Q8_TILE(f, as, 1, 2) MOEI_Q8_TILE(f, as, 1, 3) MOEI_Q8_TILE(f, as, 1, 4)              \
    MOEI_Q8_TILE(f, as, 1, 5) MOEI_Q8_TILE(f, as, 1, 6) MOEI_Q8_TILE(f, as, 1, 7) MOEI_Q8_TILE(f, as, 1, 8)              \
    MOEI_Q8_TILE(f, as, 2, 1) MOEI_Q8_TILE(f, as, 2, 2) MOEI_Q8_TILE(f, as, 2, 3) MOEI_Q8_TILE(f, as, 2, 4)              \
    static moei_q8_times_fn *const moei_q8_tiles_##f##_##as[2][MOEI_Q8_TOKENS] = {                                       \
        {moei_q8_tile_##f##_##as##_1_1, moei_q8_tile_##f##_##as##_1_2, moei_q8_tile_##f##_##as##_1_3,                    \
         moei_q8_tile_##f##_##as##_1_4, moei_q8_tile_##f##_##as##_1_5, moei_q8_tile_##f##_##as##_1_6,                    \
         moei_q8_tile_##f##_##as##_1_7, moei_q8_tile_##f##_##as##_1_8},                                                  \
        {moei_q8_tile_##f##_##as##_2_1, moei_q8_tile_##f##_##as##_2_2, moei_q8_tile_##f##_##as##_2_3,                    \
         moei_q8_tile_##f##_##as##_2_4, five, six, NULL, NULL}};
#define MOEI_Q8_TILES_6(f, as)                                                                                           \
    MOEI_Q8_TILE(f, as, 2, 5) MOEI_Q8_TILE(f, as, 2, 6)                                                                  \
    MOEI_Q8_TILES(f, as, moei_q8_tile_##f##_##as##_2_5, moei_q8_tile_##f##_##as##_2_6)
#define MOEI_Q8_TILES_4(f, as) MOEI_Q8_TILES(f, as, NULL, NULL) /* two sums each leave no registers for more; of nibbles 1 token is fast */
#define MOEI_Q8_VNNI_KINDS(six, four)                                                                                    \
    six(Q8_0, BYTES) six(Q4_K, BYTES) four(Q6_K, BYTES) four(Q2_K, BYTES) four(NVFP4, BYTES)                             \
    four(Q4_0, NIBBLES) four(Q4_K, NIBBLES) four(MXFP4, NIBBLES) four(NVFP4, NIBBLES)
MOEI_Q8_VNNI_KINDS(MOEI_Q8_TILES_6, MOEI_Q8_TILES_4)
#define MOEI_Q8_TILES_OF(f, as) case MOE_FORMAT_##f * 16 + MOEI_Q8_##as: return moei_q8_tiles_##f##_##as[panels - 1];
static moei_q8_times_fn *const *moei_q8_tiles(uint32_t f, int as, uint32_t panels) {
    switch ((int)moei_q8_kind(f, as) * 16 + as) { MOEI_Q8_VNNI_KINDS(MOEI_Q8_TILES_OF, MOEI_Q8_TILES_OF) default: return NULL; }
}
/* Part `part` of n tokens' block: of a tile's tokens, then of the others. (gcc makes an extraction and a masked store one instruction,
   and that one faults where it does not store.) */
MOEI_FORCE MOEI_VNNI void moei_q8_keep(uint8_t *to, size_t part, uint32_t n, __m256i v) {
    const uint32_t first = n < MOEI_Q8_WIDTH ? n : (uint32_t)MOEI_Q8_WIDTH, rest = n - first;
    uint8_t *one = to + 4 * part * first, *two = to + moei_q8_group_bytes(first) + 4 * part * rest;
    if (rest == MOEI_Q8_WIDTH) {
        _mm_storeu_si128((__m128i *)(void *)one, _mm256_castsi256_si128(v));
        _mm_storeu_si128((__m128i *)(void *)two, _mm256_extracti128_si256(v, 1));
        return;
    }
    _mm256_mask_storeu_epi32(one, (__mmask8)((1u << first) - 1), v);
    if (rest) _mm256_mask_storeu_epi32(two - 4 * MOEI_Q8_WIDTH, (__mmask8)(((1u << rest) - 1) << MOEI_Q8_WIDTH), v);
}
/* What the parts of block b have of 8 tokens. */
MOEI_FORCE MOEI_VNNI void moei_q8_keep_parts(uint8_t *to, uint32_t n, __m256i d, __m256i s, __m256i sum16) {
    const __m256i first = _mm256_slli_epi32(_mm256_srai_epi32(_mm256_slli_epi32(sum16, 16), 16), 7);
    const __m256i second = _mm256_slli_epi32(_mm256_srai_epi32(sum16, 16), 7), zero = _mm256_setzero_si256();
    moei_q8_keep(to, MOEI_Q8_D, n, d), moei_q8_keep(to, MOEI_Q8_S, n, s), moei_q8_keep(to, MOEI_Q8_SUM16, n, sum16);
    moei_q8_keep(to, MOEI_Q8_ALL, n, _mm256_sub_epi32(zero, _mm256_add_epi32(first, second)));
    moei_q8_keep(to, MOEI_Q8_FIRST, n, _mm256_sub_epi32(_mm256_set1_epi32(MOEI_MAGIC_BITS), first));
    moei_q8_keep(to, MOEI_Q8_SECOND, n, _mm256_sub_epi32(zero, second));
}
/* Up to 8 blocks of n tokens: block b goes to to[b]. */
MOEI_FORCE MOEI_VNNI void moei_q8_pack_step(uint8_t *const *to, const moei_q8 *const *x, uint32_t n, size_t n_blocks) {
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_add_epi64(low, _mm512_set1_epi64(4));
    __m256i v[3][8], rows[8];
    for (size_t j = 0; j < 4; j++) {
        __m512i a[8], b[8];
        MOEI_UNROLL for (int t = 0; t < 8; t++) a[t] = moei_q8_ld512(x[t]->q[2 * j]);
        MOEI_UNROLL for (int t = 0; t < 8; t += 2) b[t] = _mm512_unpacklo_epi32(a[t], a[t + 1]), b[t + 1] = _mm512_unpackhi_epi32(a[t], a[t + 1]);
        MOEI_UNROLL for (int t = 0; t < 8; t += 4) /* a[i], a[i + 4]: dword i of every 4, of tokens 0 - 3 and 4 - 7 */
            a[t] = _mm512_unpacklo_epi64(b[t], b[t + 2]), a[t + 1] = _mm512_unpackhi_epi64(b[t], b[t + 2]),
            a[t + 2] = _mm512_unpacklo_epi64(b[t + 1], b[t + 3]), a[t + 3] = _mm512_unpackhi_epi64(b[t + 1], b[t + 3]);
        MOEI_UNROLL for (size_t i = 0; i < 4; i++) {
            const __m512i p = _mm512_permutex2var_epi64(a[i], low, a[i + 4]), q = _mm512_permutex2var_epi64(a[i], high, a[i + 4]);
            const __m256i four[4] = {_mm512_castsi512_si256(p), _mm512_extracti64x4_epi64(p, 1), _mm512_castsi512_si256(q),
                                     _mm512_extracti64x4_epi64(q, 1)};
            MOEI_UNROLL for (size_t l = 0; l < 4; l++) {
                const size_t block = moei_q8_at(1, 2 * l + i / 2, 0) / 8; /* (the order is its own inverse) */
                if (block < n_blocks) moei_q8_keep(to[block], 2 * j + i % 2, n, four[l]);
            }
        }
    }
    MOEI_UNROLL for (int i = 0; i < 3; i++) {
        MOEI_UNROLL for (int t = 0; t < 8; t++) {
            const void *const parts[3] = {x[t]->d, x[t]->s, x[t]->sum16};
            rows[t] = moei_q8_ld256(parts[i]);
        }
        moei_transpose_avx2((const uint8_t *)rows, 32, v[i]);
    }
    for (size_t b = 0; b < n_blocks; b++) moei_q8_keep_parts(to[b], n, v[0][b], v[1][b], v[2][b]);
}
static MOEI_VNNI void moei_q8_pack(void *to, const void *const *x, uint32_t n, size_t k0, size_t len, size_t k) {
    const size_t steps = (k + 255) / 256, size = moei_q8_group_bytes(n);
    for (size_t i = 0; i < len; i += 256) {
        const moei_q8 *from[MOEI_Q8_TOKENS];
        uint8_t *at[8];
        for (uint32_t t = 0; t < MOEI_Q8_TOKENS; t++) from[t] = (const moei_q8 *)x[t < n ? t : 0] + i / 256; /* missing ones are not stored */
        for (size_t b = 0, first = (k0 + i) / 32; b < 8; b++) at[b] = (uint8_t *)to + moei_q8_block_at(first + b, steps) * size;
        const size_t n_blocks = len - i < 256 ? (len - i) / 32 : 8;
        if (n == MOEI_Q8_TOKENS) moei_q8_pack_step(at, from, MOEI_Q8_TOKENS, n_blocks);
        else moei_q8_pack_step(at, from, n, n_blocks);
    }
}
/* moei_q8_block of 8 blocks at once, of as many tokens or of one: dword i of each to v[i]; d, s and the sums of q's halves. */
typedef struct moei_q8_eight {
    __m256i v[8], d, s, sum, sum16;
} moei_q8_eight;
MOEI_FORCE MOEI_VNNI void moei_q8_quantise(const float *const *x, size_t at, moei_q8_eight *e) {
    const __m512i sign = _mm512_set1_epi32(0x7fffffff);
    __m512i m[8], b[8];
    __m256i rows[8];
    MOEI_UNROLL for (int t = 0; t < 8; t++)
        m[t] = _mm512_max_epi32(_mm512_and_si512(_mm512_loadu_si512(x[t] + at), sign), _mm512_and_si512(_mm512_loadu_si512(x[t] + at + 16), sign));
    MOEI_UNROLL for (int t = 0; t < 8; t += 2)
        b[t / 2] = _mm512_max_epi32(_mm512_unpacklo_epi32(m[t], m[t + 1]), _mm512_unpackhi_epi32(m[t], m[t + 1]));
    MOEI_UNROLL for (int t = 0; t < 4; t += 2)
        m[t / 2] = _mm512_max_epi32(_mm512_unpacklo_epi64(b[t], b[t + 1]), _mm512_unpackhi_epi64(b[t], b[t + 1]));
    m[0] = _mm512_max_epi32(_mm512_shuffle_i32x4(m[0], m[1], 0x44), _mm512_shuffle_i32x4(m[0], m[1], 0xee)); /* 0 - 3 twice, then 4 - 7 */
    m[0] = _mm512_max_epi32(m[0], _mm512_shuffle_i32x4(m[0], m[0], 0xb1));
    const __m256i bits = _mm512_castsi512_si256(_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 4, 5, 0, 0, 0, 0), m[0]));
    const __m256 amax = _mm256_castsi256_ps(bits);
    const __mmask8 nan = _mm256_cmpgt_epi32_mask(bits, _mm256_set1_epi32(0x7f7fffff));
    const __mmask8 zero = (__mmask8)(nan | _mm256_cmp_ps_mask(amax, _mm256_set1_ps(1.26217745e-29f), _CMP_LT_OQ));
    const __m256 id = _mm256_maskz_div_ps((__mmask8)~zero, _mm256_set1_ps(127.0f), amax);
    __m256 d = _mm256_maskz_div_ps((__mmask8)~zero, amax, _mm256_set1_ps(127.0f));
    d = _mm256_mask_mov_ps(d, nan, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)));
    MOEI_UNROLL for (int t = 0; t < 8; t++) {
        const __mmask16 some = zero >> t & 1 ? 0 : 0xffff;
        const __m512 by = _mm512_permutexvar_ps(_mm512_set1_epi32(t), _mm512_castps256_ps512(id)), magic = _mm512_set1_ps(MOEI_MAGIC);
        const __m512 lo = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, x[t] + at), by, magic);
        const __m512 hi = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, x[t] + at + 16), by, magic);
        const __m128i q0 = _mm512_cvtepi32_epi8(_mm512_castps_si512(lo)), q1 = _mm512_cvtepi32_epi8(_mm512_castps_si512(hi));
        rows[t] = _mm256_inserti128_si256(_mm256_castsi128_si256(q0), q1, 1);
    }
    moei_transpose_avx2((const uint8_t *)rows, 32, e->v);
    __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    MOEI_UNROLL for (size_t i = 0; i < 8; i++) sum[i / 4] = _mm256_dpbusd_epi32(sum[i / 4], _mm256_set1_epi8(1), e->v[i]);
    e->sum = _mm256_add_epi32(sum[0], sum[1]);
    e->sum16 = _mm256_mask_blend_epi16(0xaaaa, sum[0], _mm256_slli_epi32(sum[1], 16));
    e->d = _mm256_castps_si256(d), e->s = _mm256_castps_si256(_mm256_mul_ps(d, _mm256_cvtepi32_ps(e->sum)));
}
/* A token's 8 blocks (Zen 5: 3 ns a block, one by one 9). */
static MOEI_VNNI void moei_q8_prepare_vnni(void *row, const float *x, size_t k0, size_t n, size_t k) {
    for (; n >= 256 && k0 % 256 == 0; x += 256, k0 += 256, n -= 256) {
        moei_q8 *to = (moei_q8 *)row + k0 / 256;
        const float *from[8];
        moei_q8_eight e;
        MOEI_UNROLL for (int t = 0; t < 8; t++) from[t] = x + 32 * t;
        moei_q8_quantise(from, 0, &e);
        MOEI_UNROLL for (int j = 0; j < 8; j += 2) { /* in their order, 0 1 4 5 2 3 6 7 */
            _mm256_storeu_si256((__m256i *)(void *)to->q[j], _mm256_unpacklo_epi32(e.v[j], e.v[j + 1]));
            _mm256_storeu_si256((__m256i *)(void *)to->q[j + 1], _mm256_unpackhi_epi32(e.v[j], e.v[j + 1]));
        }
        _mm256_storeu_si256((__m256i *)(void *)to->d, e.d), _mm256_storeu_si256((__m256i *)(void *)to->s, e.s);
        _mm256_storeu_si256((__m256i *)(void *)to->sum, e.sum), _mm256_storeu_si256((__m256i *)(void *)to->sum16, e.sum16);
    }
    if (n) moei_q8_blocks(1, row, x, k0, n, k);
}
MOEI_FORCE MOEI_VNNI void moei_q8_group_block(uint8_t *to, const float *const *x, uint32_t n, size_t at) {
    moei_q8_eight e;
    moei_q8_quantise(x, at, &e);
    MOEI_UNROLL for (size_t i = 0; i < 8; i++) moei_q8_keep(to, i, n, e.v[i]);
    moei_q8_keep_parts(to, n, e.d, e.s, e.sum16);
}
static MOEI_VNNI void moei_q8_prepare_group(void *to, const float *x, size_t x_stride, uint32_t n, size_t k0, size_t len, size_t k) {
    const size_t steps = (k + 255) / 256;
    const float *from[MOEI_Q8_TOKENS];
    for (uint32_t t = 0; t < MOEI_Q8_TOKENS; t++) from[t] = x + (t < n ? t : 0) * x_stride;
    for (size_t i = 0; i < len; i += 32) {
        uint8_t *at = (uint8_t *)to + moei_q8_block_at((k0 + i) / 32, steps) * moei_q8_group_bytes(n);
        if (n == MOEI_Q8_TOKENS) moei_q8_group_block(at, from, MOEI_Q8_TOKENS, i);
        else moei_q8_group_block(at, from, n, i);
    }
    moei_expect((uint8_t *)to + moei_q8_block_at((k0 + len) / 32, steps) * moei_q8_group_bytes(n), moei_q8_group_bytes(n));
}
static const moei_packing moei_packing_vnni = {MOEI_Q8_TOKENS, MOEI_Q8_FEW + 1, moei_q8_pack, moei_q8_prepare_group, NULL, NULL};

/* ---- AVX512-VNNI: decoding a panel ----
   16 rows at a time, a step after the other: its dwords are transposed while still packed, scales and all, as 4 or 8 neighbours that lie
   in the rows, and blocks are put together from them with a row per dword. Steps that are cut (by k or by the end of the rows) are read
   from a copy. Bound by stores that miss L1, each of which moves a line from L2 and one back: cycles a block, panels in L1 and two of
   k = 2048 (Zen 5): Q8_0 22 29, Q4_0 11 20, Q4_K 16 22, MXFP4 14 20, IQ4_XS 11 19, NVFP4 16 22, Q6_K 27 37; with scales gathered one by one,
   row by row: 24 37, 19 23, MXFP4 19 23, IQ4_XS 22 28, NVFP4 27 34. Tried, and no faster: the first group of tokens multiplied on the
   way, a block behind (what it saves is lost on accumulators in memory, and the processor finds no overlap); 4 lanes at a time, so that
   the panel stays in L1 (3 % slower); 256-bit vectors. On Zen 5: blocks in their natural order or halves apart, so that stores are
   sequential; prefetches of the lines to store; inserts as masked broadcasts. */

/* t[j] = dword j of 16 bytes in 16 rows `stride` apart. */
MOEI_FORCE MOEI_VNNI void moei_q8_columns(const uint8_t *p, size_t stride, __m512i t[4]) {
    __m512i a[4], b[4];
    MOEI_UNROLL for (int i = 0; i < 4; i++, p += stride) { /* rows i, i + 4, i + 8, i + 12 */
        a[i] = _mm512_castsi128_si512(moei_q8_ld128(p));
        a[i] = _mm512_inserti32x4(a[i], moei_q8_ld128(p + 4 * stride), 1);
        a[i] = _mm512_inserti32x4(a[i], moei_q8_ld128(p + 8 * stride), 2);
        a[i] = _mm512_inserti32x4(a[i], moei_q8_ld128(p + 12 * stride), 3);
    }
    b[0] = _mm512_unpacklo_epi32(a[0], a[1]), b[1] = _mm512_unpackhi_epi32(a[0], a[1]);
    b[2] = _mm512_unpacklo_epi32(a[2], a[3]), b[3] = _mm512_unpackhi_epi32(a[2], a[3]);
    t[0] = _mm512_unpacklo_epi64(b[0], b[2]), t[1] = _mm512_unpackhi_epi64(b[0], b[2]);
    t[2] = _mm512_unpacklo_epi64(b[1], b[3]), t[3] = _mm512_unpackhi_epi64(b[1], b[3]);
}
/* The same for 32 bytes: half as many loads. */
MOEI_FORCE MOEI_VNNI void moei_q8_columns8(const uint8_t *p, size_t stride, __m512i v[8]) {
    __m512i a[8], b[8];
    MOEI_UNROLL for (size_t i = 0; i < 8; i++) { /* rows 0-3 with 4-7, 8-11 with 12-15 */
        const uint8_t *q = p + (i % 4 + i / 4 * 8) * stride;
        a[i] = _mm512_inserti64x4(_mm512_castsi256_si512(moei_q8_ld256(q)), moei_q8_ld256(q + 4 * stride), 1);
    }
    MOEI_UNROLL for (int i = 0; i < 8; i += 2)
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    MOEI_UNROLL for (int i = 0; i < 8; i += 4)
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]), a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]),
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]), a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    MOEI_UNROLL for (int i = 0; i < 4; i++)
        v[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), v[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
}
/* Where a step of 16 rows goes. */
typedef struct moei_q8to {
    uint8_t *p;
    size_t lane; /* bytes from a block to the next */
    int as;
} moei_q8to;
MOEI_FORCE MOEI_VNNI void moei_q8_put(const moei_q8to *to, size_t b, size_t vector, __m512i v) {
    _mm512_storeu_si512(to->p + moei_q8_place(b) * to->lane + 64 * vector, v);
}
MOEI_FORCE MOEI_VNNI void moei_q8_put_scale(const moei_q8to *to, size_t b, size_t i, __m512 v) {
    moei_q8_put(to, b, (size_t)to->as + i, _mm512_castps_si512(v));
}
/* a and b in bytes: nibbles of both that are low or high, a's to the low ones. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_low_nibbles(__m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), a, _mm512_slli_epi16(b, 4), 0xca);
}
MOEI_FORCE MOEI_VNNI __m512i moei_q8_high_nibbles(__m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), _mm512_srli_epi16(a, 4), b, 0xca);
}
/* Weights that come with another offset, or as an index, + 128. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_plus128(uint32_t f, __m512i v) {
    if (moei_q8_has_table(f)) return _mm512_shuffle_epi8(moei_q8_z128(moei_q8_table(f)), v);
    return _mm512_add_epi8(v, _mm512_set1_epi8((char)(moei_q8_is_wide(f) ? 128 : 128 - moei_q8_offset(f))));
}
/* Bits 4 j .. 4 j + 3 of every dword to bit 4 of its bytes: copies of them at 4, 11, 18 and 25 do not overlap. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_fifth(__m512i bits, size_t j) {
    const __m512i four = _mm512_and_si512(_mm512_srlv_epi32(bits, _mm512_set1_epi32((int)(4 * j))), _mm512_set1_epi32(15));
    return moei_q8_zand(_mm512_mullo_epi32(four, _mm512_set1_epi32(1 << 4 | 1 << 11 | 1 << 18 | 1 << 25)), 16);
}

/* Blocks of 32 one after the other, with their scales, and IQ4_XS */

MOEI_FORCE int moei_q8_is_byte(uint32_t f) { return f == MOE_FORMAT_Q8_0 || f == MOE_FORMAT_INT8_CHANNEL; }
/* Where the weights of block b begin in a step. */
MOEI_FORCE size_t moei_q8_weights_at(uint32_t f, size_t b) {
    switch (f) {
    case MOE_FORMAT_IQ4_XS: return 8 + 16 * b;
    case MOE_FORMAT_NVFP4: return 36 * (b / 2) + 4 + 16 * (b % 2);
    default: return moei_q8_step_bytes(f) / 8 * (b + 1) - (moei_q8_is_byte(f) ? 32 : 16);
    }
}
/* t[i] = dword i of a step, of 16 rows: those of block b that earlier blocks have not had. */
MOEI_FORCE MOEI_VNNI void moei_q8_reach(uint32_t f, size_t b, const uint8_t *p, size_t stride, __m512i *t) {
    const size_t all = moei_q8_step_bytes(f) / 4, bytes = moei_q8_is_byte(f) ? 32 : 16;
    const size_t end = moei_q8_weights_at(f, b) + bytes, had = b ? moei_q8_weights_at(f, b - 1) + bytes : 0;
    MOEI_UNROLL for (size_t i = 0; i < 2; i++) { /* pieces of 8; the last dwords are those of the last 16 bytes */
        const size_t piece = (had + 31) / 32 + i;
        if (piece >= (end + 31) / 32) continue;
        if (8 * piece + 8 <= all) moei_q8_columns8(p + 32 * piece, stride, t + 8 * piece);
        else moei_q8_columns(p + 4 * (all - 4), stride, t + all - 4);
    }
}
MOEI_FORCE MOEI_VNNI __m512i moei_q8_right(__m512i v, size_t bytes) { return _mm512_srli_epi32(v, (unsigned)(8 * bytes)); }
/* The dword at byte `at` of a step. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_dword_at(const __m512i *t, size_t at) {
    const size_t part = at % 4;
    if (part == 0) return t[at / 4];
    return _mm512_or_si512(moei_q8_right(t[at / 4], part), _mm512_slli_epi32(t[at / 4 + 1], (unsigned)(32 - 8 * part)));
}
MOEI_FORCE MOEI_VNNI __m512 moei_q8_low_halves(__m512i v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
MOEI_FORCE MOEI_VNNI __m512 moei_q8_half_at(const __m512i *t, size_t at) { return moei_q8_low_halves(moei_q8_right(t[at / 4], at % 4)); }
MOEI_FORCE MOEI_VNNI __m512i moei_q8_byte_at(const __m512i *t, size_t at) {
    return _mm512_and_si512(moei_q8_right(t[at / 4], at % 4), _mm512_set1_epi32(255));
}
/* 2^(e - 128) for 16 exponents: as moei_q8_half_e8m0. */
MOEI_FORCE MOEI_VNNI __m512 moei_q8_e8m0(__m512i e) {
    const __m512i tiny = _mm512_sllv_epi32(_mm512_set1_epi32(0x200000), _mm512_min_epi32(e, _mm512_set1_epi32(2)));
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23), tiny));
}
/* As moei_q8_scales_nvfp4. */
MOEI_FORCE MOEI_VNNI __m512 moei_q8_ue4m3(__m512i byte) {
    const __mmask16 some = _mm512_cmpneq_epi32_mask(byte, _mm512_set1_epi32(0x7f));
    const __m512i h = _mm512_maskz_slli_epi32(some, _mm512_and_si512(byte, _mm512_set1_epi32(0x7f)), 7);
    return _mm512_mul_ps(moei_q8_low_halves(h), _mm512_set1_ps(128.0f));
}
/* As moei_q8_scales_iq4xs. */
MOEI_FORCE MOEI_VNNI __m512 moei_q8_scale_iq4xs(const __m512i *t, size_t b) {
    const __m512i low = _mm512_and_si512(_mm512_srli_epi32(t[1], (unsigned)(4 * b)), _mm512_set1_epi32(15));
    const __m512i high = _mm512_and_si512(_mm512_srli_epi32(t[0], (unsigned)(16 + 2 * b)), _mm512_set1_epi32(3));
    const __m512i six = _mm512_sub_epi32(_mm512_or_si512(low, _mm512_slli_epi32(high, 4)), _mm512_set1_epi32(32));
    return _mm512_mul_ps(moei_q8_half_at(t, 0), _mm512_cvtepi32_ps(six));
}
MOEI_FORCE MOEI_VNNI void moei_q8_decode_scale(uint32_t f, const __m512i *t, size_t b, const moei_q8to *to) {
    const size_t at = moei_q8_step_bytes(f) / 8 * b;
    if (moei_q8_has_side(f)) return;
    if (f == MOE_FORMAT_IQ4_XS) moei_q8_put_scale(to, b, 0, moei_q8_scale_iq4xs(t, b));
    else if (f == MOE_FORMAT_MXFP4) moei_q8_put_scale(to, b, 0, moei_q8_e8m0(moei_q8_byte_at(t, at)));
    else if (f == MOE_FORMAT_NVFP4)
        MOEI_UNROLL for (size_t i = 0; i < 2; i++) moei_q8_put_scale(to, b, i, moei_q8_ue4m3(moei_q8_byte_at(t, 36 * (b / 2) + b % 2 * 2 + i)));
    else moei_q8_put_scale(to, b, 0, moei_q8_half_at(t, at));
    if (moei_q8_has_min(f)) moei_q8_put_scale(to, b, 1, moei_q8_half_at(t, at + 2));
}
/* v[j] = dword j of a block from 4 dwords of nibbles; those of HF formats and of INT4_GROUP lie in order, others 16 or (NVFP4) 8 apart. */
MOEI_FORCE MOEI_VNNI void moei_q8_apart(uint32_t f, const __m512i q[4], __m512i v[8]) {
    const __m512i even = moei_q8_z128(_mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
    MOEI_UNROLL for (size_t j = 0; j < 8; j++) {
        const size_t from = f == MOE_FORMAT_NVFP4 ? j / 4 * 2 + j % 2 : j % 4;
        const size_t high = f == MOE_FORMAT_NVFP4 ? j / 2 % 2 : j / 4;
        if (moei_q8_has_side(f)) { /* dword j / 2 has the weights of j and j + 1 */
            v[j] = _mm512_shuffle_epi8(j % 2 ? _mm512_srli_epi32(q[j / 2], 16) : q[j / 2], even);
            v[j] = _mm512_ternarylogic_epi32(v[j], _mm512_slli_epi16(v[j], 4), _mm512_set1_epi8(15), 0xa8);
        } else v[j] = moei_q8_zand(high ? _mm512_srli_epi16(q[from], 4) : q[from], 15);
    }
}
/* Bytes 2 `half` and 2 `half` + 1 of dwords whose nibbles lie in order: a's to the low nibbles, b's to the high ones. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_in_order(__m512i a, __m512i b, size_t half) {
    const __m128i from = _mm_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13);
    const __m512i twice = moei_q8_z128(_mm_add_epi8(from, _mm_set1_epi8((char)(2 * half))));
    const __m512i first = _mm512_set1_epi16(255), low = _mm512_set1_epi8(15);
    const __m512i x = _mm512_shuffle_epi8(a, twice), y = _mm512_shuffle_epi8(b, twice);
    const __m512i lows = _mm512_ternarylogic_epi32(first, x, _mm512_srli_epi16(x, 4), 0xca);
    return _mm512_ternarylogic_epi32(low, lows, _mm512_ternarylogic_epi32(first, _mm512_slli_epi16(y, 4), y, 0xca), 0xca);
}
/* Dwords j and j + 4 of a block as a panel of nibbles has them. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_nibbles(uint32_t f, const __m512i q[4], size_t j) {
    if (moei_q8_has_side(f)) return moei_q8_in_order(q[j / 2], q[j / 2 + 2], j % 2);
    if (f != MOE_FORMAT_NVFP4) return q[j];
    return j < 2 ? moei_q8_low_nibbles(q[j], q[j + 2]) : moei_q8_high_nibbles(q[j - 2], q[j]);
}
/* zero: of 16 rows and 8 blocks, in every byte. */
MOEI_FORCE MOEI_VNNI void moei_q8_decode_block(uint32_t f, size_t b, const uint8_t *p, size_t stride, const __m512i *zero, __m512i *t,
                                               const moei_q8to *to) {
    const size_t at = moei_q8_weights_at(f, b);
    const int wide = moei_q8_is_byte(f), five = f == MOE_FORMAT_Q5_0 || f == MOE_FORMAT_Q5_1;
    __m512i q[8], v[8];
    moei_q8_reach(f, b, p, stride, t);
    moei_q8_decode_scale(f, t, b, to);
    MOEI_UNROLL for (size_t j = 0; j < 8; j++)
        if (wide || j < 4) q[j] = moei_q8_dword_at(t, at + 4 * j);
    if (to->as == MOEI_Q8_NIBBLES) {
        MOEI_UNROLL for (size_t j = 0; j < 4; j++) moei_q8_put(to, b, j, moei_q8_nibbles(f, q, j));
        return;
    }
    if (!wide) moei_q8_apart(f, q, v);
    MOEI_UNROLL for (size_t j = 0; j < 8; j++) {
        if (wide) v[j] = q[j];
        if (five) v[j] = _mm512_or_si512(v[j], moei_q8_fifth(moei_q8_dword_at(t, at - 4), j));
        moei_q8_put(to, b, j, f == MOE_FORMAT_INT4_GROUP ? _mm512_sub_epi8(v[j], zero[b]) : moei_q8_plus128(f, v[j]));
    }
}
MOEI_FORCE MOEI_VNNI void moei_q8_decode_blocks(uint32_t f, const uint8_t *p, size_t stride, const __m512i *zero, const moei_q8to *to) {
    __m512i t[68];
    moei_q8_decode_block(f, 0, p, stride, zero, t, to), moei_q8_decode_block(f, 1, p, stride, zero, t, to);
    moei_q8_decode_block(f, 2, p, stride, zero, t, to), moei_q8_decode_block(f, 3, p, stride, zero, t, to);
    moei_q8_decode_block(f, 4, p, stride, zero, t, to), moei_q8_decode_block(f, 5, p, stride, zero, t, to);
    moei_q8_decode_block(f, 6, p, stride, zero, t, to), moei_q8_decode_block(f, 7, p, stride, zero, t, to);
}

/* K-quants */

MOEI_FORCE MOEI_VNNI void moei_q8_decode_q45k(uint32_t f, const uint8_t *p, size_t stride, const moei_q8to *to) {
    __m512i t[8], high[8];
    if (f == MOE_FORMAT_Q5_K) moei_q8_columns8(p + 16, stride, high);
    for (size_t b = 0; b < 8; b += 2) {
        moei_q8_columns8(p + (f == MOE_FORMAT_Q5_K ? 48 : 16) + 16 * b, stride, t);
        if (to->as == MOEI_Q8_NIBBLES) {
            MOEI_UNROLL for (size_t j = 0; j < 4; j++)
                moei_q8_put(to, b, j, moei_q8_low_nibbles(t[j], t[j + 4])), moei_q8_put(to, b + 1, j, moei_q8_high_nibbles(t[j], t[j + 4]));
            continue;
        }
        MOEI_UNROLL for (size_t j = 0; j < 8; j++) {
            __m512i lo = moei_q8_zput(_mm512_set1_epi8(-128), t[j], 15), hi = moei_q8_zput(_mm512_set1_epi8(-128), _mm512_srli_epi16(t[j], 4), 15);
            if (f == MOE_FORMAT_Q5_K) { /* bit b comes to 4 */
                high[j] = b ? _mm512_ror_epi32(high[j], 2) : _mm512_rol_epi32(high[j], 4);
                lo = moei_q8_zput(lo, high[j], 16), hi = moei_q8_zput(hi, _mm512_srli_epi16(high[j], 1), 16);
            }
            moei_q8_put(to, b, j, lo), moei_q8_put(to, b + 1, j, hi);
        }
    }
}
MOEI_FORCE MOEI_VNNI void moei_q8_decode_q6k(const uint8_t *p, size_t stride, const moei_q8to *to) {
    __m512i high[8] = {_mm512_setzero_si512()};
    for (size_t b = 0; b < 8; b += 2) { /* blocks b / 4 * 4 + b % 4 / 2, and the second after it */
        const size_t first = b / 4 * 4 + b % 4 / 2;
        const __m512i left = _mm512_set1_epi32(b % 4 ? 2 : 4), right = _mm512_set1_epi32(b % 4 ? 2 : 0);
        __m512i t[8];
        if (b % 4 == 0) moei_q8_columns8(p + 128 + b / 4 * 32, stride, high);
        moei_q8_columns8(p + 16 * b, stride, t);
        MOEI_UNROLL for (size_t j = 0; j < 8; j++) {
            const __m512i low4 = moei_q8_zand(t[j], 15), high4 = moei_q8_zand(_mm512_srli_epi16(t[j], 4), 15);
            moei_q8_put(to, first, j, moei_q8_plus128(MOE_FORMAT_Q6_K, moei_q8_zput(low4, _mm512_sllv_epi32(high[j], left), 0x30)));
            moei_q8_put(to, first + 2, j, moei_q8_plus128(MOE_FORMAT_Q6_K, moei_q8_zput(high4, _mm512_srlv_epi32(high[j], right), 0x30)));
        }
    }
}
MOEI_FORCE MOEI_VNNI void moei_q8_decode_q23k(uint32_t f, const uint8_t *p, size_t stride, const moei_q8to *to) {
    __m512i t[8] = {_mm512_setzero_si512()}, high[8];
    if (f == MOE_FORMAT_Q3_K) moei_q8_columns8(p, stride, high);
    for (size_t b = 0; b < 8; b++) {
        const __m512i right = _mm512_set1_epi32((int)(b % 4 * 2));
        if (b % 4 == 0) moei_q8_columns8(p + (f == MOE_FORMAT_Q3_K ? 32 : 16) + b / 4 * 32, stride, t);
        MOEI_UNROLL for (size_t j = 0; j < 8; j++) {
            __m512i v = moei_q8_zand(_mm512_srlv_epi32(t[j], right), 3);
            if (f == MOE_FORMAT_Q3_K) { /* bit b comes to 2 */
                high[j] = b ? _mm512_ror_epi32(high[j], 1) : _mm512_rol_epi32(high[j], 2);
                v = moei_q8_zput(v, high[j], 4);
            }
            moei_q8_put(to, b, j, moei_q8_plus128(f, v));
        }
    }
}
/* Q4_K and Q5_K: as moei_q8_scales_k, 16 rows at once. */
MOEI_FORCE MOEI_VNNI void moei_q8_decode_scales_k(const uint8_t *p, size_t stride, const moei_q8to *to) {
    const __m512i byte = _mm512_set1_epi32(255), minus = _mm512_set1_epi32((int)0x80000000u);
    __m512i h[4], s[2], n[2];
    moei_q8_columns(p, stride, h);
    const __m512 d = moei_q8_half_at(h, 0), m_plus = moei_q8_half_at(h, 2);
    const __m512 m = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(m_plus), minus));
    s[0] = moei_q8_zand(h[1], 63), s[1] = moei_q8_zput(moei_q8_zand(h[3], 15), _mm512_srli_epi16(h[1], 2), 0x30);
    n[0] = moei_q8_zand(h[2], 63), n[1] = moei_q8_zput(moei_q8_zand(_mm512_srli_epi16(h[3], 4), 15), _mm512_srli_epi16(h[2], 2), 0x30);
    MOEI_UNROLL for (size_t b = 0; b < 8; b++) {
        const __m512i x = _mm512_and_si512(_mm512_srli_epi32(s[b / 4], (unsigned)(8 * (b % 4))), byte);
        const __m512i y = _mm512_and_si512(_mm512_srli_epi32(n[b / 4], (unsigned)(8 * (b % 4))), byte);
        moei_q8_put_scale(to, b, 0, _mm512_mul_ps(d, _mm512_cvtepi32_ps(x)));
        moei_q8_put_scale(to, b, 1, _mm512_mul_ps(m, _mm512_cvtepi32_ps(y)));
    }
}
/* Scales (and minima) of formats with integer scales per 16: t[b / 2] has the bytes of blocks b and b + 1. */
MOEI_FORCE MOEI_VNNI __m512i moei_q8_byte(__m512i v, size_t i, int is_signed) { /* byte i of every dword */
    v = _mm512_slli_epi32(v, (unsigned)(24 - 8 * i));
    return is_signed ? _mm512_srai_epi32(v, 24) : _mm512_srli_epi32(v, 24);
}
/* A word or byte of each of 8 rows. */
#define MOEI_Q8_EIGHT(type, first) (type)(first)(p), (type)(first)(p + stride), (type)(first)(p + 2 * stride), (type)(first)(p + 3 * stride), \
    (type)(first)(p + 4 * stride), (type)(first)(p + 5 * stride), (type)(first)(p + 6 * stride), (type)(first)(p + 7 * stride)
MOEI_FORCE MOEI_VNNI __m128i moei_q8_words8(const uint8_t *p, size_t stride) { return _mm_setr_epi16(MOEI_Q8_EIGHT(short, moei_q8_u16)); }
MOEI_FORCE MOEI_VNNI __m512 moei_q8_halves(const uint8_t *p, size_t stride) { /* one of each of 16 rows */
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(moei_q8_words8(p, stride)), moei_q8_words8(p + 8 * stride, stride), 1));
}
MOEI_FORCE MOEI_VNNI void moei_q8_decode_sub(uint32_t f, const uint8_t *p, size_t stride, const moei_q8to *to) {
    const __m512 d = moei_q8_halves(p + (f == MOE_FORMAT_Q2_K ? 80 : f == MOE_FORMAT_Q3_K ? 108 : 208), stride);
    __m512 m = d;
    __m512i t[4], u[4];
    moei_q8_columns(p + (f == MOE_FORMAT_Q2_K ? 0 : f == MOE_FORMAT_Q3_K ? 94 : 192), stride, u);
    if (f == MOE_FORMAT_Q2_K) m = _mm512_xor_ps(moei_q8_halves(p + 82, stride), _mm512_set1_ps(-0.0f));
    if (f == MOE_FORMAT_Q3_K) /* its 12 bytes begin in the middle of a dword */
        MOEI_UNROLL for (int i = 0; i < 3; i++) u[i] = _mm512_or_si512(_mm512_srli_epi32(u[i], 16), _mm512_slli_epi32(u[i + 1], 16));
    MOEI_UNROLL for (unsigned i = 0; i < 4; i++) {
        if (f == MOE_FORMAT_Q6_K) t[i] = u[i];
        if (f == MOE_FORMAT_Q2_K) t[i] = moei_q8_zand(u[i], 15), u[i] = moei_q8_zand(_mm512_srli_epi16(u[i], 4), 15);
        if (f != MOE_FORMAT_Q3_K) continue;
        t[i] = moei_q8_zand(i / 2 ? _mm512_srli_epi16(u[i % 2], 4) : u[i % 2], 15);
        t[i] = moei_q8_zput(t[i], _mm512_rorv_epi32(u[2], _mm512_set1_epi32((int)(2 * i) - 4)), 0x30);
        t[i] = _mm512_sub_epi8(t[i], _mm512_set1_epi8(32));
    }
    MOEI_UNROLL for (size_t b = 0; b < 8; b++) {
        const size_t i = b % 2 * 2;
        moei_q8_put_scale(to, b, 0, d);
        MOEI_UNROLL for (size_t h = 0; h < 2; h++)
            moei_q8_put_scale(to, b, 1 + h, _mm512_cvtepi32_ps(moei_q8_byte(t[b / 2], i + h, 1)));
        if (f != MOE_FORMAT_Q2_K) continue;
        const __m512i minima = _mm512_or_si512(moei_q8_byte(u[b / 2], i, 0), _mm512_slli_epi32(moei_q8_byte(u[b / 2], i + 1, 0), 16));
        moei_q8_put_scale(to, b, 3, m), moei_q8_put_scale(to, b, 4, _mm512_castsi512_ps(minima));
    }
}
/* Those that lie apart: row by row, then transposed. */
typedef struct moei_q8sides { /* of 16 rows: where they are (by_grid), or their values */
    int by_grid;
    moei_q8grid grid[16][2];
    moei_q8side side[16];
} moei_q8sides;
typedef struct moei_q8rows {
    __m256 d[16], m[16];
    __m256i zero[16];
} moei_q8rows;
MOEI_FORCE MOEI_VNNI void moei_q8_sides_of(uint32_t f, const moei_rows *w, size_t r, size_t last, moei_q8sides *to) {
    moei_q8grid grid[2];
    to->by_grid = moei_q8_grid_is(f, &w->scale, &w->zero);
    if (!to->by_grid) return;
    moei_q8_grid_of(&w->scale, w->k, &grid[0]), moei_q8_grid_of(&w->zero, w->k, &grid[1]);
    for (size_t j = 0; j < 16; j++) {
        moei_q8_grid_rows(f, w, moei_min(r + j, last), 0, grid);
        to->grid[j][0] = grid[0], to->grid[j][1] = grid[1];
    }
}
MOEI_FORCE MOEI_VNNI void moei_q8_side_rows(uint32_t f, const moei_rows *w, size_t i, const moei_q8sides *from, moei_q8rows *rows) {
    const uint32_t type = w->scale.data ? w->scale.type : (uint32_t)MOE_TYPE_NONE;
    __m512 d, m = _mm512_setzero_ps();
    __m128i raw[2] = {_mm_setzero_si128(), _mm_setzero_si128()};
    for (size_t r = 0; r < 16 && from->by_grid; r += 2) {
        MOEI_UNROLL for (size_t j = 0; j < 2; j++) {
            if (type) raw[j] = moei_q8_grid_raw(f, &from->grid[r + j][0], i);
            if (f != MOE_FORMAT_INT4_GROUP) continue;
            if (w->zero.data) rows->zero[r + j] = moei_q8_grid_zero(w->zero.type, &from->grid[r + j][1], i);
            else rows->zero[r + j] = _mm256_set1_epi32(8);
        }
        moei_q8_scales2(f, type, raw[0], raw[1], &d, &m);
        _mm512_storeu_ps((float *)(void *)&rows->d[r], d);
        if (moei_q8_is_nvfp4(f)) _mm512_storeu_ps((float *)(void *)&rows->m[r], m);
    }
    for (size_t r = 0; r < 16 && !from->by_grid; r++) {
        moei_q8s s;
        moei_q8_scales(f, NULL, &from->side[r], i % MOEI_Q8_CHUNK, &s);
        rows->d[r] = s.d;
        if (moei_q8_is_nvfp4(f)) rows->m[r] = s.m;
        if (f == MOE_FORMAT_INT4_GROUP) rows->zero[r] = s.zero;
    }
}
MOEI_FORCE MOEI_VNNI void moei_q8_decode_column(const void *rows, size_t scale, const moei_q8to *to) {
    __m512i v[8];
    moei_q8_columns8((const uint8_t *)rows, 32, v);
    MOEI_UNROLL for (size_t b = 0; b < 8; b++) moei_q8_put_scale(to, b, scale, _mm512_castsi512_ps(v[b]));
}
MOEI_FORCE MOEI_VNNI void moei_q8_decode_sides(uint32_t f, const moei_rows *w, size_t i, const moei_q8sides *sides, __m512i zero[8],
                                               const moei_q8to *to) {
    moei_q8rows rows;
    moei_q8_side_rows(f, w, i, sides, &rows);
    moei_q8_decode_column(rows.d, 0, to);
    if (moei_q8_is_nvfp4(f)) moei_q8_decode_column(rows.m, 1, to);
    if (f != MOE_FORMAT_INT4_GROUP) return;
    moei_q8_columns8((const uint8_t *)rows.zero, 32, zero);
    MOEI_UNROLL for (int b = 0; b < 8; b++) /* to all bytes */
        zero[b] = _mm512_mullo_epi32(_mm512_add_epi32(zero[b], _mm512_set1_epi32(128)), _mm512_set1_epi32(0x01010101));
}
/* A step of 16 rows from row r; beyond the view's end the last one again. */
MOEI_FORCE MOEI_VNNI void moei_q8_decode16(uint32_t f, int as, const moei_rows *w, size_t r, size_t n_rows, size_t i, moei_q8sides *sides,
                                           uint8_t *panel) {
    const size_t step = moei_q8_step_bytes(f), n_blocks = w->k / 32, last = n_rows - 1, size = moei_q8_entry(f, as);
    const size_t n = n_blocks - 8 * i < 8 ? n_blocks - 8 * i : 8;
    const moei_q8to to = {panel + i * size, (w->k + 255) / 256 * size, as};
    const uint8_t *p = moei_row(w, r) + i * step;
    uint8_t copy[16 * 272];
    __m512i zero[8];
    size_t stride = w->row_stride;
    if (n < 8 || r + 15 > last) {
        memset(copy, 0, sizeof copy);
        for (size_t j = 0; j < 16; j++) memcpy(copy + j * step, moei_row(w, moei_min(r + j, last)) + i * step, n * step / 8);
        p = copy, stride = step;
    }
    switch (f) {
    case MOE_FORMAT_Q4_K:
    case MOE_FORMAT_Q5_K: moei_q8_decode_scales_k(p, stride, &to), moei_q8_decode_q45k(f, p, stride, &to); return;
    case MOE_FORMAT_Q2_K:
    case MOE_FORMAT_Q3_K: moei_q8_decode_sub(f, p, stride, &to), moei_q8_decode_q23k(f, p, stride, &to); return;
    case MOE_FORMAT_Q6_K: moei_q8_decode_sub(f, p, stride, &to), moei_q8_decode_q6k(p, stride, &to); return;
    default: break;
    }
    for (size_t j = 0; moei_q8_has_side(f) && !sides->by_grid && i % MOEI_Q8_CHUNK == 0 && j < 16; j++)
        moei_q8_sides(f, w, moei_min(r + j, last), i, &sides->side[j]);
    if (moei_q8_has_side(f)) moei_q8_decode_sides(f, w, i, sides, zero, &to);
    moei_q8_decode_blocks(f, p, stride, zero, &to);
}
typedef void moei_q8_decode_fn(const moei_rows *w, size_t r, size_t n_rows, const moei_q8tile *t, uint8_t *panel);
#define MOEI_Q8_DECODE(as, target, f)                                                                                    \
    static target void moei_q8_decode_##as##_##f(const moei_rows *w, size_t r, size_t n_rows, const moei_q8tile *t, uint8_t *panel) { \
        const uint8_t *ahead = t->ahead, *ahead_end = t->ahead_end;                                                      \
        moei_q8sides sides;                                                                                              \
        if (moei_q8_has_side(MOE_FORMAT_##f)) moei_q8_sides_of(MOE_FORMAT_##f, w, r, n_rows - 1, &sides);                \
        for (size_t i = 0; 256 * i < w->k; i++) {                                                                        \
            MOEI_AHEAD(t->ahead_step);                                                                                   \
            moei_q8_decode16(MOE_FORMAT_##f, MOEI_Q8_##as, w, r, n_rows, i, &sides, panel);                              \
        }                                                                                                                \
    }
MOEI_Q8_FORMATS(MOEI_Q8_DECODE, BYTES, MOEI_VNNI)
MOEI_Q8_FORMATS_4(MOEI_Q8_DECODE, NIBBLES, MOEI_VNNI)
#define MOEI_Q8_DECODE_CASE(as, target, f) case MOE_FORMAT_##f: return moei_q8_decode_##as##_##f;
static moei_q8_decode_fn *moei_q8_decoder(uint32_t f, int as) {
    if (as == MOEI_Q8_NIBBLES) switch (f) { MOEI_Q8_FORMATS_4(MOEI_Q8_DECODE_CASE, NIBBLES, ) default: return NULL; }
    switch (f) { MOEI_Q8_FORMATS(MOEI_Q8_DECODE_CASE, BYTES, ) default: return NULL; }
}
/* Decoded panels times all tokens. */
static void moei_q8_sweep_vnni(int as, moei_q8tile *t, const void *const *x, uint32_t n_tokens, float *out, moei_ahead *ahead) {
    const uint32_t panels = t->n_rows > 16 ? 2 : 1, width = MOEI_Q8_TOKENS / panels;
    moei_q8_times_fn *const *tiles = moei_q8_tiles(t->format, as, panels);
    const uint32_t last = panels == 2 && tiles[5] ? 6 : width;
    for (uint32_t i = 0, c; i < n_tokens; i += c) {
        c = n_tokens - i <= last ? n_tokens - i : width;
        for (uint32_t four = 0; four < 2; four++) {
            const uint32_t at = c > MOEI_Q8_WIDTH ? i + four * MOEI_Q8_WIDTH : i, group = at / MOEI_Q8_TOKENS * MOEI_Q8_TOKENS;
            t->x[four] = (const uint8_t *)x[group] + (at > group ? moei_q8_group_bytes(MOEI_Q8_WIDTH) : 0);
            t->x_block[four] = moei_q8_group_bytes(moei_min32(n_tokens - group, MOEI_Q8_TOKENS));
        }
        t->out = out + i * t->out_stride;
        t->ahead_step = moei_ahead_take(ahead, c, t->n_blocks, &t->ahead, &t->ahead_end);
        tiles[c - 1](t);
    }
}
/* While a lone panel is decoded as much is prefetched as during so many tokens: few tokens leave memory too little time (Zen 5, layer, one
   core, 64 tokens: Q8_0 27.7 and 24.0 ms, Q6_K 21.8 and 20.8, Q5_K 19.1 and 18.4; 128 tokens, Q8_0: 35.4 and 32.5). With 7, which is what
   decoding takes, there is no gain. 4 bits gain nothing (Q4_K loses 2 %). */
enum { MOEI_Q8_DECODING = 2 };
static void moei_q8_panel_as(int intel, void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                             size_t out_stride) {
    const int as = moei_q8_as(intel, w->format);
    const uint32_t one = as == MOEI_Q8_NIBBLES ? MOEI_Q8_TOKENS : MOEI_Q8_PAIR, most = !intel && n_tokens > one ? 32 : 16;
    const uint32_t decode = most == 16 && moei_q8_step_bytes(w->format) >= 176 ? MOEI_Q8_DECODING : 0;
    moei_ahead ahead = moei_ahead_next(w, (n_rows + most - 1) / most * (size_t)(n_tokens + decode));
    moei_q8tile t;
    memset(&t, 0, sizeof t);
    t.panel = (const uint8_t *)panel, t.n_blocks = w->k / 32, t.format = w->format, t.out_stride = out_stride;
    t.apart = (w->k + 255) / 256 * 8 * moei_q8_entry(w->format, as);
    for (uint32_t r = 0; r < n_rows; r += t.n_rows) {
        t.n_rows = n_rows - r < most ? n_rows - r : most;
        for (uint32_t i = 0; i < t.n_rows; i += 16) {
            t.ahead_step = moei_ahead_take(&ahead, decode, (w->k + 255) / 256, &t.ahead, &t.ahead_end);
            moei_q8_decoder(w->format, as)(w, r + i, n_rows, &t, (uint8_t *)panel + i / 16 * t.apart);
        }
        moei_q8_sweep_vnni(as, &t, x, n_tokens, out + r, &ahead);
    }
}
static void moei_q8_panel_vnni(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                               size_t out_stride) {
    moei_q8_panel_as(0, panel, w, n_rows, x, n_tokens, out, out_stride);
}
static void moei_q8_panel_vnni_intel(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                                     size_t out_stride) {
    moei_q8_panel_as(1, panel, w, n_rows, x, n_tokens, out, out_stride);
}
#define MOEI_Q8_VNNI(f) {moei_q8_dot_vnni_##f, moei_q8_decode_later, MOEI_Q8_FEW}
/* clang-format off */
#define MOEI_Q8_ARITH_VNNI(panel, ask, whole) {                                                                          \
    MOE_COMPUTE_Q8, MOE_TIER_VNNI, moei_q8_row_bytes_vnni, moei_q8_prepare_vnni, moei_q8_panel_bytes, panel,             \
    {MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, /* NONE F32 F16 BF16 */                                     \
     MOEI_Q8_VNNI(Q8_0), MOEI_Q8_VNNI(Q4_0), MOEI_Q8_VNNI(Q4_1), MOEI_Q8_VNNI(Q5_0),                                     \
     MOEI_Q8_VNNI(Q5_1), MOEI_Q8_VNNI(Q2_K), MOEI_Q8_VNNI(Q3_K), MOEI_Q8_VNNI(Q4_K),                                     \
     MOEI_Q8_VNNI(Q5_K), MOEI_Q8_VNNI(Q6_K), MOEI_Q8_VNNI(IQ4_NL), MOEI_Q8_VNNI(IQ4_XS),                                 \
     MOEI_Q8_VNNI(MXFP4), MOEI_Q8_VNNI(NVFP4), MOEI_Q8_VNNI(MXFP4_HF), MOEI_Q8_VNNI(NVFP4_HF),                           \
     MOEI_Q8_NONE, MOEI_Q8_NONE, MOEI_Q8_NONE, /* MXFP8 FP8_BLOCK FP8_CHANNEL */                                         \
     MOEI_Q8_VNNI(INT8_CHANNEL), MOEI_Q8_VNNI(INT4_GROUP)}, &moei_packing_vnni, NULL, ask, whole, 1}
MOEI_TABLE const moei_arith moei_q8_vnni = MOEI_Q8_ARITH_VNNI(moei_q8_panel_vnni, MOEI_ASK_BOTH, 1);
MOEI_TABLE const moei_arith moei_q8_vnni_zen5 = MOEI_Q8_ARITH_VNNI(moei_q8_panel_vnni, MOEI_ASK_PAST_L3, 0);
MOEI_TABLE const moei_arith moei_q8_vnni_intel = MOEI_Q8_ARITH_VNNI(moei_q8_panel_vnni_intel, MOEI_ASK_BOTH, 0);
/* clang-format on */
#endif
#endif
#if MOEI_HAVE_AVX512 && defined(__cplusplus) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic pop
#endif

/* ==== >>neon: F32, Q8 and BF16 on aarch64 ================================================================================
   16 lanes are 4 vectors: vector v holds the sums of k mod 16 = 4 v .. 4 v + 3, so the tree adds 0 to 2, 1 to 3,
   those two, and then inside a vector. Compilers' headers write vaddq and vmulq as + and *, which may be contracted:
   as in scalar code, no product that may round feeds an add but through vfmaq. */

#if MOEI_HAVE_NEON
#define MOEI_NEON_ROWS 2 /* 2 rows x 3 tokens x 4 vectors: 24 sums + 2 weights + 1 token of 32 registers */
#define MOEI_NEON_TOKENS 3

/* 4 weights as f32. Loads of bytes: rows have any alignment. */
MOEI_FORCE float32x4_t moei_load_neon(const uint32_t format, const uint8_t *p) {
    if (format == MOE_FORMAT_F32) return vreinterpretq_f32_u8(vld1q_u8(p));
    uint8x8_t h = vld1_u8(p);
    if (format == MOE_FORMAT_F16) return vcvt_f32_f16(vreinterpret_f16_u8(h));
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vreinterpret_u16_u8(h)), 16));
}
/* The weights behind the last whole 16, padded with zeros in `to`. */
MOEI_FORCE const uint8_t *moei_tail_neon(uint8_t *to, const uint8_t *p, size_t bytes) {
    memset(to, 0, 64);
    memcpy(to, p, bytes);
    return to;
}

/* The tree 8, 4, 2, 1 of two sums, then + 0.0f. */
MOEI_FORCE float32x2_t moei_half_neon(const float32x4_t *a) {
    float32x4_t s = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
    return vadd_f32(vget_low_f32(s), vget_high_f32(s));
}
MOEI_FORCE float32x2_t moei_sum2_neon(const float32x4_t *a, const float32x4_t *b) {
    return vadd_f32(vpadd_f32(moei_half_neon(a), moei_half_neon(b)), vdup_n_f32(0.0f));
}

/* A step: 16 weights of R rows (at w[r] + at) times 16 values of C tokens (at x[c] + x_at, in bytes). With a dot, which is a
   constant: 32 of each, in pairs. */
typedef float32x4_t moei_pairs_neon_fn(float32x4_t acc, float32x4_t w, float32x4_t x);
MOEI_FORCE void moei_step_neon(const uint32_t format, moei_pairs_neon_fn *dot, const int R, const int C, const uint8_t *const *w,
                               size_t at, const uint8_t *const *x, size_t x_at, float32x4_t (*a)[MOEI_NEON_ROWS][4]) {
    const uint32_t as = dot ? (uint32_t)MOE_FORMAT_F32 : format; /* a vector of pairs is loaded as one of f32 */
    const size_t bytes = as == MOE_FORMAT_F32 ? 16 : 8;
    MOEI_UNROLL for (size_t v = 0; v < 4; v++) {
        float32x4_t wv[MOEI_NEON_ROWS];
        MOEI_UNROLL for (int r = 0; r < R; r++) wv[r] = moei_load_neon(as, w[r] + at + bytes * v);
        MOEI_UNROLL for (int c = 0; c < C; c++) {
            float32x4_t xv = moei_load_neon(MOE_FORMAT_F32, x[c] + x_at + 16 * v);
            MOEI_UNROLL for (int r = 0; r < R; r++)
                a[c][r][v] = dot ? dot(a[c][r][v], wv[r], xv) : vfmaq_f32(a[c][r][v], wv[r], xv);
        }
    }
}

/* SHAPES      2 rows (any dense format, k contiguous) x a group of C tokens
   DEFINITION  lane l of a[c][r] is the FMA chain over k mod 16 == l; with a dot its chain over the pairs k / 2 mod 16 == l */
MOEI_FORCE void moei_tile_neon(const uint32_t format, moei_pairs_neon_fn *dot, const int C, const moei_tile *t) {
    const int R = MOEI_NEON_ROWS;
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2, step = dot ? 32 : 16, x_size = dot ? 2 : 4;
    const size_t k_end = t->k1 < t->k ? t->k1 : t->k & ~(step - 1);
    const uint8_t *w[MOEI_NEON_ROWS] = {t->w[0], t->w[1]}, *ahead = t->ahead, *ahead_end = t->ahead_end;
    const uint8_t *x[MOEI_NEON_TOKENS];
    float32x4_t a[MOEI_NEON_TOKENS][MOEI_NEON_ROWS][4];
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        x[c] = t->x + 64 * c;
        MOEI_UNROLL for (int i = 0; i < R * 4; i++)
            a[c][i / 4][i % 4] = t->k0 ? vld1q_f32(t->sums + (c * R * 4 + i) * 4) : vdupq_n_f32(0.0f);
    }
    for (size_t k = t->k0; k < k_end; k += step) {
        MOEI_AHEAD(t->ahead_step);
        moei_step_neon(format, dot, R, C, w, k * size, x, k * x_size * (size_t)C, a);
    }
    if (t->k1 < t->k) {
        MOEI_UNROLL for (int c = 0; c < C; c++)
            MOEI_UNROLL for (int i = 0; i < R * 4; i++) vst1q_f32(t->sums + (c * R * 4 + i) * 4, a[c][i / 4][i % 4]);
        return;
    }
    if (k_end < t->k) {
        uint8_t tail[MOEI_NEON_ROWS][64];
        MOEI_UNROLL for (int r = 0; r < R; r++)
            w[r] = moei_tail_neon(tail[r], w[r] + k_end * size, (t->k - k_end) * size);
        moei_step_neon(format, dot, R, C, w, 0, x, k_end * x_size * (size_t)C, a);
    }
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        float32x2_t s = moei_sum2_neon(a[c][0], a[c][1]);
        if (t->n_rows == 2) vst1_f32(t->out + (size_t)c * t->out_stride, s);
        else vst1_lane_f32(t->out + (size_t)c * t->out_stride, s, 0);
    }
}

#define MOEI_TILE_NEON(F, tier, target, dot, C)                                                                         \
    static target void moei_tile_##tier##_##F##_##C(const moei_tile *t) { moei_tile_neon(MOE_FORMAT_##F, dot, C, t); }
#define MOEI_DOT_NEON(F, tier, target, dot)                                                                             \
    MOEI_TILE_NEON(F, tier, target, dot, 1)                                                                             \
    MOEI_TILE_NEON(F, tier, target, dot, 2)                                                                             \
    MOEI_TILE_NEON(F, tier, target, dot, 3)                                                                             \
    static const moei_tiles moei_tiles_##tier##_##F = {                                                                 \
        MOEI_NEON_ROWS, MOEI_NEON_TOKENS, 1024, 32, 4, 1,                                                               \
        {moei_tile_##tier##_##F##_1, moei_tile_##tier##_##F##_2, moei_tile_##tier##_##F##_3}, NULL};                    \
    static void moei_dot_##tier##_##F(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n, float *out, \
                                      size_t stride) {                                                                  \
        moei_sweep(&moei_tiles_##tier##_##F, w, n_rows, x, n, out, stride);                                             \
    }
MOEI_DOT_NEON(F32, neon, , NULL)
MOEI_DOT_NEON(F16, neon, , NULL)
MOEI_DOT_NEON(BF16, neon, , NULL)

static void moei_panel_neon(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x,
                            uint32_t n_tokens, float *out, size_t out_stride) {
    moei_rows rows = *w;
    rows.data = (const uint8_t *)panel, rows.row0 = 0, rows.row_stride = moei_f32_row_bytes(w->k);
    moei_dot_neon_F32(&rows, n_rows, x, n_tokens, out, out_stride);
}

/* 8 E4M3 values times 2^-8, as f16: their fields moved into its own, which has the same kind of subnormals. */
MOEI_FORCE float16x8_t moei_e4m3_neon(int8x8_t b) {
    const uint16x8_t top = vdupq_n_u16(0x7f << 7);
    uint16x8_t h = vandq_u16(vreinterpretq_u16_s16(vshll_n_s8(b, 7)), vdupq_n_u16(0xbf80));
    uint16x8_t nan = vceqq_u16(vandq_u16(h, top), top);
    return vreinterpretq_f16_u16(vbslq_u16(nan, vdupq_n_u16(0x7e00), h));
}
/* 16 weights at p times their scales. */
MOEI_FORCE void moei_fp8_neon(float *o, const uint8_t *p, const float *scale) {
    MOEI_UNROLL for (int i = 0; i < 16; i += 8) {
        float16x8_t h = moei_e4m3_neon(vreinterpret_s8_u8(vld1_u8(p + i)));
        float32x4_t low = vmulq_n_f32(vcvt_f32_f16(vget_low_f16(h)), 256.0f);
        float32x4_t high = vmulq_n_f32(vcvt_f32_f16(vget_high_f16(h)), 256.0f);
        vst1q_f32(o + i, vmulq_f32(low, vld1q_f32(scale + i)));
        vst1q_f32(o + i + 4, vmulq_f32(high, vld1q_f32(scale + i + 4)));
    }
}
/* The scales of weights k .. k + 15 of row r; returns how many of the following k have the same (at least 16 are covered). */
static size_t moei_scales16(const moei_rows *w, uint32_t r, size_t k, float *s) {
    size_t row = w->row0 + r, cols = w->scale.cols;
    if (w->scale.data && cols % 16) { /* odd shapes: one by one */
        for (size_t i = 0; i < 16; i++) s[i] = k + i < w->k ? moei_scale_at(&w->scale, row, k + i) : 0.0f;
        return 16;
    }
    float same = w->scale.data ? moei_scale_at(&w->scale, row, k) : 1.0f;
    for (size_t i = 0; i < 16; i++) s[i] = same;
    return w->scale.data ? cols - k % cols : w->k;
}
/* Panel rows of FP8, 16 weights at a time. */
MOEI_FORCE void moei_decode_fp8_rows_neon(const moei_rows *w, uint32_t n_rows, uint8_t *o, size_t row_bytes,
                                          void (*prepare)(void *row, const float *x, size_t k0, size_t n, size_t k)) {
    float s[16], v[16];
    for (uint32_t r = 0; r < n_rows; r++, o += row_bytes) {
        const uint8_t *p = moei_row(w, r);
        for (size_t k = 0, next = 0; k < w->k; k += 16) {
            uint8_t tail[64];
            size_t n = w->k - k < 16 ? w->k - k : 16;
            if (k >= next) next = k + moei_scales16(w, r, k, s);
            moei_fp8_neon(v, n < 16 ? moei_tail_neon(tail, p + k, n) : p + k, s);
            prepare(o, v, k, n, w->k);
        }
    }
}
static void moei_decode_fp8_neon(const moei_rows *w, uint32_t n_rows, void *panel) {
    moei_decode_fp8_rows_neon(w, n_rows, (uint8_t *)panel, moei_f32_row_bytes(w->k), moei_prepare_f32);
}

static const moei_packing moei_packing_neon = {MOEI_NEON_TOKENS, 2, moei_pack_f32, NULL, NULL, NULL};
// clang-format off
MOEI_TABLE const moei_arith moei_f32_neon = {
    MOE_COMPUTE_F32, MOE_TIER_NEON, moei_f32_row_bytes, moei_prepare_f32, moei_panel_bytes_f32, moei_panel_neon, {
        /* NONE         */ MOEI_NO_OPS,
        /* F32          */ {moei_dot_neon_F32, NULL, UINT32_MAX},
        /* F16          */ {moei_dot_neon_F16, NULL, UINT32_MAX},
        /* BF16         */ {moei_dot_neon_BF16, NULL, UINT32_MAX},
        /* Q8_0 - Q5_1  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* Q2_K - Q6_K  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* IQ4_NL, _XS  */ MOEI_NO_OPS, MOEI_NO_OPS,
        /* MXFP4, NVFP4 */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* MXFP8        */ {NULL, moei_decode_fp8_neon, 0},
        /* FP8_BLOCK    */ {NULL, moei_decode_fp8_neon, 0},
        /* FP8_CHANNEL  */ {NULL, moei_decode_fp8_neon, 0},
        /* INT8, INT4   */ MOEI_NO_OPS, MOEI_NO_OPS},
    &moei_packing_neon, NULL, MOEI_ASK_L2, 0, 1};
// clang-format on

/* ---- BF16 on FEAT_BF16
   Lane l of a sum is the chain of BFDOT over the pairs k = 32 i + 2 l, 32 i + 2 l + 1; then F32's tree and + 0.0f. BFDOT adds
   w0 x0 + w1 x1 (each product exact or beyond the range) rounded to odd, and that to the sum, rounded to odd; subnormals are
   zero, in and out, NaN is the default one. So says the architecture where FEAT_EBF16 is missing or FPCR.EBF is 0, as it is
   by default: FPCR's rounding mode has no influence then. BFMMLA would give each lane two chained BFDOTs and so needs pairs of
   rows and tokens interleaved, a shuffle per multiplication: it would gain nothing here without a repacked layout. */
#if MOEI_HAVE_NEONBF16
MOEI_FORCE MOEI_NEONBF16 float32x4_t moei_bfdot_neon(float32x4_t acc, float32x4_t w, float32x4_t x) {
    return vbfdotq_f32(acc, vreinterpretq_bf16_f32(w), vreinterpretq_bf16_f32(x));
}
MOEI_DOT_NEON(BF16, neonbf16, MOEI_NEONBF16, moei_bfdot_neon)

static size_t moei_panel_bytes_neonbf16(uint32_t n_rows, size_t k) { return n_rows * moei_bf16_row_bytes(k); }
static void moei_panel_neonbf16(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x,
                                uint32_t n_tokens, float *out, size_t out_stride) {
    moei_rows rows = *w;
    rows.data = (const uint8_t *)panel, rows.row0 = 0, rows.row_stride = moei_bf16_row_bytes(w->k);
    moei_dot_neonbf16_BF16(&rows, n_rows, x, n_tokens, out, out_stride);
}
MOEI_NEONBF16 static void moei_prepare_neonbf16(void *row, const float *x, size_t k0, size_t n, size_t k) {
    uint16_t *o = (uint16_t *)row + k0;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        vst1q_u16(o + i, vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(vld1q_f32(x + i)), vld1q_f32(x + i + 4))));
    moei_prepare_bf16(row, x + i, k0 + i, n - i, k); /* the rest, and the padding */
}
static void moei_decode_fp8_neonbf16(const moei_rows *w, uint32_t n_rows, void *panel) {
    moei_decode_fp8_rows_neon(w, n_rows, (uint8_t *)panel, moei_bf16_row_bytes(w->k), moei_prepare_neonbf16);
}
static const moei_packing moei_packing_neonbf16 = {MOEI_NEON_TOKENS, 2, moei_pack_bf16, NULL, NULL, NULL};
// clang-format off
MOEI_TABLE const moei_arith moei_bf16_neonbf16 = {
    MOE_COMPUTE_BF16, MOE_TIER_NEONBF16, moei_bf16_row_bytes, moei_prepare_neonbf16, moei_panel_bytes_neonbf16,
    moei_panel_neonbf16, {
        /* NONE - F16   */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* BF16         */ {moei_dot_neonbf16_BF16, NULL, UINT32_MAX},
        /* Q8_0 - Q5_1  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* Q2_K - Q6_K  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* IQ4_NL, _XS  */ MOEI_NO_OPS, MOEI_NO_OPS,
        /* MXFP4, NVFP4 */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,
        /* MXFP8        */ {NULL, moei_decode_fp8_neonbf16, 0},
        /* FP8_BLOCK    */ {NULL, moei_decode_fp8_neonbf16, 0},
        /* FP8_CHANNEL  */ {NULL, moei_decode_fp8_neonbf16, 0},
        /* INT8, INT4   */ MOEI_NO_OPS, MOEI_NO_OPS},
    &moei_packing_neonbf16, NULL, MOEI_ASK_L2, 0, 1};
// clang-format on
#endif

/* exp: see moei_exp, whose two last products these are too. NaN is found by its bits: its k means nothing. */
MOEI_FORCE float32x4_t moei_exp_neon(float32x4_t x) {
    uint32x4_t size = vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x7fffffffu));
    uint32x4_t nan = vcgtq_u32(size, vdupq_n_u32(0x7f800000u));
    float32x4_t z = vmaxq_f32(vminq_f32(x, vdupq_n_f32(MOEI_EXP_MAX)), vdupq_n_f32(MOEI_EXP_MIN));
    float32x4_t t = vfmaq_f32(vdupq_n_f32(MOEI_MAGIC), z, vdupq_n_f32(MOEI_LOG2E));
    int32x4_t k = vsubq_s32(vreinterpretq_s32_f32(t), vdupq_n_s32(MOEI_MAGIC_BITS));
    int32x4_t k1 = vshrq_n_s32(k, 1), k2 = vsubq_s32(k, k1), bias = vdupq_n_s32(127);
    float32x4_t n = vcvtq_f32_s32(k), p = vdupq_n_f32(MOEI_EXP_C6), r = vfmaq_f32(z, n, vdupq_n_f32(-MOEI_LN2_HI));
    r = vfmaq_f32(r, n, vdupq_n_f32(-MOEI_LN2_LO));
    p = vfmaq_f32(vdupq_n_f32(MOEI_EXP_C5), p, r);
    p = vfmaq_f32(vdupq_n_f32(MOEI_EXP_C4), p, r);
    p = vfmaq_f32(vdupq_n_f32(MOEI_EXP_C3), p, r);
    p = vfmaq_f32(vdupq_n_f32(MOEI_EXP_C2), p, r);
    p = vaddq_f32(vfmaq_f32(r, p, vmulq_f32(r, r)), vdupq_n_f32(1.0f));
    p = vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(k1, bias), 23)));
    p = vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(k2, bias), 23)));
    return vbslq_f32(nan, x, p);
}
MOEI_FORCE float32x4_t moei_sigmoid_neon(float32x4_t x) {
    const float32x4_t one = vdupq_n_f32(1.0f);
    return vdivq_f32(one, vaddq_f32(one, moei_exp_neon(vnegq_f32(x))));
}
static void moei_vexp_neon(float *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, moei_exp_neon(vld1q_f32(x + i)));
    moei_exp_c(y + i, x + i, n - i);
}
static void moei_vsigmoid_neon(float *y, const float *x, float a, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, moei_sigmoid_neon(vmulq_n_f32(vld1q_f32(x + i), a)));
    moei_sigmoid_c(y + i, x + i, a, n - i);
}
static void moei_vaxpy_neon(float *y, const float *v, float w, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vfmaq_n_f32(vld1q_f32(y + i), vld1q_f32(v + i), w));
    moei_axpy_c(y + i, v + i, w, n - i);
}
static void moei_vaffine_neon(float *v, const float *s, const float *b, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(v + i, vfmaq_f32(vld1q_f32(b + i), vld1q_f32(v + i), vld1q_f32(s + i)));
    moei_affine_c(v + i, s + i, b + i, n - i);
}
static void moei_vtimes_neon(float *y, const float *v, size_t n) {
    const float32x4_t least = vdupq_n_f32(MOEI_LEAST);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vmulq_f32(vmaxq_f32(least, vld1q_f32(y + i)), vld1q_f32(v + i)));
    moei_times_c(y + i, v + i, n - i);
}
static void moei_vclamp_neon(float *v, float low, float high, float plus, size_t n) {
    const float32x4_t l = vdupq_n_f32(low), h = vdupq_n_f32(high), p = vdupq_n_f32(plus);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(v + i, vaddq_f32(vmaxq_f32(l, vminq_f32(h, vld1q_f32(v + i))), p));
    moei_clamp_c(v + i, low, high, plus, n - i);
}
MOEI_UNUSED static const moei_vec moei_vec_neon = {moei_vexp_neon,   moei_vsigmoid_neon, moei_vaxpy_neon, moei_vaffine_neon,
                                                   moei_vtimes_neon, moei_vclamp_neon,   moei_order_c,    moei_reach_c,
                                                   moei_read16_c,    moei_write16_c};

#if MOEI_HAVE_Q8
/* ---- Q8 ------------------------------------------------------------------------------------------------------------
   A step is 256 weights of a row, unpacked by one function per format, which the direct dot products and the panels of
   every tier share. The tiers differ in one instruction: VMULL and VPADAL on neon, SDOT on dotprod (FEAT_DotProd), SMMLA on
   i8mm (FEAT_I8MM; its direct dot products are dotprod's). They come as constant pointers to functions that carry their
   target attribute; inlined, each tier's loops have its own instruction. All sums are exact, so the bits are the
   definition's. Checked instruction by instruction under an emulator; never measured on hardware. */

typedef struct moei_unpacked_neon { /* a row's last step may have fewer than 8 blocks: then d = 0 in the others */
    int8_t q[8][32];
    int32_t v[6][8];            /* by block: d; minimum (times s_x) or the second half's d. MOEI_SUB16: d, two integer
                                   scales; and with MOEI_MIN two integer minima, -dmin. Floats as their bits */
} moei_unpacked_neon;
typedef void moei_unpack_neon_fn(const moei_rows *w, uint32_t r, size_t k, moei_unpacked_neon *g);
typedef int32x4_t moei_dot16_neon_fn(int32x4_t acc, int8x16_t w, int8x16_t x);
typedef void moei_half_neon_fn(const int C, const int8_t *w, const int8_t *const *x, int32x4_t *sum);

MOEI_FORCE int moei_sides_neon(const uint32_t flags) { /* vectors of v in use */
    return flags & MOEI_SUB16 ? (flags & MOEI_MIN ? 6 : 3) : flags & (MOEI_MIN | MOEI_TWO) ? 2 : 1;
}
MOEI_FORCE void moei_put_neon(int32_t *v, float32x4_t a, float32x4_t b) {
    vst1q_s32(v, vreinterpretq_s32_f32(a)), vst1q_s32(v + 4, vreinterpretq_s32_f32(b));
}
MOEI_FORCE void moei_put8_neon(int32_t *v, int8x8_t b) {
    int16x8_t h = vmovl_s8(b);
    vst1q_s32(v, vmovl_s16(vget_low_s16(h))), vst1q_s32(v + 4, vmovl_s16(vget_high_s16(h)));
}
MOEI_FORCE void moei_put_times_neon(int32_t *v, float d, int8x8_t b) { /* d times each */
    moei_put8_neon(v, b);
    moei_put_neon(v, vmulq_n_f32(vcvtq_f32_s32(vld1q_s32(v)), d), vmulq_n_f32(vcvtq_f32_s32(vld1q_s32(v + 4)), d));
}
MOEI_FORCE void moei_put_halves_neon(int32_t *v, const uint8_t *p, size_t stride) {
    uint16_t h[8];
    for (size_t i = 0; i < 8; i++) h[i] = moei_load16(p + i * stride);
    moei_put_neon(v, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h))), vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h + 4))));
}
MOEI_FORCE float moei_half1_neon(const uint8_t *p) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(moei_load16(p)))), 0);
}
MOEI_FORCE int8x8_t moei_words_neon(uint32_t a, uint32_t b) { return vcreate_s8((uint64_t)b << 32 | a); }

/* Scales and zero points that live apart, along a row: the value of weight k, then of every `unit` weights. */
typedef struct moei_walk_neon {
    const uint8_t *p; /* NULL: absent */
    size_t size, cols, left;
} moei_walk_neon;
MOEI_FORCE moei_walk_neon moei_walk_from_neon(const moei_side *s, const uint8_t *line, size_t size, size_t k) {
    moei_walk_neon w = {s->data ? line + k / s->cols * size : NULL, size, s->cols, s->data ? s->cols - k % s->cols : 0};
    return w;
}
MOEI_FORCE void moei_walk_on_neon(moei_walk_neon *w, size_t unit) {
    if (w->p && (w->left -= unit) == 0) w->p += w->size, w->left = w->cols;
}
MOEI_FORCE void moei_apart_neon(const moei_side *s, size_t row, size_t k, size_t unit, size_t n, float factor, float *out) {
    moei_walk_neon at = moei_walk_from_neon(s, s->data ? moei_side_at(s, row, 0) : NULL, moei_type_bytes[s->type], k);
    memset(out, 0, 256 / unit * sizeof *out);
    for (size_t i = 0; i < n; i++, moei_walk_on_neon(&at, unit)) out[i] = at.p ? factor * moei_scalar(s->type, at.p) : factor;
}
MOEI_FORCE void moei_zeros_neon(const moei_side *s, size_t row, size_t k, size_t n, int8_t *out) {
    const int packed = s->type == MOE_TYPE_U4X8;
    const size_t line = s->data ? row / s->rows : 0;
    const uint8_t *p = s->data ? s->data + (packed ? line / 8 : line) * s->row_stride + (packed ? line % 8 / 2 : 0) : NULL;
    moei_walk_neon at = moei_walk_from_neon(s, p, packed ? 4 : 1, k);
    memset(out, 8, 8);
    for (size_t i = 0; at.p && i < n; i++, moei_walk_on_neon(&at, 32))
        out[i] = (int8_t)(packed ? *at.p >> line % 2 * 4 & 15 : *at.p > 127 ? 127 : *at.p);
}
MOEI_FORCE void moei_scales_apart_neon(const uint32_t f, const moei_rows *w, uint32_t r, size_t k, size_t n,
                                       moei_unpacked_neon *g) {
    const uint32_t flags = moei_codecs[f].flags;
    const size_t unit = flags & MOEI_TWO ? 16 : 32;
    float d[16];
    moei_apart_neon(&w->scale, w->row0 + r, k, unit, n * (32 / unit), flags & MOEI_DOUBLED ? 0.5f : 1.0f, d);
    if (flags & MOEI_TWO) {
        float32x4x2_t a = vld2q_f32(d), b = vld2q_f32(d + 8);
        moei_put_neon(g->v[0], a.val[0], b.val[0]), moei_put_neon(g->v[1], a.val[1], b.val[1]);
    } else moei_put_neon(g->v[0], vld1q_f32(d), vld1q_f32(d + 4));
}
/* 8 scales and 8 minima of 6 bits each in 12 bytes (Q4_K, Q5_K); 16 scales of 6 bits in 12 bytes (Q3_K). */
MOEI_FORCE void moei_scales_k45_neon(const uint8_t *p, moei_unpacked_neon *g) {
    const uint32_t a = moei_load32(p + 4), b = moei_load32(p + 8), c = moei_load32(p + 12);
    const uint32_t six = 0x3f3f3f3f, low = 0x0f0f0f0f, top = 0x30303030;
    moei_put_times_neon(g->v[0], moei_half1_neon(p), moei_words_neon(a & six, (c & low) | (a >> 2 & top)));
    moei_put_times_neon(g->v[1], -moei_half1_neon(p + 2), moei_words_neon(b & six, (c >> 4 & low) | (b >> 2 & top)));
}
MOEI_FORCE int8x8x2_t moei_scales_k3_neon(const uint8_t *p) {
    const uint32_t a = moei_load32(p), b = moei_load32(p + 4), c = moei_load32(p + 8), low = 0x0f0f0f0f, top = 0x30303030;
    int8x8_t x = moei_words_neon((a & low) | (c << 4 & top), (b & low) | (c << 2 & top));
    int8x8_t y = moei_words_neon((a >> 4 & low) | (c & top), (b >> 4 & low) | (c >> 2 & top));
    int8x8x2_t s = vuzp_s8(vsub_s8(x, vdup_n_s8(32)), vsub_s8(y, vdup_n_s8(32)));
    return s;
}
MOEI_FORCE void moei_scales_sub_neon(const uint32_t f, const uint8_t *p, moei_unpacked_neon *g) {
    float32x4_t d = vdupq_n_f32(moei_half1_neon(p + (f == MOE_FORMAT_Q2_K ? 80 : f == MOE_FORMAT_Q3_K ? 108 : 208)));
    int8x8x2_t s = vld2_s8((const int8_t *)p + (f == MOE_FORMAT_Q6_K ? 192 : 0)), low;
    if (f == MOE_FORMAT_Q3_K) s = moei_scales_k3_neon(p + 96);
    moei_put_neon(g->v[0], d, d);
    for (int h = 0; h < 2; h++) {
        low.val[h] = f == MOE_FORMAT_Q2_K ? vand_s8(s.val[h], vdup_n_s8(15)) : s.val[h];
        moei_put8_neon(g->v[1 + h], low.val[h]);
        if (f == MOE_FORMAT_Q2_K) moei_put8_neon(g->v[3 + h], vreinterpret_s8_u8(vshr_n_u8(vreinterpret_u8_s8(s.val[h]), 4)));
    }
    float32x4_t m = vdupq_n_f32(f == MOE_FORMAT_Q2_K ? -moei_half1_neon(p + 82) : 0.0f);
    if (f == MOE_FORMAT_Q2_K) moei_put_neon(g->v[5], m, m);
}
MOEI_FORCE void moei_scales_neon(const uint32_t f, const uint8_t *p, moei_unpacked_neon *g) {
    const size_t size = moei_layouts[f].bytes;
    float d[2][8];
    switch (f) {
    case MOE_FORMAT_Q4_1:
    case MOE_FORMAT_Q5_1: moei_put_halves_neon(g->v[1], p + 2, size), moei_put_halves_neon(g->v[0], p, size); return;
    case MOE_FORMAT_Q4_K:
    case MOE_FORMAT_Q5_K: moei_scales_k45_neon(p, g); return;
    case MOE_FORMAT_Q2_K:
    case MOE_FORMAT_Q3_K:
    case MOE_FORMAT_Q6_K: moei_scales_sub_neon(f, p, g); return;
    case MOE_FORMAT_IQ4_XS: /* 4 low bits in bytes 4 .. 7, 2 high ones in 2 and 3 */
        for (int j = 0; j < 8; j++) {
            int low = p[4 + j / 2] >> 4 * (j & 1) & 15, high = moei_load16(p + 2) >> 2 * j & 3;
            d[0][j] = moei_half1_neon(p) * (float)((low | high << 4) - 32);
        }
        break;
    case MOE_FORMAT_MXFP4:
        for (int j = 0; j < 8; j++, p += 17) d[0][j] = moei_float(*p > 1 ? (uint32_t)(*p - 1) << 23 : 0x00200000u << *p);
        break;
    case MOE_FORMAT_NVFP4: /* half of E4M3 without its sign; 0x7f (but not 0xff) is 0 */
        for (int j = 0; j < 16; j++) {
            uint32_t s = p[j / 4 * 36 + j % 4];
            d[j % 2][j / 2] = s == 0x7f ? 0.0f : moei_float((s & 0x7f) << 20) * moei_float(0x7b000000u); /* 2^119 */
        }
        moei_put_neon(g->v[1], vld1q_f32(d[1]), vld1q_f32(d[1] + 4));
        break;
    default: moei_put_halves_neon(g->v[0], p, size); return;
    }
    moei_put_neon(g->v[0], vld1q_f32(d[0]), vld1q_f32(d[0] + 4));
}

/* 16 times `bits` bits of bytes at p, from bit `shift` on; moved to bit `to`. */
MOEI_FORCE uint8x16_t moei_field_neon(const uint8_t *p, int shift, int bits, int to) {
    uint8x16_t v = vshlq_u8(vld1q_u8(p), vdupq_n_s8((int8_t)(to - shift)));
    return vandq_u8(v, vdupq_n_u8((uint8_t)(((1 << bits) - 1) << to)));
}
MOEI_FORCE uint8x16_t moei_fifth_neon(const uint8_t *p) { /* 16 bits to bit 4 of 16 bytes */
    uint8x8_t bit = vcreate_u8(((uint64_t)0x80402010u << 32) | 0x08040201u), low = vtst_u8(vdup_n_u8(p[0]), bit);
    return vandq_u8(vcombine_u8(low, vtst_u8(vdup_n_u8(p[1]), bit)), vdupq_n_u8(16));
}
/* Weights 16 h .. 16 h + 15 of block j of the step at p, as they are stored. */
MOEI_FORCE uint8x16_t moei_codes_neon(const uint32_t f, const uint8_t *p, int j, int h) {
    const uint8_t *b = p + j * (int)(moei_layouts[f].bytes * 32 / moei_layouts[f].n), *end = b + moei_layouts[f].bytes;
    switch (f) {
    case MOE_FORMAT_Q8_0:
    case MOE_FORMAT_INT8_CHANNEL: return vld1q_u8((f == MOE_FORMAT_Q8_0 ? b + 2 : b) + 16 * h);
    case MOE_FORMAT_Q5_0:
    case MOE_FORMAT_Q5_1: return vorrq_u8(moei_field_neon(end - 16, 4 * h, 4, 0), moei_fifth_neon(end - 20 + 2 * h));
    case MOE_FORMAT_Q2_K: return moei_field_neon(p + 16 + 32 * (j / 4) + 16 * h, 2 * (j % 4), 2, 0);
    case MOE_FORMAT_Q3_K:
        return vorrq_u8(moei_field_neon(p + 32 + 32 * (j / 4) + 16 * h, 2 * (j % 4), 2, 0), moei_field_neon(p + 16 * h, j, 1, 2));
    case MOE_FORMAT_Q4_K: return moei_field_neon(p + 16 + 32 * (j / 2) + 16 * h, 4 * (j % 2), 4, 0);
    case MOE_FORMAT_Q5_K:
        return vorrq_u8(moei_field_neon(p + 48 + 32 * (j / 2) + 16 * h, 4 * (j % 2), 4, 0),
                        moei_field_neon(p + 16 + 16 * h, j, 1, 4));
    case MOE_FORMAT_Q6_K:
        return vorrq_u8(moei_field_neon(p + 64 * (j / 4) + 32 * (j % 2) + 16 * h, j % 4 / 2 * 4, 4, 0),
                        moei_field_neon(p + 128 + 32 * (j / 4) + 16 * h, 2 * (j % 4), 2, 4));
    case MOE_FORMAT_IQ4_XS: return moei_field_neon(p + 8 + 16 * j, 4 * h, 4, 0);
    case MOE_FORMAT_NVFP4: {
        uint8x8_t v = vld1_u8(p + 36 * (j / 2) + 4 + 16 * (j % 2) + 8 * h);
        return vcombine_u8(vand_u8(v, vdup_n_u8(15)), vshr_n_u8(v, 4));
    }
    case MOE_FORMAT_MXFP4_HF:
    case MOE_FORMAT_NVFP4_HF:
    case MOE_FORMAT_INT4_GROUP: {
        uint8x8_t v = vld1_u8(p + 16 * j + 8 * h);
        uint8x8x2_t z = vzip_u8(vand_u8(v, vdup_n_u8(15)), vshr_n_u8(v, 4));
        return vcombine_u8(z.val[0], z.val[1]);
    }
    default: return moei_field_neon(end - 16, 4 * h, 4, 0);
    }
}
MOEI_FORCE int8x16_t moei_signed_neon(const uint32_t f, uint8x16_t v, int8_t zero) {
    if (f == MOE_FORMAT_IQ4_NL || f == MOE_FORMAT_IQ4_XS) return vqtbl1q_s8(vld1q_s8(moei_iq4), v);
    if (moei_codecs[f].flags & MOEI_DOUBLED) return vqtbl1q_s8(vld1q_s8(moei_e2m1x2), v);
    return vsubq_s8(vreinterpretq_s8_u8(v), vdupq_n_s8(zero));
}
/* Row r from weight k (a multiple of 256) on. */
MOEI_FORCE void moei_unpack_neon(const uint32_t f, const moei_rows *w, uint32_t r, size_t k, moei_unpacked_neon *g) {
    const size_t n = w->k - k < 256 ? (w->k - k) / 32 : 8; /* blocks */
    const int8_t zero = f == MOE_FORMAT_Q3_K   ? 4
                        : f == MOE_FORMAT_Q4_0 ? 8
                        : f == MOE_FORMAT_Q5_0 ? 16
                        : f == MOE_FORMAT_Q6_K ? 32
                                               : 0;
    const uint8_t *p = moei_row(w, r) + k / moei_layouts[f].n * moei_layouts[f].bytes;
    uint8_t tail[288];
    int8_t zeros[8] = {0};
    if (n < 8) memset(tail, 0, sizeof tail);
    if (n < 8) p = (const uint8_t *)memcpy(tail, p, 32 * n / moei_layouts[f].n * moei_layouts[f].bytes);
    if (moei_codecs[f].flags & MOEI_APART) moei_scales_apart_neon(f, w, r, k, n, g);
    else moei_scales_neon(f, p, g);
    if (f == MOE_FORMAT_INT4_GROUP) moei_zeros_neon(&w->zero, w->row0 + r, k, n, zeros);
    MOEI_UNROLL for (int j = 0; j < 8; j++)
        for (int h = 0; h < 2; h++)
            vst1q_s8(g->q[j] + 16 * h,
                     moei_signed_neon(f, moei_codes_neon(f, p, j, h), f == MOE_FORMAT_INT4_GROUP ? zeros[j] : zero));
}
#define MOEI_NEON_FORMATS(X)                                                                                            \
    X(Q8_0) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_NL) X(IQ4_XS) X(MXFP4)         \
    X(NVFP4) X(MXFP4_HF) X(NVFP4_HF) X(INT8_CHANNEL) X(INT4_GROUP)
#define MOE_X(f)                                                                                                        \
    static void moei_unpack_neon_##f(const moei_rows *w, uint32_t r, size_t k, moei_unpacked_neon *g) {                     \
        moei_unpack_neon(MOE_FORMAT_##f, w, r, k, g);                                                                   \
    }
MOEI_NEON_FORMATS(MOE_X)
#undef MOE_X
MOEI_FORCE moei_unpack_neon_fn *moei_unpacker_neon(uint32_t format) {
    switch (format) {
#define MOE_X(f) case MOE_FORMAT_##f: return moei_unpack_neon_##f;
        MOEI_NEON_FORMATS(MOE_X)
#undef MOE_X
    default: return NULL;
    }
}

/* What a block adds in each of 4 lanes (blocks of a row, or rows): the table of the section `reference`. s0, s1 are the
   integer sums over its halves; v: the step's vectors. Of the tokens: d, s, and the sums of q over the halves. */
typedef struct moei_lanes_neon {
    float32x4_t d, s;
    int32x4_t sum[2];
} moei_lanes_neon;
MOEI_FORCE float32x4_t moei_add_neon(const uint32_t flags, const int32x4_t *v, int32x4_t s0, int32x4_t s1,
                                     const moei_lanes_neon *x, float32x4_t acc) {
    float32x4_t d = vmulq_f32(vreinterpretq_f32_s32(v[0]), x->d);
    if (flags & MOEI_TWO) {
        acc = vfmaq_f32(acc, vcvtq_f32_s32(s0), d);
        return vfmaq_f32(acc, vcvtq_f32_s32(s1), vmulq_f32(vreinterpretq_f32_s32(v[1]), x->d));
    }
    int32x4_t s = flags & MOEI_SUB16 ? vmlaq_s32(vmulq_s32(s0, v[1]), s1, v[2]) : vaddq_s32(s0, s1);
    acc = vfmaq_f32(acc, vcvtq_f32_s32(s), d);
    if (!(flags & MOEI_MIN)) return acc;
    if (!(flags & MOEI_SUB16)) return vfmaq_f32(acc, vreinterpretq_f32_s32(v[1]), x->s);
    int32x4_t m = vmlaq_s32(vmulq_s32(v[3], x->sum[0]), v[4], x->sum[1]);
    return vfmaq_f32(acc, vcvtq_f32_s32(m), vmulq_f32(vreinterpretq_f32_s32(v[5]), x->d));
}

/* ---- Straight from the rows: a lane is a block */

/* 4 partial sums of 16 products. Two products fit in 16 bits: activations are not -128. */
MOEI_FORCE int32x4_t moei_dot16_neon(int32x4_t acc, int8x16_t w, int8x16_t x) {
    return vpadalq_s16(acc, vmlal_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vget_high_s8(w), vget_high_s8(x)));
}
/* The sums of 4 blocks over one half (h = 0, 1) or all of them (h = 2). */
MOEI_FORCE int32x4_t moei_dots_neon(moei_dot16_neon_fn *dot16, const int8_t (*w)[32], const int8_t (*x)[32], int h) {
    int32x4_t s[4];
    MOEI_UNROLL for (int i = 0; i < 4; i++) {
        s[i] = vdupq_n_s32(0);
        if (h != 1) s[i] = dot16(s[i], vld1q_s8(w[i]), vld1q_s8(x[i]));
        if (h != 0) s[i] = dot16(s[i], vld1q_s8(w[i] + 16), vld1q_s8(x[i] + 16));
    }
    return vpaddq_s32(vpaddq_s32(s[0], s[1]), vpaddq_s32(s[2], s[3]));
}
/* Blocks i .. i + 3 */
MOEI_FORCE float32x4_t moei_q8_step_neon(const uint32_t flags, moei_dot16_neon_fn *dot16, const moei_unpacked_neon *g,
                                         const moei_q8 *x, int i, float32x4_t acc) {
    const int split = (flags & (MOEI_SUB16 | MOEI_TWO)) != 0;
    int32x4_t v[6], s0 = moei_dots_neon(dot16, g->q + i, x->q + i, split ? 0 : 2), s1 = vdupq_n_s32(0);
    int16x4x2_t sum = vld2_s16(x->sum16[i]);
    moei_lanes_neon lanes = {vld1q_f32(x->d + i), vld1q_f32(x->s + i), {vmovl_s16(sum.val[0]), vmovl_s16(sum.val[1])}};
    if (split) s1 = moei_dots_neon(dot16, g->q + i, x->q + i, 1);
    MOEI_UNROLL for (int n = 0; n < moei_sides_neon(flags); n++) v[n] = vld1q_s32(g->v[n] + i);
    return moei_add_neon(flags, v, s0, s1, &lanes, acc);
}
/* SHAPES      1 row x n tokens (the constant 1, or up to MOEI_NEON_Q8_TOKENS), which share the unpacked weights */
#define MOEI_NEON_Q8_TOKENS 32
MOEI_FORCE void moei_q8_row_neon(const uint32_t flags, moei_dot16_neon_fn *dot16, const moei_rows *w, uint32_t r,
                                 const void *const *x, uint32_t n, float *out, size_t out_stride) {
    moei_unpack_neon_fn *unpack = moei_unpacker_neon(w->format);
    float32x4_t acc[MOEI_NEON_Q8_TOKENS][2];
    moei_unpacked_neon g;
    for (uint32_t t = 0; t < n; t++) acc[t][0] = acc[t][1] = vdupq_n_f32(0.0f);
    for (size_t k = 0; k < w->k; k += 256) {
        unpack(w, r, k, &g);
        for (uint32_t t = 0; t < n; t++) {
            const moei_q8 *b = (const moei_q8 *)x[t] + k / 256;
            acc[t][0] = moei_q8_step_neon(flags, dot16, &g, b, 0, acc[t][0]);
            acc[t][1] = moei_q8_step_neon(flags, dot16, &g, b, 4, acc[t][1]);
        }
    }
    for (uint32_t t = 0; t < n; t++) { /* the tree 4, 2, 1, then + 0.0f */
        float32x4_t s = vaddq_f32(acc[t][0], acc[t][1]);
        float32x2_t h = vadd_f32(vget_low_f32(s), vget_high_f32(s));
        out[t * out_stride + r] = vget_lane_f32(vpadd_f32(h, h), 0) + 0.0f;
    }
}
MOEI_FORCE void moei_dot_q8_neon(const uint32_t flags, moei_dot16_neon_fn *dot16, const moei_rows *w, uint32_t n_rows,
                                 const void *const *x, uint32_t n_tokens, float *out, size_t out_stride) {
    for (uint32_t t = 0, n; t < n_tokens; t += n, out += n * out_stride) {
        n = n_tokens - t < MOEI_NEON_Q8_TOKENS ? n_tokens - t : MOEI_NEON_Q8_TOKENS;
        for (uint32_t r = 0; r < n_rows; r++)
            if (n == 1) moei_q8_row_neon(flags, dot16, w, r, x + t, 1, out, out_stride);
            else moei_q8_row_neon(flags, dot16, w, r, x + t, n, out, out_stride);
    }
}

/* ---- Panels (dotprod, i8mm)
   LAYOUT      4 rows, each lane's blocks in order; an entry is a block of the 4 rows: 128 bytes of weights, [k / 4][row][4]
               for SDOT, [k / 8][row][8] for SMMLA, then the vectors v, a lane per row
   SHAPES      4 rows x C tokens in C accumulators: the 4 rows of a token (SDOT), or 2 rows x 2 tokens (SMMLA: vector 2 i
               has rows 0 and 1 of tokens 2 i and 2 i + 1, the next rows 2 and 3; lane = 2 row + token)
   DEFINITION  a lane's blocks are one chain: one lane after the other, its sums kept for the tree */

MOEI_UNUSED static size_t moei_panel_bytes_q8_neon(uint32_t n_rows, size_t k) {
    return ((size_t)n_rows + 3) / 4 * ((k + 255) / 256 * 8) * (128 + 6 * 16);
}
MOEI_FORCE void moei_decode_q8_neon(const uint32_t flags, const int mm, const moei_rows *w, uint32_t n_rows, void *panel) {
    const size_t steps = (w->k + 255) / 256, entry = 128 + 16 * (size_t)moei_sides_neon(flags);
    moei_unpack_neon_fn *unpack = moei_unpacker_neon(w->format);
    uint8_t *to = (uint8_t *)panel;
    moei_unpacked_neon g[4];
    for (uint32_t r = 0; r < n_rows; r += 4, to += steps * 8 * entry)
        for (size_t i = 0; i < steps; i++) {
            for (uint32_t a = 0; a < 4; a++) unpack(w, r + a < n_rows ? r + a : n_rows - 1, i * 256, &g[a]);
            for (size_t lane = 0; lane < 8; lane++) {
                uint8_t *e = to + (lane * steps + i) * entry;
                for (int h = 0; h < 2; h++) {
                    int32x4x4_t q;
                    int64x2x4_t p;
                    for (int a = 0; a < 4; a++) q.val[a] = vreinterpretq_s32_s8(vld1q_s8(g[a].q[lane] + 16 * h));
                    for (int a = 0; a < 4; a++) p.val[a] = vreinterpretq_s64_s32(q.val[a]);
                    if (mm) vst4q_s64((int64_t *)(void *)(e + 64 * h), p);
                    else vst4q_s32((int32_t *)(void *)(e + 64 * h), q);
                }
                for (int n = 0; n < moei_sides_neon(flags); n++)
                    for (int a = 0; a < 4; a++) memcpy(e + 128 + 16 * n + 4 * a, &g[a].v[n][lane], 4);
            }
        }
}
/* What accumulator c needs of block `lane` of its token or tokens. */
MOEI_FORCE float32x4_t moei_both_neon(float a, float b) { return vsetq_lane_f32(b, vsetq_lane_f32(b, vdupq_n_f32(a), 1), 3); }
MOEI_FORCE int32x4_t moei_both16_neon(int32_t a, int32_t b) { return vsetq_lane_s32(b, vsetq_lane_s32(b, vdupq_n_s32(a), 1), 3); }
MOEI_FORCE moei_lanes_neon moei_token_neon(const int mm, const moei_q8 *const *x, int c, size_t lane) {
    const moei_q8 *a = x[mm ? c & ~1 : c], *b = x[mm ? c | 1 : c];
    moei_lanes_neon l = {moei_both_neon(a->d[lane], b->d[lane]), moei_both_neon(a->s[lane], b->s[lane]),
                         {moei_both16_neon(a->sum16[lane][0], b->sum16[lane][0]),
                          moei_both16_neon(a->sum16[lane][1], b->sum16[lane][1])}};
    return l;
}
/* Adds the entry at e times block `lane` of C tokens. */
MOEI_FORCE void moei_entry_neon(const uint32_t flags, const int mm, const int C, moei_half_neon_fn *half, const uint8_t *e,
                                const moei_q8 *const *x, size_t lane, float32x4_t *acc) {
    const int split = (flags & (MOEI_SUB16 | MOEI_TWO)) != 0;
    const int8_t *w = (const int8_t *)e, *q[8];
    int32x4_t v[6], rows[6], s[2][8];
    MOEI_UNROLL for (int c = 0; c < C; c++) q[c] = x[c]->q[lane], s[0][c] = s[1][c] = vdupq_n_s32(0);
    half(C, w, q, s[0]);
    MOEI_UNROLL for (int c = 0; c < C; c++) q[c] += 16;
    half(C, w + 64, q, s[split]);
    MOEI_UNROLL for (int n = 0; n < moei_sides_neon(flags); n++) v[n] = vreinterpretq_s32_u8(vld1q_u8(e + 128 + 16 * n));
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        moei_lanes_neon token = moei_token_neon(mm, x, c, lane);
        MOEI_UNROLL for (int n = 0; n < moei_sides_neon(flags); n++)
            rows[n] = !mm ? v[n] : c % 2 ? vzip2q_s32(v[n], v[n]) : vzip1q_s32(v[n], v[n]);
        acc[c] = moei_add_neon(flags, rows, s[0][c], s[1][c], &token, acc[c]);
    }
}
MOEI_FORCE void moei_store_neon(float *out, float32x4_t v, uint32_t n_rows) {
    float s[4];
    if (n_rows >= 4) vst1q_f32(out, v);
    else vst1q_f32(s, v), memcpy(out, s, n_rows * sizeof *s);
}
/* n <= C of the tokens are wanted. */
MOEI_FORCE void moei_q8_tile_neon(const uint32_t flags, const int mm, const int C, moei_half_neon_fn *half, const uint8_t *e,
                                  size_t steps, const void *const *tokens, int n, float *out, size_t out_stride,
                                  uint32_t n_rows) {
    float32x4_t sum[8][8], acc[8];
    const moei_q8 *x[8];
    for (size_t lane = 0; lane < 8; lane++) {
        MOEI_UNROLL for (int c = 0; c < C; c++)
            x[c] = (const moei_q8 *)tokens[c < n ? c : n - 1], acc[c] = vdupq_n_f32(0.0f);
        for (size_t i = 0; i < steps; i++, e += 128 + 16 * moei_sides_neon(flags)) {
            moei_entry_neon(flags, mm, C, half, e, x, lane, acc);
            MOEI_UNROLL for (int c = 0; c < C; c++) x[c]++;
        }
        MOEI_UNROLL for (int c = 0; c < C; c++) sum[c][lane] = acc[c];
    }
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        for (int step = 4; step; step /= 2)
            for (int l = 0; l < step; l++) sum[c][l] = vaddq_f32(sum[c][l], sum[c][l + step]);
        acc[c] = vaddq_f32(sum[c][0], vdupq_n_f32(0.0f));
    }
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        float32x4_t a = acc[mm ? c & ~1 : c], b = acc[mm ? c | 1 : c];
        if (c < n) moei_store_neon(out + (size_t)c * out_stride, !mm ? a : c % 2 ? vuzp2q_f32(a, b) : vuzp1q_f32(a, b), n_rows);
    }
}
MOEI_FORCE void moei_panel_q8_neon(const uint32_t flags, const int mm, moei_half_neon_fn *half, void *panel,
                                   const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                                   size_t out_stride) {
    const size_t steps = (w->k + 255) / 256, groups = ((size_t)n_tokens + 7) / 8;
    const uint8_t *e = (const uint8_t *)panel;
    for (uint32_t r = 0; r < n_rows; r += 4, e += steps * 8 * (128 + 16 * (size_t)moei_sides_neon(flags)))
        for (size_t g = 0; g < groups; g++) {
            const size_t t = n_tokens * g / groups, n = n_tokens * (g + 1) / groups - t;
            float *to = out + t * out_stride + r;
            if (n <= 4) moei_q8_tile_neon(flags, mm, 4, half, e, steps, x + t, (int)n, to, out_stride, n_rows - r);
            else moei_q8_tile_neon(flags, mm, 8, half, e, steps, x + t, (int)n, to, out_stride, n_rows - r);
        }
}

/* ---- The tiers: target is that of the tier, the kinds are the flags of the formats */

#define MOEI_Q8_KINDS_NEON(X, ...)                                                                                      \
    X(plain, 0, __VA_ARGS__) X(min, MOEI_MIN, __VA_ARGS__) X(sub, MOEI_SUB16, __VA_ARGS__)                               \
    X(sub_min, MOEI_SUB16 | MOEI_MIN, __VA_ARGS__) X(two, MOEI_TWO, __VA_ARGS__)
#define MOEI_Q8_DOT_NEON(kind, flags, target, tier)                                                                     \
    static target void moei_dot_q8_##tier##_##kind(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n, \
                                                   float *out, size_t stride) {                                         \
        moei_dot_q8_neon(flags, moei_dot16_##tier, w, n_rows, x, n, out, stride);                                       \
    }
#define MOEI_Q8_PANEL_NEON(kind, flags, target, tier, mm)                                                               \
    static void moei_decode_q8_##tier##_##kind(const moei_rows *w, uint32_t n_rows, void *panel) {                      \
        moei_decode_q8_neon(flags, mm, w, n_rows, panel);                                                               \
    }                                                                                                                   \
    static target void moei_panel_q8_##tier##_##kind(void *panel, const moei_rows *w, uint32_t n_rows,            \
                                                     const void *const *x, uint32_t n, float *out, size_t stride) {     \
        moei_panel_q8_neon(flags, mm, moei_half_##tier, panel, w, n_rows, x, n, out, stride);                           \
    }
#define MOEI_Q8_PANELS_NEON(tier) /* the panel function of a tier's formats */                                          \
    static void moei_panel_q8_##tier(void *panel, const moei_rows *w, uint32_t n_rows, const void *const *x,      \
                                     uint32_t n, float *out, size_t stride) {                                           \
        switch (moei_codecs[w->format].flags & (MOEI_MIN | MOEI_SUB16 | MOEI_TWO)) {                                    \
        case MOEI_MIN: moei_panel_q8_##tier##_min(panel, w, n_rows, x, n, out, stride); break;                          \
        case MOEI_SUB16: moei_panel_q8_##tier##_sub(panel, w, n_rows, x, n, out, stride); break;                        \
        case MOEI_SUB16 | MOEI_MIN: moei_panel_q8_##tier##_sub_min(panel, w, n_rows, x, n, out, stride); break;         \
        case MOEI_TWO: moei_panel_q8_##tier##_two(panel, w, n_rows, x, n, out, stride); break;                          \
        default: moei_panel_q8_##tier##_plain(panel, w, n_rows, x, n, out, stride);                                     \
        }                                                                                                               \
    }
#define MOEI_Q8_ARITH_NEON(id, tier, panel_bytes, panel, ops)                                                           \
    MOEI_TABLE const moei_arith moei_q8_##tier = {                                                                      \
        MOE_COMPUTE_Q8, MOE_TIER_##id, moei_q8_row_bytes, moei_prepare_q8, panel_bytes, panel, {                        \
            /* NONE - BF16  */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                                      \
            /* Q8_0         */ ops(plain),                                                                              \
            /* Q4_0, Q4_1   */ ops(plain), ops(min),                                                                    \
            /* Q5_0, Q5_1   */ ops(plain), ops(min),                                                                    \
            /* Q2_K, Q3_K   */ ops(sub_min), ops(sub),                                                                  \
            /* Q4_K, Q5_K   */ ops(min), ops(min),                                                                      \
            /* Q6_K         */ ops(sub),                                                                                \
            /* IQ4_NL, _XS  */ ops(plain), ops(plain),                                                                  \
            /* MXFP4, NVFP4 */ ops(plain), ops(two), ops(plain), ops(two),                                              \
            /* MXFP8, FP8   */ MOEI_NO_OPS, MOEI_NO_OPS, MOEI_NO_OPS,                                                   \
            /* INT8, INT4   */ ops(plain), ops(plain)}, NULL, NULL, MOEI_ASK_L2, 0, 1};
#define MOEI_Q8_OPS_NEON(kind) {moei_dot_q8_neon_##kind, NULL, UINT32_MAX}
#define MOEI_Q8_OPS_DOTPROD(kind) {moei_dot_q8_dotprod_##kind, moei_decode_q8_dotprod_##kind, 4}
#define MOEI_Q8_OPS_I8MM(kind) {moei_dot_q8_dotprod_##kind, moei_decode_q8_i8mm_##kind, 4}

MOEI_Q8_KINDS_NEON(MOEI_Q8_DOT_NEON, , neon)
MOEI_Q8_ARITH_NEON(NEON, neon, NULL, NULL, MOEI_Q8_OPS_NEON)

#if MOEI_HAVE_DOTPROD
MOEI_FORCE MOEI_DOTPROD int32x4_t moei_dot16_dotprod(int32x4_t acc, int8x16_t w, int8x16_t x) { return vdotq_s32(acc, w, x); }
MOEI_FORCE MOEI_DOTPROD void moei_half_dotprod(const int C, const int8_t *w, const int8_t *const *x, int32x4_t *sum) {
    MOEI_UNROLL for (int c = 0; c < C; c++) {
        int8x16_t v = vld1q_s8(x[c]);
        sum[c] = vdotq_laneq_s32(sum[c], vld1q_s8(w), v, 0);
        sum[c] = vdotq_laneq_s32(sum[c], vld1q_s8(w + 16), v, 1);
        sum[c] = vdotq_laneq_s32(sum[c], vld1q_s8(w + 32), v, 2);
        sum[c] = vdotq_laneq_s32(sum[c], vld1q_s8(w + 48), v, 3);
    }
}
MOEI_Q8_KINDS_NEON(MOEI_Q8_DOT_NEON, MOEI_DOTPROD, dotprod)
MOEI_Q8_KINDS_NEON(MOEI_Q8_PANEL_NEON, MOEI_DOTPROD, dotprod, 0)
MOEI_Q8_PANELS_NEON(dotprod)
MOEI_Q8_ARITH_NEON(DOTPROD, dotprod, moei_panel_bytes_q8_neon, moei_panel_q8_dotprod, MOEI_Q8_OPS_DOTPROD)
#endif
#if MOEI_HAVE_I8MM
MOEI_FORCE MOEI_I8MM void moei_half_i8mm(const int C, const int8_t *w, const int8_t *const *x, int32x4_t *sum) {
    MOEI_UNROLL for (int c = 0; c < C; c += 2) {
        int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(x[c])), b = vreinterpretq_s64_s8(vld1q_s8(x[c + 1]));
        int8x16_t low = vreinterpretq_s8_s64(vzip1q_s64(a, b)), high = vreinterpretq_s8_s64(vzip2q_s64(a, b));
        sum[c] = vmmlaq_s32(vmmlaq_s32(sum[c], vld1q_s8(w), low), vld1q_s8(w + 32), high);
        sum[c + 1] = vmmlaq_s32(vmmlaq_s32(sum[c + 1], vld1q_s8(w + 16), low), vld1q_s8(w + 48), high);
    }
}
MOEI_Q8_KINDS_NEON(MOEI_Q8_PANEL_NEON, MOEI_I8MM, i8mm, 1)
MOEI_Q8_PANELS_NEON(i8mm)
MOEI_Q8_ARITH_NEON(I8MM, i8mm, moei_panel_bytes_q8_neon, moei_panel_q8_i8mm, MOEI_Q8_OPS_I8MM)
#endif
#endif
#endif

/* ==== >>cpu: what this machine can do ==================================================================================
   Detection is a pure function of the raw words, so that it can be tested with other machines' words. Nothing is cached: cpuid
   is slow in virtual machines, but only moe_layer_init and moe_tiers ask. */

#define MOEI_TIERS_BUILT                                                                                               \
    (MOE_TIER_BIT(MOE_TIER_C) | (uint32_t)MOEI_HAVE_AVX2 << MOE_TIER_AVX2 | (uint32_t)MOEI_HAVE_AVXVNNI << MOE_TIER_AVXVNNI | \
     (uint32_t)MOEI_HAVE_AVX512 << MOE_TIER_AVX512 | (uint32_t)MOEI_HAVE_VNNI << MOE_TIER_VNNI |                       \
     (uint32_t)MOEI_HAVE_AVX512BF16 << MOE_TIER_AVX512BF16 | (uint32_t)MOEI_HAVE_AMX << MOE_TIER_AMX |                 \
     (uint32_t)MOEI_HAVE_NEON << MOE_TIER_NEON | (uint32_t)MOEI_HAVE_DOTPROD << MOE_TIER_DOTPROD |                     \
     (uint32_t)MOEI_HAVE_I8MM << MOE_TIER_I8MM | (uint32_t)MOEI_HAVE_NEONBF16 << MOE_TIER_NEONBF16)

#ifndef MOEI_TIERS_EMULATED /* by a test */
#define MOEI_TIERS_EMULATED 0u
#endif

/* What sets processors of one tier apart, above the tiers' bits. INTEL: conversions take the FMAs' ports, the prefetchers need help. ZEN5: AMD's
   with AVX-VNNI: two FMAs of 512 bits a cycle, for which L2 is slow, so tiles take parts of k; one token's bf16 rows are read fastest if they are
   asked for to L1 (92 % of the read bandwidth, without 84; not Zen 4); PREFETCHNTA brings a line to L1, which leaves it to L2, and L2 to nobody
   (lines of 1 MB, once out of L2, come from memory. Zen 4 reads Q8 at 0.7 to 1.0 times its speed with it; Intel's brings it to L1 alone). VBMI:
   bytes are looked up (all with AVX512BF16 but Cooper Lake). ROOM: L1 has 48 KB (all with AVX-VNNI but Intel's small cores; of those without,
   only some that have AVX-512). */
#define MOEI_ROOM (1u << 28)
#define MOEI_INTEL (1u << 29)
#define MOEI_ZEN5 (1u << 30)
#define MOEI_VBMI (1u << 31)
#define MOEI_TRAITS (MOEI_ROOM | MOEI_INTEL | MOEI_ZEN5 | MOEI_VBMI)

/* x86: words of cpuid leaf 1, leaf 7 and leaf 7.1, XCR0 (what the OS saves), the XSAVE features this process may use. */
typedef struct moei_cpuid {
    uint32_t leaf1_ecx, leaf7_ebx, leaf7_ecx, leaf7_edx, leaf7_1_eax;
    uint64_t xcr0, permitted;
    uint32_t vendor; /* the first four letters */
} moei_cpuid;
MOEI_FORCE int moei_has(uint64_t word, uint64_t bits) { return (word & bits) == bits; }

MOEI_UNUSED static uint32_t moei_cpu_decide(const moei_cpuid *id) {
    uint32_t tiers = MOE_TIER_BIT(MOE_TIER_C);
    const uint32_t osxsave_avx_fma_f16c = 1u << 27 | 1u << 28 | 1u << 12 | 1u << 29, avx2_bmi = 1u << 5 | 1u << 3 | 1u << 8;
    const uint32_t avx512_f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, amx_bf16_tile_int8 = 1u << 22 | 3u << 24;
    const uint64_t ymm = 6, zmm = 0xe6, tile_config_data = 3u << 17, tile_data = 1u << 18;
    if (!moei_has(id->leaf1_ecx, osxsave_avx_fma_f16c) || !moei_has(id->xcr0, ymm) || !moei_has(id->leaf7_ebx, avx2_bmi))
        return tiers;
    const int intel = id->vendor == 0x756e6547u; /* "Genu", "ineI", "ntel" */
    tiers |= MOE_TIER_BIT(MOE_TIER_AVX2) | (intel ? MOEI_INTEL : 0u);
    if (moei_has(id->leaf7_1_eax, 1u << 4)) tiers |= MOE_TIER_BIT(MOE_TIER_AVXVNNI) | MOEI_ROOM;
    if (!moei_has(id->leaf7_ebx, avx512_f_dq_bw_vl) || !moei_has(id->xcr0, zmm)) return tiers;
    tiers |= MOE_TIER_BIT(MOE_TIER_AVX512);
    if (!intel && moei_has(id->leaf7_1_eax, 1u << 4)) tiers |= MOEI_ZEN5;
    if (moei_has(id->leaf7_ecx, 1u << 1)) tiers |= MOEI_VBMI;
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
    id->vendor = r[1];
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
    return (moei_cpu_decide(&id) & (MOEI_TIERS_BUILT | MOEI_TRAITS)) | MOEI_TIERS_EMULATED;
}
MOE_API int moe_enable_amx(void) {
    moei_cpuid id;
    moei_cpuid_get(&id);
    if (!MOEI_HAVE_AMX || !(id.leaf7_edx >> 24 & 1)) return 0;
    moei_permit_amx();
    id.permitted = moei_permitted();
    return (moei_cpu_decide(&id) >> MOE_TIER_AMX & 1) != 0;
}
#else
#if MOEI_HAVE_NEON && defined(__linux__)
#include <sys/auxv.h>
static void moei_hwcap(uint64_t *cap) { cap[0] = getauxval(16), cap[1] = getauxval(26); }
#elif MOEI_HAVE_NEON && defined(__APPLE__) /* written from the documentation: not run yet */
#include <sys/types.h>
#include <sys/sysctl.h>
static uint64_t moei_sysctl(const char *name) {
    int v = 0;
    size_t size = sizeof v;
    return !sysctlbyname(name, &v, &size, NULL, 0) && v;
}
static void moei_hwcap(uint64_t *cap) {
    cap[0] = moei_sysctl("hw.optional.arm.FEAT_DotProd") << 20;
    cap[1] = moei_sysctl("hw.optional.arm.FEAT_I8MM") << 13 | moei_sysctl("hw.optional.arm.FEAT_BF16") << 14;
}
#else
static void moei_hwcap(uint64_t *cap) { (void)cap; }
#endif
/* What the compiler was told to assume is there, whatever the system says of it. */
MOEI_UNUSED static uint32_t moei_cpu(void) {
    uint64_t cap[2] = {0, 0};
    moei_hwcap(cap);
#ifdef __ARM_FEATURE_DOTPROD
    cap[0] |= 1u << 20;
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
    cap[1] |= 1u << 13;
#endif
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
    cap[1] |= 1u << 14;
#endif
    return moei_cpu_decide_arm(cap[0], cap[1]) & MOEI_TIERS_BUILT;
}
MOE_API int moe_enable_amx(void) { return 0; }
#endif

MOE_API uint32_t moe_tiers(void) { return moei_cpu() & ~MOEI_TRAITS; }
MOE_API const char *moe_tier_name(uint32_t tier) {
    static const char *const names[] = {
#define MOE_X(id, name) name,
        MOE_TIERS(MOE_X)
#undef MOE_X
    };
    return tier < MOE_TIER_COUNT ? names[tier] : "?";
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
    for (i = 0; r->bias && i < r->n_ids; i++) r->bias[i] = moei_array_at(&k->select_bias, 0, r->n_ids, i);
    for (i = 0; r->scale && i < r->n_ids; i++) r->scale[i] = moei_array_at(&k->expert_scale, 0, r->n_ids, i);
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

/* The same by what reaches a bound (moei_reach_c). Where many keys do, such as equal ones, the list is as quick. */
static void moei_top_lanes(const moei_vec *v, const uint32_t *key, uint32_t n, uint32_t k, uint64_t *best) {
    uint64_t some[4 * MOEI_LANES];
    uint32_t count = v->reach(best, key, n, k), i, j;
    if (count > 4 * MOEI_LANES) {
        moei_top_few(key, n, k, best);
        return;
    }
    memcpy(some, best, count * sizeof *some);
    for (i = 0; i < count; i++) {
        uint32_t above = 0;
        for (j = 0; j < count; j++) above += some[j] > some[i];
        best[above < k ? above : k] = some[i]; /* k < n: there is room for the others */
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
static void moei_top_k(const moei_router *r, const uint32_t *key, uint32_t n, uint32_t k, uint64_t *best) {
    if (k <= 12 && n >= 4 * MOEI_LANES) moei_top_lanes(r->vec, key, n, k, best);
    else if (k <= 32) moei_top_few(key, n, k, best);
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

/* y = x - a and y = y / a, 8 at a time: so compilers make them vectors at -O2 (Zen 5, 128 experts: a token 430 and 370 ns). */
static void moei_route_less(float *y, const float *x, float a, uint32_t n) {
    uint32_t i, j, whole = n & ~7u;
    float v[8];
    for (i = 0; i < whole; i += 8) {
        for (j = 0; j < 8; j++) v[j] = x[i + j] - a;
        memcpy(y + i, v, sizeof v);
    }
    for (; i < n; i++) y[i] = x[i] - a;
}
static void moei_route_share(float *y, float a, uint32_t n) {
    uint32_t i, j, whole = n & ~7u;
    float v[8];
    for (i = 0; i < whole; i += 8) {
        for (j = 0; j < 8; j++) v[j] = y[i + j] / a;
        memcpy(y + i, v, sizeof v);
    }
    for (; i < n; i++) y[i] = y[i] / a;
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
        moei_route_less(y, x, top, n);
        r->vec->exp(y, y, n);
    }
    sum = moei_route_sum(y, n);
    moei_route_share(y, sum, n);
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

static int moei_limited(const moe_router *p) {
    return (p->group == MOE_GROUP_MAX || p->group == MOE_GROUP_TOP2_SUM) && p->topk_group < p->n_group;
}
/* The keys: in r->q, unless they are the scores or logits themselves. */
static const float *moei_keys(const moei_router *r) {
    const float *from = r->d->router.select_on == MOE_SELECT_LOGIT ? r->l : r->s;
    if (!r->bias && !moei_limited(&r->d->router)) return from;
    for (uint32_t i = 0; i < r->n_ids; i++) r->q[i] = r->bias ? from[i] + r->bias[i] : from[i];
    return r->q;
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
    moei_top_k(r, r->key, k->n_group, k->topk_group, r->best);
    for (g = 0; g < k->topk_group; g++) r->key[moei_top_index(r->best[g])] = 0; /* no key is 0 */
    for (g = 0; g < k->n_group; g++)
        for (i = 0; r->key[g] && i < size; i++) r->q[g * size + i] = mask;
}

/* ---- R6: ids ---- */

static void moei_pick_top(const moei_router *r, const float *q, uint32_t k, int32_t *ids) {
    const moe_router *p = &r->d->router;
    uint32_t g, j, parts = p->group == MOE_GROUP_PER_GROUP ? p->n_group : 1;
    uint32_t size = r->n_ids / parts, each = k / parts;
    if (moei_limited(p)) moei_limit_groups(r);
    r->vec->order(r->key, q, r->n_ids);
    for (g = 0; g < parts; g++) {
        moei_top_k(r, r->key + g * size, size, each, r->best);
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
        moei_top_k(r, r->key, n, 1, r->best);
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

static void moei_gather(const moei_router *r, const float *q, uint32_t k, const int32_t *ids, float *w) {
    uint32_t from = r->d->router.weight_from, j;
    const float *v = from == MOE_WEIGHT_BIASED ? q : from == MOE_WEIGHT_SOFTMAX_SELECTED ? r->l : r->s;
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

/* Magnitudes, because the BIASED quirk can make weights negative. */
MOEI_FORCE float moei_magnitude(float f) { return moei_float(moei_bits(f) & 0x7fffffffu); }

/* Drops weights that are small against the largest, or beyond a share of the sum. Returns how many were not 0. */
static uint32_t moei_drop_small(const moei_router *r, uint32_t k, float *w) {
    const moe_router *p = &r->d->router;
    uint32_t j, saved = 0, keep = p->min_keep ? p->min_keep : 1;
    float sum = 0.0f, before = 0.0f, least, most;
    if (!(p->drop_below > 0.0f) && !(p->top_p > 0.0f)) return 0;
    for (j = 0; j < k; j++) r->key[j] = moei_key(moei_magnitude(w[j]));
    moei_top_k(r, r->key, k, k, r->best);
    for (j = 0; j < k; j++) sum += moei_magnitude(w[moei_top_index(r->best[j])]);
    least = moei_magnitude(w[moei_top_index(r->best[0])]) * p->drop_below, most = sum * p->top_p;
    if (!(p->top_p > 0.0f && p->top_p < 1.0f)) most = moei_inf();
    for (j = 0; j < k; j++) {
        float *v = w + moei_top_index(r->best[j]), old = moei_magnitude(*v);
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
        const float *q = moei_keys(r);
        if (given) memmove(ids, given, k * sizeof *ids);
        else moei_pick_top(r, q, k, ids);
        moei_gather(r, q, k, ids, weights);
    }
    if (!sink) sink = r->s + r->n_ids;
    else memcpy(sink, r->s + r->n_ids, r->n_sink * sizeof *sink);
    if (!r->hold || !p->capacity_norm_after) moei_normalise(r, k, weights, sink);
    return r->hold ? 0 : moei_scale_weights(r, k, ids, weights, sink);
}

/* The best score of the token last routed, for a capacity queue in order of scores. */
MOEI_FORCE float moei_best_score(const moei_router *r) {
    return r->logits_only ? 0.0f : moei_route_max(r->s, r->n_ids);
}

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
    size_t n = (size_t)d->n_experts + d->n_zero_experts, tokens = d->router.capacity_by_score ? n_tokens : 0;
    return tokens < SIZE_MAX / 32 ? tokens * 12 + n * 4 + 64 : SIZE_MAX;
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
    if (e) e->status = status, e->part = "", e->field = field, e->got = got, e->want = want;
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
    if (a->type == MOE_TYPE_NONE && !a->data && !a->expert) return MOE_OK;
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

/* Asking the processor takes longer than a few tokens (20 us in a virtual machine), but compilers' runtime libraries have
   asked. The bits are the same. */
static const moei_vec *moei_select_vec(const moe_desc *d, size_t n_tokens) {
#if MOEI_HAVE_AVX2
    uint32_t avx2 = MOE_TIER_BIT(MOE_TIER_AVX2), allowed = d->tiers ? d->tiers : avx2;
#if defined(__GNUC__) && defined(__linux__)
    if ((allowed & avx2) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &moei_vec_avx2;
#else
    if (n_tokens >= 512 / moei_route_rows(d) + 1 && (allowed & avx2) && (moei_cpu() & avx2)) return &moei_vec_avx2;
#endif
#endif
    (void)d, (void)n_tokens;
    return &moei_vec_c;
}

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
    moei_router_begin(&r, desc, moei_select_vec(desc, n_tokens), desc->top_k, scratch);
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
    {"qwen3_moe\0qwen3moe\0qwen3_vl_moe\0qwen3vlmoe\0qwen3_omni_moe\0qwen3_omni_moe_thinker\0qwen3_omni_moe_talker\0",
     "sum", MOEI_PLAIN},
    {"qwen3_next\0qwen3next\0qwen3_5_moe\0qwen35moe\0qwen3_6_moe\0", "sum shared_sigmoid", MOEI_PLAIN},
    /* softmax over all, not renormalised */
    {"olmoe\0flex_olmo\0jamba\0llada_moe\0llada\0", "", MOEI_PLAIN},
    {"deepseek\0deepseek_moe\0deepseek_v2_lite\0", "max", 0.0f, 0.0f, 0.0f, 1, 1},
    /* The 236B. Lite has the same model_type, topk_method "greedy" (no groups) and scale 1. */
    {"deepseek_v2\0", "max", 0.0f, 16.0f, 0.0f, 8, 3},
    /* GGUF has one name for V2, V3, Kimi-K2 and GLM-4.7-Flash: its keys tell them apart. No expert_gating_func means
       V2; with sigmoid start from deepseek_v3, because the groups' statistic has no key. */
    {"deepseek2\0deepseek2_ocr\0", "max", 0.0f, 0.0f, 0.0f, 1, 1},
    {"deepseek_v3\0deepseek_v32\0deepseek32\0deepseek_r1\0", "sigmoid sum top2", 1e-20f, 2.5f, 0.0f, 8, 4},
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
    {"llama4\0", "sigmoid logit input", MOEI_PLAIN},
    {"gpt_oss\0", "logit selected oai pre", 0.0f, 0.0f, 7.0f, 0, 0},
    {"phimoe\0", "logit sparsemixer", MOEI_PLAIN}, /* weights sum to about 2 */
    {"dbrx\0", "sum", MOEI_PLAIN}, /* an L1 norm of positive numbers */
    /* Grok-1's code has no softcap; some serve it with 30. Grok-2 is known from serving code: its dense MLP goes in
       as a shared expert, (moe + mlp) / sqrt 2. */
    {"grok_1\0grok1\0grok\0", "gelu_tanh", MOEI_PLAIN},
    {"grok_2\0grok2\0git\0", "gelu_tanh softcap30 sqrt_half", MOEI_PLAIN},
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
    {"minimax_m3\0minimax_m3_vl\0", "sigmoid sum oai pre", 0.0f, 2.0f, 7.0f, 0, 0},
    {"ernie4_5_moe\0ernie4_5_vl_moe\0ernie4_5_moe_vl\0", "sum floor1e-12", MOEI_PLAIN}, /* softmax, and yet a selection bias */
    {"hunyuan_v1_moe\0hunyuan_moe\0hunyuan\0", "sum skip_k1", MOEI_PLAIN},
    {"hy_v3\0hy_mt2\0", "sigmoid sum", 1e-20f, 0.0f, 0.0f, 0, 0}, /* scale: config */
    {"dots1\0", "sigmoid sum top2", 1e-20f, 2.5f, 0.0f, 1, 1}, /* scale: M */
    {"longcat_flash\0longcat_flash_ngram\0", "", 0.0f, 6.0f, 0.0f, 0, 0}, /* zero experts are the identity; scale: M */
    {"bailing_moe\0bailingmoe\0", "sum", MOEI_PLAIN}, /* Ling, Ring */
    /* Ling 2; scale: M. Ling 3: late layers clamp POST, by config */
    {"bailing_moe_v2\0bailingmoe2\0bailing_moe_v2_5\0bailing_moe_linear\0bailing_moe_v2_linear\0llada2_moe\0",
     "sigmoid sum top2", 1e-20f, 2.5f, 0.0f, 8, 4},
    {"bailing_hybrid\0bailing_moe_v3\0bailingmoe3\0", "sigmoid sum top2", 1e-20f, 0.0f, 0.0f, 8, 4},
    {"afmoe\0trinity\0", "sigmoid sum top2", 1e-20f, 2.826f, 0.0f, 1, 1}, /* Trinity */
    /* Super, Ultra: 5 */
    {"nemotron_h\0nemotron_h_moe\0", "sigmoid sum top2 relu2 ungated", 1e-20f, 2.5f, 0.0f, 1, 1},
    {"jetmoe\0", "logit selected", MOEI_PLAIN}, /* its FFN: its attention is a mixture too */
    {"gemma4\0", "sum gelu_tanh rms1e-6", MOEI_PLAIN}, /* has input_scale and expert_scale */
    {"step3\0step3_vl\0", "", MOEI_PLAIN},
    {"step3p5\0step35\0step3p7\0", "sigmoid sum", 1e-20f, 3.0f, 0.0f, 0, 0}, /* last layers clamp POST, by config */
    {"mimo_v2_flash\0mimo_v2\0mimo2\0", "sigmoid sum top2", 1e-20f, 0.0f, 0.0f, 1, 1},
    {"exaone_moe\0", "sigmoid sum top2", 1e-20f, 2.5f, 0.0f, 1, 1}, /* some layers clamp PRE, by config */
    {"axk1\0a.x_k1\0", "sigmoid sum top2", 1e-20f, 0.0f, 0.0f, 8, 4}, /* scale: config */
    /* DeepSeek-V3's class; scale: config */
    {"solar_open\0param2\0param2moe\0sarvam\0sarvam_moe\0sarvam_mla\0openpangu\0pangu_ultra_moe\0PanguProMoEV2\0joyai\0joyai_llm_flash\0",
     "sigmoid sum top2", 1e-20f, 0.0f, 0.0f, 1, 1},
    {"lfm2_moe\0lfm2moe\0", "sigmoid sum", 1e-6f, 0.0f, 0.0f, 0, 0},
    /* DeepSeek-V3's shape with softmax: the groups' statistic can't be derived from the score */
    {"mistral4\0mistral_large_3\0mistral3_large\0mistral3\0", "sum top2", 1e-20f, 0.0f, 0.0f, 1, 1},
    {"cohere2_moe\0cohere2moe\0", "sigmoid sum", MOEI_PLAIN}, /* combine_scale 0.5 where the config says "average" */
    {"laguna\0", "sigmoid sum", MOEI_PLAIN}, /* configs may say sqrtsoftplus, a softcap, weights on the input */
    {"klear\0", "sigmoid sum shared_softmax", MOEI_PLAIN},
    {"inkling\0inkling_mm_model\0", "sigmoid sum+shared sink hidden", 0.0f, 8.0f, 0.0f, 0, 0}, /* times global_scale */
    {"interns1_pro\0intern_s1_pro\0", "sum pergroup", 0.0f, 0.0f, 0.0f, 1, 1}, /* number of groups: config */
    /* MoGE: as many groups as experts per token, one expert of each, not renormalised; has expert_scale (router_scale).
       From serving code. Its second version is of DeepSeek-V3's class, and may have the same model_type. */
    {"PanguProMoE\0pangu_pro_moe\0PanGuMoE\0", "pergroup", 0.0f, 0.0f, 0.0f, 8, 1},
    {"smallthinker\0", "sum relu", MOEI_PLAIN}, /* gated ReLU; configs may say sigmoid */
    {"aria\0aria_moe_lm\0mellum\0rnd1\0", "sum", MOEI_PLAIN},
    {"nomic_bert_moe\0nomic_bert\0", "gelu_erf ungated", MOEI_PLAIN}, /* which GELU: M */
    {"grovemoe\0grove_moe\0soft_moe\0expert_choice\0", NULL, MOEI_PLAIN}};

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

/* The language model inside a multimodal one is named NAME_text. */
static int moei_family_name(const char *name, const char *model_type) {
    char text[64];
    size_t n = strlen(name);
    if (moei_same_name(name, model_type)) return 1;
    if (n > sizeof text - 6) return 0;
    memcpy(text, name, n), memcpy(text + n, "_text", 6);
    return moei_same_name(text, model_type);
}

MOE_API moe_status moe_preset(moe_desc *desc, const char *model_type) {
    if (!desc || !model_type) return MOE_ERR_NULL;
    for (size_t i = 0; i < MOEI_COUNT(moei_families); i++)
        for (const char *name = moei_families[i].names; *name; name += strlen(name) + 1)
            if (moei_family_name(name, model_type)) return moei_apply_family(desc, &moei_families[i]);
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
    while (i < MOE_COMPUTE_COUNT && !moei_same_name(moei_compute_names[i], name)) i++;
    return i;
}

/* ---- counts: every matrix and vector of the desc, of the whole layer even if this process holds a part ---- */

/* Bytes of one expert's grid; its default shape as moei_side_of has it. */
static uint64_t moei_count_grid(const moe_grid *g, uint64_t rows, uint64_t k, const uint32_t *like) {
    uint64_t r = g->rows ? g->rows : like[0], c = g->cols ? g->cols : like[1];
    if (!g->type) return 0;
    r = r ? (rows + r - 1) / r : rows, c = c ? (k + c - 1) / c : 1;
    if (g->type == MOE_TYPE_U4X8) r = (r + 7) / 8; /* a word for eight rows */
    return r * c * moei_type_bytes[g->type];
}
static void moei_count_vector(moe_counts *c, const moe_array *a, uint64_t n, uint64_t used, uint64_t length) {
    if (!a->type) return;
    uint64_t bytes = length * moei_type_bytes[a->type];
    c->params_total += n * length, c->params_active += used * length;
    c->bytes_total += n * bytes, c->bytes_active += used * bytes;
}
/* n matrices of which a token uses some */
static void moei_count_matrix(moe_counts *c, const moe_matrix *m, uint64_t n, uint64_t used, uint64_t rows,
                              uint64_t k) {
    if (!m->format) return;
    uint32_t like[2];
    like[0] = moei_layouts[m->format].rows, like[1] = moei_layouts[m->format].cols;
    uint64_t bytes = rows * moe_row_bytes(m->format, (size_t)k) + moei_type_bytes[m->scale2.type];
    bytes += moei_count_grid(&m->scale, rows, k, like);
    if (m->scale.rows) like[0] = m->scale.rows;
    if (m->scale.cols) like[1] = m->scale.cols;
    bytes += moei_count_grid(&m->zero, rows, k, like);
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

/* ==== >>choose: kernels for a layer ====================================================================================
   One line per tier, worst first. A compute runs on the best allowed tier that provides it; so VNNI, say, keeps AVX-512's F32. */

typedef struct moei_tier_row {
    uint32_t tier, traits; /* which the processor must have, all of them */
    const moei_vec *vec;
    const moei_arith *arith[MOE_COMPUTE_COUNT]; /* by moe_compute: default (unused), F32, BF16, Q8 */
} moei_tier_row;

// clang-format off
static const moei_tier_row moei_tier_rows[] = {
    {MOE_TIER_C,          0,                     &moei_vec_c,      {NULL, &moei_f32_c,            NULL,                        &moei_q8_c}},
#if MOEI_HAVE_AVX2
    {MOE_TIER_AVX2,       0,                     &moei_vec_avx2,   {NULL, &moei_f32_avx2,         NULL,                        NULL}},
    {MOE_TIER_AVX2,       MOEI_INTEL,            NULL,             {NULL, &moei_f32_avx2_intel,   NULL,                        NULL}},
    {MOE_TIER_AVX2,       MOEI_ROOM,             NULL,             {NULL, &moei_f32_avx2_room,    NULL,                        NULL}},
    {MOE_TIER_AVX2,       MOEI_ROOM | MOEI_INTEL, NULL,            {NULL, &moei_f32_avx2_room_intel, NULL,                  NULL}},
#endif
#if MOEI_HAVE_AVX2 && MOEI_HAVE_Q8
    {MOE_TIER_AVX2,       0,                     NULL,             {NULL, NULL,                   NULL,                        &moei_q8_avx2}},
    {MOE_TIER_AVX2,       MOEI_INTEL,            NULL,             {NULL, NULL,                   NULL,                        &moei_q8_avx2_intel}},
#endif
#if MOEI_HAVE_AVXVNNI
    {MOE_TIER_AVXVNNI,    0,                     NULL,             {NULL, NULL,                   NULL,                        &moei_q8_avxvnni}},
    {MOE_TIER_AVXVNNI,    MOEI_INTEL,            NULL,             {NULL, NULL,                   NULL,                      &moei_q8_avxvnni_intel}},
#endif
#if MOEI_HAVE_AVX512
    {MOE_TIER_AVX512,     0,                     &moei_vec_avx512, {NULL, &moei_f32_avx512,       NULL,                        NULL}},
    {MOE_TIER_AVX512,     MOEI_ZEN5,             NULL,             {NULL, &moei_f32_avx512_zen5,  NULL,                        NULL}},
    {MOE_TIER_AVX512,     MOEI_INTEL,            NULL,             {NULL, &moei_f32_avx512_intel, NULL,                        NULL}},
#endif
#if MOEI_HAVE_VNNI
    {MOE_TIER_VNNI,       0,                     NULL,             {NULL, NULL,                   NULL,                        &moei_q8_vnni}},
    {MOE_TIER_VNNI,       MOEI_ZEN5,             NULL,             {NULL, NULL,                   NULL,                        &moei_q8_vnni_zen5}},
    {MOE_TIER_VNNI,       MOEI_INTEL,            NULL,             {NULL, NULL,                   NULL,                        &moei_q8_vnni_intel}},
#endif
#if MOEI_HAVE_AVX512BF16
    {MOE_TIER_AVX512BF16, 0,                     NULL,             {NULL, NULL,                   &moei_bf16_avx512bf16,       NULL}},
    {MOE_TIER_AVX512BF16, MOEI_INTEL,            NULL,             {NULL, NULL,                   &moei_bf16_avx512bf16_intel, NULL}},
    {MOE_TIER_AVX512BF16, MOEI_VBMI,             NULL,             {NULL, NULL,                   &moei_bf16_vbmi,             NULL}},
    {MOE_TIER_AVX512BF16, MOEI_VBMI | MOEI_ZEN5, NULL,             {NULL, NULL,                   &moei_bf16_vbmi_zen5,        NULL}},
    {MOE_TIER_AVX512BF16, MOEI_VBMI | MOEI_INTEL, NULL,            {NULL, NULL,                   &moei_bf16_vbmi_intel,       NULL}},
#endif
#if MOEI_HAVE_AMX
    {MOE_TIER_AMX,        0,                     NULL,             {NULL, NULL,                   &moei_bf16_amx,              NULL}},
    {MOE_TIER_AMX,        MOEI_VBMI,             NULL,             {NULL, NULL,                   &moei_bf16_amx_vbmi,         NULL}},
#endif
#if MOEI_HAVE_NEON
    {MOE_TIER_NEON,       0,                     &moei_vec_neon,   {NULL, &moei_f32_neon,         NULL,                        NULL}},
#endif
#if MOEI_HAVE_NEON && MOEI_HAVE_Q8
    {MOE_TIER_NEON,       0,                     NULL,             {NULL, NULL,                   NULL,                        &moei_q8_neon}},
#endif
#if MOEI_HAVE_DOTPROD
    {MOE_TIER_DOTPROD,    0,                     NULL,             {NULL, NULL,                   NULL,                        &moei_q8_dotprod}},
#endif
#if MOEI_HAVE_I8MM
    {MOE_TIER_I8MM,       0,                     NULL,             {NULL, NULL,                   NULL,                        &moei_q8_i8mm}},
#endif
#if MOEI_HAVE_NEONBF16
    {MOE_TIER_NEONBF16,   0,                     NULL,             {NULL, NULL,                   &moei_bf16_neonbf16,         NULL}},
#endif
};
// clang-format on

static int moei_allows(uint32_t tiers, const moei_tier_row *r) { return tiers >> r->tier & 1 && (tiers & r->traits) == r->traits; }

static const moei_arith *moei_choose_arith(uint32_t tiers, uint32_t compute) {
    for (size_t i = MOEI_COUNT(moei_tier_rows); i-- > 0;)
        if (moei_allows(tiers, &moei_tier_rows[i]) && moei_tier_rows[i].arith[compute]) return moei_tier_rows[i].arith[compute];
    return NULL;
}

static const moei_vec *moei_choose_vec(uint32_t tiers) {
    for (size_t i = MOEI_COUNT(moei_tier_rows); i-- > 0;)
        if (moei_allows(tiers, &moei_tier_rows[i]) && moei_tier_rows[i].vec) return moei_tier_rows[i].vec;
    return &moei_vec_c;
}

/* Q8 needs an integer format (one whose dot product exists) and whole blocks of 32; F32 and BF16 take everything. */
static int moei_can(const moei_arith *a, const moe_matrix *m, size_t k) {
    if (!a) return 0;
    if (a->compute != MOE_COMPUTE_Q8) return 1;
    return k % 32 == 0 && !m->k_stride && a->ops[m->format].dot != NULL;
}

static uint32_t moei_default_compute(uint32_t tiers, const moe_matrix *m, size_t k) {
    switch (m->format) {
    case MOE_FORMAT_F32:
    case MOE_FORMAT_F16: return MOE_COMPUTE_F32;
    case MOE_FORMAT_BF16:
    case MOE_FORMAT_MXFP8:
    case MOE_FORMAT_FP8_BLOCK:
    case MOE_FORMAT_FP8_CHANNEL: return moei_choose_arith(tiers, MOE_COMPUTE_BF16) ? MOE_COMPUTE_BF16 : MOE_COMPUTE_F32;
    default: return moei_can(moei_choose_arith(tiers, MOE_COMPUTE_Q8), m, k) ? MOE_COMPUTE_Q8 : MOE_COMPUTE_F32;
    }
}

/* The arithmetic of one or two matrices that read the same input; NULL if the asked-for compute does not exist. Where `strict`
   is 0 (shared experts, latent projections) a compute that does not fit falls back to the default of the format. */
static const moei_arith *moei_resolve(uint32_t tiers, uint32_t compute, const moe_matrix *m, const moe_matrix *m2, size_t k,
                                      int strict) {
    const moei_arith *a = moei_choose_arith(tiers, compute);
    int fits = compute && moei_can(a, m, k) && (!m2 || moei_can(a, m2, k));
    if (fits) return a;
    if (compute && strict) return NULL;
    a = moei_choose_arith(tiers, moei_default_compute(tiers, m, k));
    if (m2 && (moei_default_compute(tiers, m2, k) != a->compute || !moei_can(a, m2, k))) return moei_choose_arith(tiers, MOE_COMPUTE_F32);
    return a;
}

/* ==== >>validate: a desc becomes a layer ===============================================================================
   Everything that could make a later step read out of bounds, overflow or divide by zero is refused here, with the field's name. */

#define MOEI_TRY(call)                                                                                                   \
    do {                                                                                                                 \
        moe_status try_ = (call);                                                                                        \
        if (try_) return try_;                                                                                           \
    } while (0)

/* a * b and a + b into *out; 0 if they overflow. Sizes stay below half the address space, so that sums of two are safe. */
static int moei_mul(size_t a, size_t b, size_t *out) {
    if (b && a > SIZE_MAX / 2 / b) return 0;
    *out = a * b;
    return 1;
}
static int moei_add(size_t a, size_t b, size_t *out) {
    if (a > SIZE_MAX / 2 || b > SIZE_MAX / 2 - a) return 0;
    *out = a + b;
    return 1;
}

static moe_status moei_check_array(const moe_array *a, size_t n_experts, size_t n, const char *field, moe_error *e) {
    size_t bytes, all;
    int given = a->data || a->expert;
    if (!a->type && !given) return MOE_OK;
    if (!a->type || a->type > MOE_TYPE_BF16) return moei_fail(e, MOE_ERR_TYPE, field, a->type, MOE_TYPE_F32);
    if (!given) return moei_fail(e, MOE_ERR_NULL, field, 0, 0);
    size_t stride = a->stride ? a->stride : a->type == MOE_TYPE_F32 ? 4 : 2;
    if (!moei_mul(n, stride, &bytes) || !moei_mul(a->expert_stride ? a->expert_stride : bytes, n_experts, &all) ||
        !moei_add(all, a->offset, &all))
        return moei_fail(e, MOE_ERR_OVERFLOW, field, 0, 0);
    return MOE_OK;
}

/* Checks a matrix and fills in its strides. */
static moe_status moei_fix_strides(moe_matrix *m, size_t n_experts, size_t rows, size_t k, moe_error *e) {
    size_t extent, all;
    MOEI_TRY(moei_check_matrix(m, n_experts, rows, k, e));
    MOEI_TRY(moei_check_array(&m->scale2, n_experts, 1, "scale2", e));
    MOEI_TRY(moei_check_array(&m->bias, n_experts, rows, "bias", e));
    if (!m->row_stride) m->row_stride = m->k_stride ? moei_layouts[m->format].bytes : moe_row_bytes(m->format, k);
    if (!moei_mul(m->k_stride ? k : rows, m->k_stride ? m->k_stride : m->row_stride, &extent))
        return moei_fail(e, MOE_ERR_OVERFLOW, "row_stride", m->row_stride, 0);
    if (!m->expert_stride) m->expert_stride = extent;
    if (!moei_mul(n_experts, m->expert_stride, &all) || !moei_add(all, m->offset, &all))
        return moei_fail(e, MOE_ERR_OVERFLOW, "expert_stride", m->expert_stride, 0);
    return MOE_OK;
}
static moe_status moei_fix_matrix(moe_matrix *m, size_t n_experts, size_t rows, size_t k, const char *part, moe_error *e) {
    moe_status status = moei_fix_strides(m, n_experts, rows, k, e);
    if (e) e->part = status ? part : "";
    return status;
}

static const moei_knob_range moei_layer_knobs[] = {
    MOEI_KNOB(zero_kind, MOE_ZERO_COUNT),        MOEI_KNOB(ffn.activation, MOE_ACT_COUNT), MOEI_KNOB(ffn.ungated, 2),
    MOEI_KNOB(ffn.clamp, MOE_CLAMP_COUNT),       MOEI_KNOB(shared.clamp, MOE_CLAMP_COUNT), MOEI_KNOB(compute, MOE_COMPUTE_COUNT),
    MOEI_KNOB(ffn.weight_at, MOE_WEIGHT_AT_COUNT)};
static const moei_knob_range moei_layer_floats[] = {
    MOEI_KNOB(router.input_norm_eps, 2), MOEI_KNOB(latent.norm_eps, 2), MOEI_KNOB(ffn.alpha, 0),
    MOEI_KNOB(ffn.beta, 0),              MOEI_KNOB(ffn.linear_beta, 0), MOEI_KNOB(ffn.expert_out_scale, 0),
    MOEI_KNOB(ffn.combine_scale, 0),     MOEI_KNOB(ffn.limit, 2),       MOEI_KNOB(shared.limit, 2)};

/* The most of any dimension: 2^24 experts or 2^28 features (2^24 where a size has 32 bits, so that a panel of 32 rows has a size);
   tables and slots then fit in 32 bits. */
#define MOEI_MAX_EXPERTS (1u << 24)
#define MOEI_MAX_WIDTH (SIZE_MAX > UINT32_MAX ? 1u << 28 : 1u << 24)

static moe_status moei_check_sizes(const moe_desc *d, moe_error *e) {
    if (d->d_model == 0 || d->d_model > MOEI_MAX_WIDTH) return moei_fail(e, MOE_ERR_SIZE, "d_model", d->d_model, MOEI_MAX_WIDTH);
    if (d->d_ff == 0 || d->d_ff > MOEI_MAX_WIDTH) return moei_fail(e, MOE_ERR_SIZE, "d_ff", d->d_ff, MOEI_MAX_WIDTH);
    if (d->n_experts == 0 || d->n_experts > MOEI_MAX_EXPERTS) return moei_fail(e, MOE_ERR_SIZE, "n_experts", d->n_experts, MOEI_MAX_EXPERTS);
    if (d->n_zero_experts > MOEI_MAX_EXPERTS) return moei_fail(e, MOE_ERR_SIZE, "n_zero_experts", d->n_zero_experts, MOEI_MAX_EXPERTS);
    if (d->top_k == 0 || d->top_k > d->n_experts + d->n_zero_experts)
        return moei_fail(e, MOE_ERR_SIZE, "top_k", d->top_k, d->n_experts + d->n_zero_experts);
    if (d->expert_count > d->n_experts || d->expert_first > d->n_experts - d->expert_count || (d->expert_first && !d->expert_count))
        return moei_fail(e, MOE_ERR_SIZE, "expert_count", d->expert_count, d->n_experts);
    if (d->shared.count > MOEI_MAX_EXPERTS) return moei_fail(e, MOE_ERR_SIZE, "shared.count", d->shared.count, MOEI_MAX_EXPERTS);
    if (d->shared.d_ff > MOEI_MAX_WIDTH) return moei_fail(e, MOE_ERR_SIZE, "shared.d_ff", d->shared.d_ff, MOEI_MAX_WIDTH);
    if (d->latent.d > MOEI_MAX_WIDTH) return moei_fail(e, MOE_ERR_SIZE, "latent.d", d->latent.d, MOEI_MAX_WIDTH);
    return MOE_OK;
}

static float moei_or(float v, float fallback) { return v == 0.0f ? fallback : v; }

/* Every 0 that stands for something else. */
static void moei_fill_defaults(moe_desc *d) {
    if (!d->expert_count) d->expert_count = d->n_experts;
    if (d->shared.d_ff && !d->shared.count) d->shared.count = 1;
    if (!d->shared.d_ff) d->shared.count = 0;
    d->router.routed_scale = moei_or(d->router.routed_scale, 1.0f);
    d->router.jitter = moei_or(d->router.jitter, 0.01f);
    if (!d->router.table_bytes) d->router.table_bytes = 4;
    if (!d->router.table_stride) d->router.table_stride = (size_t)d->router.table_bytes * d->top_k;
    if (!d->router.min_keep) d->router.min_keep = 1;
    d->ffn.alpha = moei_or(d->ffn.alpha, 1.702f);
    d->ffn.beta = moei_or(d->ffn.beta, 4.0f);
    d->ffn.linear_beta = moei_or(d->ffn.linear_beta, 25.0f);
    d->ffn.expert_out_scale = moei_or(d->ffn.expert_out_scale, 1.0f);
    d->ffn.combine_scale = moei_or(d->ffn.combine_scale, 1.0f);
}

static moe_status moei_fix_bank(moei_bank *b, int ungated, uint32_t tiers, uint32_t compute, int strict, const char *const names[3],
                                moe_error *e) {
    if (ungated) memset(&b->gate, 0, sizeof b->gate);
    else MOEI_TRY(moei_fix_matrix(&b->gate, b->n_experts, b->d_ff, b->d_in, names[MOE_GATE], e));
    MOEI_TRY(moei_fix_matrix(&b->up, b->n_experts, b->d_ff, b->d_in, names[MOE_UP], e));
    MOEI_TRY(moei_fix_matrix(&b->down, b->n_experts, b->d_in, b->d_ff, names[MOE_DOWN], e));
    b->in = moei_resolve(tiers, compute, &b->up, ungated ? NULL : &b->gate, b->d_in, strict);
    b->mid = moei_resolve(tiers, compute, &b->down, NULL, b->d_ff, strict);
    if (!b->in || !b->mid) return moei_fail(e, MOE_ERR_COMPUTE, "compute", compute, 0);
    return MOE_OK;
}

static void moei_make_banks(moe_layer *l) {
    const moe_desc *d = &l->desc;
    l->routed.gate = d->gate;
    l->routed.up = d->up;
    l->routed.down = d->down;
    l->routed.n_experts = d->expert_count;
    l->routed.d_in = d->latent.d ? d->latent.d : d->d_model;
    l->routed.d_ff = d->d_ff;
    l->routed.clamp = d->ffn.clamp;
    l->routed.limit = d->ffn.limit;
    l->shared.gate = d->shared.gate;
    l->shared.up = d->shared.up;
    l->shared.down = d->shared.down;
    l->shared.n_experts = d->shared.count;
    l->shared.d_in = d->d_model;
    l->shared.d_ff = d->shared.d_ff;
    l->shared.clamp = d->shared.clamp;
    l->shared.limit = d->shared.limit;
}

static int moei_is_given(const moe_matrix *m) { return m->format || m->data || m->expert; }

/* What is given but that a knob says is not there would be left out of the result silently. */
static moe_status moei_check_unused(const moe_desc *d, moe_error *e) {
    const moe_router *r = &d->router;
    int shared = d->shared.d_ff != 0, latent = d->latent.d != 0, gated = !d->ffn.ungated;
    int gate = d->shared.gate_kind == MOE_SHARED_SIGMOID || d->shared.gate_kind == MOE_SHARED_SOFTMAX2;
    int shared_weight = moei_is_given(&d->shared.gate_weight), norm = d->latent.norm.type != 0;
    const struct { int given, used; const char *knob; } all[] = {
        {moei_is_given(&d->gate), gated, "ffn.ungated"},
        {moei_is_given(&d->shared.gate), shared, "shared.d_ff"},
        {moei_is_given(&d->shared.gate), gated, "ffn.ungated"},
        {moei_is_given(&d->shared.up), shared, "shared.d_ff"},
        {moei_is_given(&d->shared.down), shared, "shared.d_ff"},
        {shared_weight, shared, "shared.d_ff"},
        {shared_weight, gate, "shared.gate_kind"},
        {moei_is_given(&d->latent.in), latent, "latent.d"},
        {moei_is_given(&d->latent.out), latent, "latent.d"},
        {norm, latent, "latent.d"},
        {norm, d->latent.norm_eps > 0.0f, "latent.norm_eps"},
        {d->ffn.limit > 0.0f, d->ffn.clamp != MOE_CLAMP_NONE, "ffn.clamp"},
        {d->shared.limit > 0.0f, d->shared.clamp != MOE_CLAMP_NONE, "shared.clamp"},
        {r->n_group > 1 || r->topk_group > 1, r->group != MOE_GROUP_NONE, "router.group"}, /* one group is none */
        {r->table != NULL, r->pick == MOE_PICK_TABLE, "router.pick"},
        {r->capacity_factor > 0.0f, !r->capacity, "router.capacity"},
        {r->min_keep > 1, r->drop_below > 0.0f || r->top_p > 0.0f, "router.min_keep"}};
    for (size_t i = 0; i < MOEI_COUNT(all); i++)
        if (all[i].given && !all[i].used) return moei_fail(e, MOE_ERR_KNOB, all[i].knob, 0, 0);
    if (r->min_keep > d->top_k) return moei_fail(e, MOE_ERR_KNOB, "router.min_keep", r->min_keep, d->top_k);
    return MOE_OK;
}

static moe_status moei_check_optional_parts(moe_layer *l, uint32_t tiers, moe_error *e) {
    moe_desc *d = &l->desc;
    int ungated = (int)d->ffn.ungated;
    if (l->shared.n_experts) {
        static const char *const names[3] = {"shared.gate", "shared.up", "shared.down"};
        MOEI_TRY(moei_fix_bank(&l->shared, ungated, tiers, d->compute, 0, names, e));
        uint32_t rows = d->shared.gate_kind == MOE_SHARED_SIGMOID ? 1 : d->shared.gate_kind == MOE_SHARED_SOFTMAX2 ? 2 : 0;
        if (rows) MOEI_TRY(moei_fix_matrix(&d->shared.gate_weight, 1, rows, d->d_model, "shared.gate_weight", e));
    }
    if (d->latent.d) {
        MOEI_TRY(moei_fix_matrix(&d->latent.in, 1, d->latent.d, d->d_model, "latent.in", e));
        MOEI_TRY(moei_fix_matrix(&d->latent.out, 1, d->d_model, d->latent.d, "latent.out", e));
        MOEI_TRY(moei_check_array(&d->latent.norm, 1, d->latent.d, "latent.norm", e));
        l->latent_in = moei_resolve(tiers, d->compute, &d->latent.in, NULL, d->d_model, 0);
        l->latent_out = moei_resolve(tiers, d->compute, &d->latent.out, NULL, d->latent.d, 0);
    }
    if (moei_is_given(&d->router.weight))
        MOEI_TRY(moei_fix_matrix(&d->router.weight, 1, l->router_rows, d->d_model, "router.weight", e));
    return moei_check_array(&d->ffn.out_bias, 1, d->d_model, "ffn.out_bias", e);
}

static uint32_t moei_highest_tier(const moe_layer *l) {
    const moei_arith *const used[] = {l->router,    l->routed.in,  l->routed.mid, l->shared.in,
                                      l->shared.mid, l->latent_in, l->latent_out};
    uint32_t tier = MOE_TIER_C;
    for (size_t i = 0; i < MOEI_COUNT(used); i++)
        if (used[i] && used[i]->tier > tier) tier = used[i]->tier;
    return tier;
}

static moe_status moei_init(moe_layer *l, moe_error *e) {
    moe_desc *d = &l->desc;
    MOEI_TRY(moei_check_sizes(d, e));
    MOEI_TRY(moei_check_router(d, e));
    MOEI_TRY(moei_check_knobs(d, moei_layer_knobs, MOEI_COUNT(moei_layer_knobs), e));
    MOEI_TRY(moei_check_floats(d, moei_layer_floats, MOEI_COUNT(moei_layer_floats), e));
    MOEI_TRY(moei_check_array(&d->router.input_scale, 1, d->d_model, "router.input_scale", e));
    MOEI_TRY(moei_check_array(&d->router.select_bias, 1, (size_t)d->n_experts + d->n_zero_experts, "router.select_bias", e));
    MOEI_TRY(moei_check_array(&d->router.expert_scale, 1, (size_t)d->n_experts + d->n_zero_experts, "router.expert_scale", e));
    if (d->shared.gate_kind == MOE_SHARED_ROUTER_SINK && !d->shared.d_ff) return moei_fail(e, MOE_ERR_SIZE, "shared.d_ff", 0, 1);
    uint32_t have = moe_tiers(), tiers = d->tiers ? (d->tiers & have) : have;
    if (!tiers) return moei_fail(e, MOE_ERR_TIER, "tiers", d->tiers, have);
    tiers |= MOE_TIER_BIT(MOE_TIER_C) | (moei_cpu() & MOEI_TRAITS);
    moei_fill_defaults(d);
    moei_make_banks(l);
    l->vec = moei_choose_vec(tiers);
    l->router = moei_choose_arith(tiers, MOE_COMPUTE_F32);
    l->n_ids = d->n_experts + d->n_zero_experts;
    l->router_rows = l->n_ids + (d->shared.gate_kind == MOE_SHARED_ROUTER_SINK ? d->shared.count : 0);
    static const char *const names[3] = {"gate", "up", "down"};
    MOEI_TRY(moei_fix_bank(&l->routed, (int)d->ffn.ungated, tiers, d->compute, 1, names, e));
    MOEI_TRY(moei_check_optional_parts(l, tiers, e));
    MOEI_TRY(moei_check_unused(&l->desc, e));
    l->tier = moei_highest_tier(l);
    return MOE_OK;
}

MOE_API moe_status moe_layer_init(moe_layer *layer, const moe_desc *desc, moe_error *error) {
    moei_fail(error, MOE_OK, "", 0, 0);
    if (!layer || !desc) return moei_fail(error, MOE_ERR_NULL, layer ? "desc" : "layer", 0, 0);
    if (desc->begin_ != MOE_CANARY || desc->end_ != MOE_CANARY) return moei_fail(error, MOE_ERR_DESC, "desc", desc->begin_, MOE_CANARY);
    moe_layer l;
    memset(&l, 0, sizeof l);
    l.desc = *desc;
    MOEI_TRY(moei_init(&l, error));
    *layer = l;
    return MOE_OK;
}

/* ==== >>layout: the workspace ==========================================================================================
   One function lays the workspace out, for the size query and for every phase, so they cannot drift apart. Tokens are processed
   in blocks as large as the workspace allows: routing (and capacity) of all tokens first, then block by block. */

enum {                 /* what a phase does */
    MOEI_PREPARE_ROUTER, /* token rows to the form that the router reads (and, in a single block, what PREPARE does) */
    MOEI_PREPARE,      /* token rows to the forms that experts and shared experts read; shared gates */
    MOEI_LOGITS,       /* router matrix times tokens */
    MOEI_PREPARE_LOGITS, /* both at once */
    MOEI_SELECT,       /* logits to ids and weights */
    MOEI_SETTLE,       /* serial: check ids, capacity, statistics; nothing was written before */
    MOEI_SORT,         /* serial: slots by expert, the list of work */
    MOEI_LATENT_IN,    /* x to the experts' narrower space */
    MOEI_LATENT_PREPARE,
    MOEI_UP,           /* gate, up, activation: h */
    MOEI_DOWN,         /* down and the weighted sum: y */
    MOEI_LATENT_NORM,  /* norm and preparation of the narrow sum */
    MOEI_FINISH        /* latent out and shared experts: y */
};

#define MOEI_PARTS ((size_t)256)         /* slots of one expert that a tile takes at a time */
#define MOEI_PACKED_BYTES ((size_t)2 << 20) /* of packed tokens at a time, or 64 of them */
#define MOEI_ROUTE_BYTES ((size_t)384 << 10) /* the same for the router, whose tokens come from L2 again for every few rows */
#define MOEI_MANY 8u         /* tokens of a task that are split among tasks by themselves, not by rows */
#define MOEI_UP_ROWS 32u     /* rows of gate and up that one piece of work covers: h is prepared in blocks of 32 */
/* Output rows that a task sums at a time: the h of all experts is read once for them, so there are many (Zen 5, layer, Q8_0, against 65536
   floats of sums, which stay in L2: Mixtral 512 tokens 51 and 58 % of the peak, 2048 tokens 51 and 58, Qwen3-30B 512 tokens 51 and 51, 4096
   tokens 49 and 59; Mixtral 512 tokens F32 76 and 80). */
#define MOEI_SLICE ((size_t)512)

/* Slots of one bank of experts in the current block, sorted by expert. */
typedef struct moei_group {
    const moei_bank *bank;
    uint32_t *start;            /* [n_experts + 1] into the slots */
    uint32_t *token;            /* [slots] token within the block */
    uint32_t *source;           /* [slots] token * k + rank, for slots_out; NULL for shared experts */
    float *weight;              /* [slots] */
    uint8_t *x, *h;             /* prepared rows: [tokens], [slots] */
    size_t x_stride, h_stride;
} moei_group;

typedef struct moei_work { uint32_t group, expert, blocks; uint64_t cost, begin; } moei_work; /* begin: sum of costs before */

typedef struct moei_plan {
    const moe_layer *layer;
    moe_io call;                           /* the caller's, with every default filled in */
    const moe_io *io;                      /* &call */
    const float *sums;                     /* moe_finish: partial sums, or NULL */
    size_t n_tokens, block, n_blocks;      /* tokens of the call and of a block */
    uint32_t k, n_tasks;                   /* slots per token */
    int route_only, prepare_once;          /* prepare_once: PREPARE_ROUTER does PREPARE's work too */
    uint32_t route_phases[3], n_route, block_phases[8], n_block;
    /* the workspace */
    uint8_t *base;
    size_t used;
    uint32_t *state;                       /* [4] status, work items, identity slots */
    int32_t *ids;                          /* [n_tokens][k] -1 or below: no work */
    float *weights;                        /* [n_tokens][k] */
    float *passed;                         /* [n_tokens][k] weights of slots that pass x through */
    float *best;                           /* [n_tokens] largest score, for capacity by score */
    float *gates;                          /* [n_tokens][gates_per_token] weights of routed sum and shared experts */
    void *queue;                           /* capacity's scratch */
    float *logits;                         /* [block][router_rows] */
    uint8_t *router_x;                     /* prepared rows */
    size_t router_x_stride, gates_per_token;
    moei_group groups[2];                  /* routed, shared */
    moei_bank none;                        /* the bank of a group that this call leaves out */
    float *latent_x, *latent_sum;          /* [block][latent.d] */
    uint8_t *latent_row;                   /* prepared rows: of x for latent.in, later of the sum for latent.out */
    size_t latent_row_stride;
    moei_work *work;
    uint8_t *scratch;                      /* [n_tasks] */
    size_t scratch_bytes;
    float *sum, *out;                      /* [tasks][block][moei_slice()], [tasks][at most MOEI_PARTS][moei_slice()] */
} moei_plan;

/* Rows of prepared values lie an odd number of cache lines apart: powers of two would share a few cache sets. */
static size_t moei_prepared_stride(const moei_arith *a, size_t k) {
    size_t lines = (a->row_bytes(k) + 63) / 64;
    return (lines | 1) * 64;
}

/* Takes count * bytes from the workspace, 64-byte aligned; sets used to SIZE_MAX on overflow. */
static void *moei_take(moei_plan *p, size_t count, size_t bytes) {
    size_t n, end;
    if (p->used == SIZE_MAX) return NULL;
    if (!moei_mul(count, bytes, &n) || !moei_add(n, 63, &n) || !moei_add(p->used, n & ~(size_t)63, &end)) {
        p->used = SIZE_MAX;
        return NULL;
    }
    uint8_t *at = p->base ? p->base + p->used : NULL;
    p->used = end;
    return at;
}

/* The most tokens that a matrix takes at a time: where they are packed, whole groups that stay near a core. */
static size_t moei_most(const moei_arith *a, size_t k) {
    if (!a->packing) return MOEI_PARTS;
    return moei_min(MOEI_PARTS, moei_max(MOEI_PACKED_BYTES / a->row_bytes(k), 64)) / a->packing->group * a->packing->group;
}
/* As many of `left` tokens, at most `most`; what remains must not be too few to be packed. */
static uint32_t moei_chunk(const moei_arith *a, size_t most, size_t left) {
    const moei_packing *p = a->packing;
    if (left <= most) return (uint32_t)left;
    if (p) most = most / p->group * p->group;
    while (p && left - most < p->min) most -= p->group;
    return (uint32_t)most;
}

/* The rows of a slice where nth tasks share d rows: a task's own, or MOEI_SLICE of them. */
static size_t moei_slice(size_t d, size_t nth) { return moei_min(((d + 15) / 16 + nth - 1) / nth * 16, MOEI_SLICE); }
static size_t moei_widest_out(const moei_plan *p) { return moei_max(p->layer->desc.d_model, p->layer->desc.latent.d); }
/* The most slots of an expert that are taken at a time. */
static size_t moei_slots_at_once(const moei_plan *p) { return moei_min(MOEI_PARTS, p->block * p->k); }
/* Room for the slices of up to n_tasks tasks: more tasks never need less. */
static void moei_lay_slices(moei_plan *p) {
    size_t floats, ends;
    if (!moei_mul(p->n_tasks, MOEI_SLICE, &floats) || !moei_add(moei_widest_out(p), (size_t)p->n_tasks * 16, &ends) ||
        !moei_mul(moei_min(floats, ends), sizeof(float), &floats)) floats = SIZE_MAX;
    p->sum = (float *)moei_take(p, p->block, floats);
    p->out = (float *)moei_take(p, moei_slots_at_once(p), floats);
}

static size_t moei_panel_scratch(const moei_arith *a, size_t k) {
    return a && a->panel ? a->panel_bytes(MOEI_UP_ROWS, k) + 64 : 0;
}

/* A task's scratch: tile pointers, a tile's results, row scales and biases, a panel, an f32 row; of a slice the sums and results (moei_plan). */
typedef struct moei_scratch {
    const void **x;        /* [MOEI_PARTS] */
    float *out[2];         /* [MOEI_PARTS][up_blocks * MOEI_UP_ROWS] gate's and up's results; down's: moei_plan's out */
    float *act;            /* likewise for activations */
    float *scale[2], *bias[2]; /* [MOEI_SLICE] */
    float *sum;            /* [block][slice] */
    float *row;            /* [widest] */
    void *route;           /* moei_router's */
    uint8_t *panel;
    uint8_t *packed;       /* a chunk of tokens, for an arithmetic that packs them */
} moei_scratch;

static void moei_lay_scratch(moei_plan *p, moei_scratch *s) {
    const moe_layer *l = p->layer;
    const moe_desc *d = &l->desc;
    size_t widest = moei_max(moei_max(d->d_model, l->routed.d_in), MOEI_SLICE);
    const moei_arith *const ariths[] = {l->router, l->routed.in, l->shared.in, l->latent_in, l->latent_out, l->routed.mid, l->shared.mid};
    const size_t ks[] = {d->d_model, l->routed.d_in, l->shared.d_in, d->d_model, d->latent.d, l->routed.d_ff, l->shared.d_ff};
    enum { PACKED = 5 }; /* of these; h is kept as it is multiplied */
    size_t panel = 0, packed = 0, wide = MOEI_UP_ROWS, tokens = moei_slots_at_once(p);
    for (size_t i = 0; i < MOEI_COUNT(ariths); i++) {
        panel = moei_max(panel, moei_panel_scratch(ariths[i], ks[i]));
        if (ariths[i]) wide = moei_max(wide, ariths[i]->up_blocks * MOEI_UP_ROWS);
        if (!ariths[i] || !ariths[i]->packing || i >= PACKED) continue;
        size_t bytes = SIZE_MAX;
        (void)moei_mul(moei_min(tokens, moei_most(ariths[i], ks[i])), ariths[i]->row_bytes(ks[i]), &bytes);
        packed = moei_max(packed, bytes);
    }
    s->x = (const void **)moei_take(p, MOEI_PARTS, sizeof(void *));
    for (int i = 0; i < 2; i++) {
        s->out[i] = (float *)moei_take(p, MOEI_PARTS * wide, sizeof(float));
        s->scale[i] = (float *)moei_take(p, MOEI_SLICE, sizeof(float));
        s->bias[i] = (float *)moei_take(p, MOEI_SLICE, sizeof(float));
    }
    s->act = (float *)moei_take(p, MOEI_PARTS * wide, sizeof(float));
    s->sum = NULL;
    s->row = (float *)moei_take(p, widest + 64, 2 * sizeof(float));
    s->route = moei_take(p, moei_select_scratch(d, p->k), 1);
    s->panel = (uint8_t *)moei_take(p, panel, 1);
    s->packed = (uint8_t *)moei_take(p, packed, 1);
}

static void moei_lay_group(moei_plan *p, moei_group *g, const moei_bank *b, size_t slots, int has_source) {
    g->bank = b;
    if (!b->n_experts) return;
    g->start = (uint32_t *)moei_take(p, (size_t)b->n_experts + 2, sizeof(uint32_t));
    g->token = (uint32_t *)moei_take(p, slots, sizeof(uint32_t));
    g->weight = (float *)moei_take(p, slots, sizeof(float));
    if (has_source) g->source = (uint32_t *)moei_take(p, slots, sizeof(uint32_t));
    g->x_stride = moei_prepared_stride(b->in, b->d_in);
    g->h_stride = moei_prepared_stride(b->mid, b->d_ff);
    g->x = (uint8_t *)moei_take(p, p->block, g->x_stride);
    g->h = (uint8_t *)moei_take(p, slots, g->h_stride);
}

/* Lays out everything for p->block tokens at a time; p->used is then the size, SIZE_MAX on overflow. */
static void moei_lay_out(moei_plan *p) {
    const moe_layer *l = p->layer;
    const moe_desc *d = &l->desc;
    size_t slots = 0, all = 0, shared = 0, work;
    moei_scratch s;
    p->used = 0;
    if (!moei_mul(p->block, p->k, &slots) || !moei_mul(p->n_tokens, p->k, &all) || slots > UINT32_MAX / 2 ||
        !moei_mul(p->block, l->shared.n_experts, &shared) || shared > UINT32_MAX / 2) { /* slots are counted in 32 bits */
        p->used = SIZE_MAX;
        return;
    }
    int capacity = d->router.capacity || d->router.capacity_factor > 0;
    p->gates_per_token = d->shared.gate_kind == MOE_SHARED_ROUTER_SINK ? l->shared.n_experts : 2;
    p->state = (uint32_t *)moei_take(p, 4, sizeof(uint32_t));
    p->ids = (int32_t *)moei_take(p, all, sizeof(int32_t));
    p->weights = (float *)moei_take(p, all, sizeof(float));
    if (capacity) {
        p->passed = (float *)moei_take(p, all, sizeof(float));
        p->best = (float *)moei_take(p, p->n_tokens, sizeof(float));
        p->queue = moei_take(p, moei_capacity_scratch(d, p->n_tokens), 1);
    }
    if (l->shared.n_experts) p->gates = (float *)moei_take(p, p->n_tokens, p->gates_per_token * sizeof(float));
    p->router_x_stride = moei_prepared_stride(l->router, d->d_model);
    p->router_x = (uint8_t *)moei_take(p, p->block, p->router_x_stride);
    p->logits = (float *)moei_take(p, p->block, l->router_rows * sizeof(float));
    moei_lay_group(p, &p->groups[0], &l->routed, slots, 1);
    moei_lay_group(p, &p->groups[1], &l->shared, shared, 0);
    if (d->latent.d) {
        p->latent_x = (float *)moei_take(p, p->block, d->latent.d * sizeof(float));
        p->latent_sum = (float *)moei_take(p, p->block, d->latent.d * sizeof(float));
        p->latent_row_stride = moei_max(moei_prepared_stride(l->latent_in, d->d_model), moei_prepared_stride(l->latent_out, d->latent.d));
        p->latent_row = (uint8_t *)moei_take(p, p->block, p->latent_row_stride);
    }
    moei_lay_slices(p);
    work = moei_min(slots, l->routed.n_experts) + l->shared.n_experts + 1;
    p->work = (moei_work *)moei_take(p, work, sizeof(moei_work));
    size_t before = p->used;
    moei_lay_scratch(p, &s);
    if (p->used == SIZE_MAX) return;
    p->scratch_bytes = p->used - before;
    p->scratch = p->base ? p->base + before : NULL;
    p->used = before;
    (void)moei_take(p, p->n_tasks, p->scratch_bytes);
}

static moei_scratch moei_task_scratch(const moei_plan *p, uint32_t task) {
    moei_plan q = *p;
    moei_scratch s;
    q.base = p->scratch + task * p->scratch_bytes;
    q.used = 0;
    moei_lay_scratch(&q, &s);
    return s;
}

static size_t moei_bytes_for(const moei_plan *p, size_t block) {
    moei_plan q = *p;
    q.base = NULL;
    q.block = block;
    moei_lay_out(&q);
    return q.used;
}

/* The largest block of tokens that fits, or a smaller one that makes all blocks equal. 0 if not even one token fits. */
static size_t moei_fit_block(const moei_plan *p, size_t bytes) {
    size_t lo = 0, hi = p->n_tokens;
    if (moei_bytes_for(p, hi) <= bytes) return hi;
    /*@ loop invariant lo < hi <= p->n_tokens && (lo > 0 ==> p->n_tokens <= SIZE_MAX / 8); loop assigns lo, hi; loop variant hi - lo; */
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (moei_bytes_for(p, mid) <= bytes) lo = mid;
        else hi = mid;
    }
    if (!lo) return 0;
    size_t blocks = (p->n_tokens + lo - 1) / lo;
    return (p->n_tokens + blocks - 1) / blocks;
}

#define MOEI_SPARE 63 /* to align the workspace */

static size_t moei_workspace(const moe_layer *layer, size_t n_tokens, uint32_t n_tasks, size_t block) {
    moei_plan p;
    if (!layer || !n_tokens) return 0;
    memset(&p, 0, sizeof p);
    p.layer = layer;
    p.n_tokens = n_tokens;
    p.k = layer->desc.top_k;
    p.n_tasks = n_tasks ? n_tasks : 1;
    size_t bytes = moei_bytes_for(&p, block);
    return bytes == SIZE_MAX ? SIZE_MAX : bytes + MOEI_SPARE;
}
MOE_API size_t moe_workspace_size(const moe_layer *layer, size_t n_tokens, uint32_t n_tasks) {
    return moei_workspace(layer, n_tokens, n_tasks, n_tokens);
}
MOE_API size_t moe_workspace_min(const moe_layer *layer, size_t n_tokens, uint32_t n_tasks) {
    return moei_workspace(layer, n_tokens, n_tasks, 1);
}

/* ==== >>phases: the work ================================================================================================
   Every function here does one task of one phase. What a task writes is its own: token rows, blocks of h, or output rows. */

/* The part of n things that task ith of nth gets, in whole units. */
static void moei_span(size_t n, size_t unit, uint32_t ith, uint32_t nth, size_t *lo, size_t *hi) {
    size_t units = (n + unit - 1) / unit, each = units / nth, more = units % nth, first = each * ith + moei_min(ith, more);
    *lo = moei_min(first * unit, n);
    *hi = moei_min((first + each + (ith < more)) * unit, n);
}

static size_t moei_element(uint32_t type) { return type == MOE_TYPE_F32 ? 4 : 2; }

/* Values `first` .. first + n of a caller's row as f32, and back. */
static void moei_read_row(const moei_vec *v, float *out, const uint8_t *row, uint32_t type, size_t first, size_t n) {
    row += first * moei_element(type);
    if (type == MOE_TYPE_F32) memcpy(out, row, n * sizeof(float));
    else v->read16(out, row, type == MOE_TYPE_BF16, n);
}
static void moei_write_row(const moei_vec *v, uint8_t *row, uint32_t type, size_t first, size_t n, const float *values) {
    row += first * moei_element(type);
    if (type == MOE_TYPE_F32) memcpy(row, values, n * sizeof(float));
    else v->write16(row, type == MOE_TYPE_BF16, values, n);
}

static const uint8_t *moei_x_row(const moei_plan *p, size_t token) { return (const uint8_t *)p->io->x + token * p->io->x_stride; }

#define MOEI_FEW_BYTES 16384u /* of a panel for few tokens: it stays in L1 beside them */
/* out[t][r] for n_rows rows from w->row0 on and n tokens: straight from the weights, or through panels decoded once. */
static void moei_multiply(const moei_arith *a, const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n, float *out,
                          size_t out_stride, uint8_t *panel) {
    const moei_ops *ops = &a->ops[w->format];
    moei_rows part = *w;
    part.ask = a->ask, part.whole = a->whole;
    if (a->panel) part.sums = (float *)(void *)panel, part.n_sums = a->panel_bytes(MOEI_UP_ROWS, w->k) / sizeof(float);
    if (ops->dot && !(a->panel && (w->k_stride || n > ops->dot_max))) {
        ops->dot(&part, n_rows, x, n, out, out_stride);
        return;
    }
    if (ops->decode && a->tiles && !w->k_stride && moei_has_pieces(w->format) && moei_is_long(a->tiles, &part, 1, n_rows, n)) {
        moei_sweep_long(a->tiles, &part, ops->decode, n_rows, x, n, out, out_stride);
        return;
    }
    part.sums = NULL, part.n_sums = 0; /* the panel's place; for tiles of 2 rows its 32 are many */
    /* (Cache lines of transposed weights hold many rows: whole blocks.) */
    uint32_t few = (uint32_t)(MOEI_FEW_BYTES / a->row_bytes(w->k)) + 1;
    uint32_t step = n > 4 || ops->dot || w->k_stride || few > MOEI_UP_ROWS ? MOEI_UP_ROWS : few;
    for (uint32_t r = 0, rows; r < n_rows; r += rows) {
        rows = n_rows - r < step ? n_rows - r : step;
        part.row0 = w->row0 + r;
        size_t after = (n_rows - r - rows) * w->row_stride; /* the next panel: what lies further ahead would be gone when it is read */
        part.prefetch = after ? moei_row(w, r + rows) : w->prefetch;
        part.prefetch_bytes = w->k_stride ? 0 : moei_min(step * w->row_stride, after ? after : w->prefetch_bytes);
        if (w->next_x) { /* a share of the next tokens for each panel, if all of them stay in L2 */
            const size_t lines = w->next_x_bytes > MOEI_GROUPS_BYTES ? 0 : w->next_x_bytes / 64, from = lines * r / n_rows;
            part.next_x = w->next_x + 64 * from, part.next_x_bytes = 64 * (lines * (r + rows) / n_rows - from);
        }
        moei_through_panel(a, &part, rows, x, n, out + r, out_stride, panel);
    }
}

/* Whether results must be multiplied by a factor of their row. */
static int moei_has_row_scale(const moe_matrix *m, size_t k) {
    if (!m->scale.type) return m->scale2.type != MOE_TYPE_NONE;
    moei_side s = moei_scale_of(m, NULL, MOE_UP, 0, 1, k);
    return m->scale2.type || moei_row_constant(m->format, &s, k);
}

static void moei_scalars(uint32_t type, const uint8_t *p, size_t stride, size_t n, float *out) {
    if (type == MOE_TYPE_F32) moei_dense_f32(p, stride, n, out, 1);
    else if (type == MOE_TYPE_BF16) moei_dense_bf16(p, stride, n, out, 1);
    else
        for (size_t i = 0; i < n; i++) out[i] = moei_scalar(type, p + i * stride);
}
static void moei_all(float v, size_t n, float *out) {
    for (size_t i = 0; i < n; i++) out[i] = v;
}
/* Row factors and biases of rows [row, row + n) as one fma per result. 0 if the matrix has neither. (Memory waits meanwhile: Zen 5, one
   token of qwen3-30b as INT8_CHANNEL, row by row 9 % of the time.) */
static int moei_row_affine(const moe_matrix *m, const moe_experts *over, int which, uint32_t expert, size_t rows, size_t row,
                           size_t n, size_t k, float *scale, float *bias) {
    if (!moei_has_row_scale(m, k) && !m->bias.type) return 0;
    const moei_side s = moei_scale_of(m, over, which, expert, rows, k);
    const float scale2 = moei_scale2_of(m, over, which, expert);
    const int own = s.data && moei_row_constant(m->format, &s, k);
    size_t stride;
    const uint8_t *b = moei_array_of(&m->bias, over ? over->bias[which] : NULL, expert, rows, &stride);
    if (!own) moei_all(1.0f, n, scale);
    else if (s.rows == 1) moei_scalars(s.type, s.data + row * s.row_stride, s.row_stride, n, scale);
    else
        for (size_t i = 0; i < n; i++) scale[i] = moei_scale_at(&s, row + i, 0);
    for (size_t i = 0; i < n && scale2 != 1.0f; i++)
        scale[i] = m->scale2_divides ? (float)((double)scale[i] / (double)scale2) : scale[i] * scale2;
    if (b) moei_scalars(m->bias.type, b + row * stride, stride, n, bias);
    else moei_all(-0.0f, n, bias); /* v * 1 + -0 is v, zeros' signs included */
    return 1;
}

static void moei_prefetch_rows(const uint8_t *p, size_t stride, size_t row, size_t n) {
    for (size_t i = 0, step = stride < 64 ? 64 / (stride + !stride) : 1; p && i < n; i += step) MOEI_PREFETCH(p + (row + i) * stride);
}
/* Before the rows are multiplied: what moei_row_affine will read of them. It would wait for memory once or twice every 32 rows (Zen 5, one
   core, one token of gpt-oss-20b: INT8_CHANNEL 78 % of the read bandwidth, with this 83). */
static void moei_affine_ahead(const moe_matrix *m, const moe_experts *over, int which, uint32_t expert, size_t rows, size_t row, size_t n,
                              size_t k) {
    if (!m->scale.type && !m->bias.type) return;
    const moei_side s = moei_scale_of(m, over, which, expert, rows, k);
    size_t stride;
    const uint8_t *bias = moei_array_of(&m->bias, over ? over->bias[which] : NULL, expert, rows, &stride);
    moei_prefetch_rows(bias, stride, row, n);
    if (s.data && s.rows == 1 && moei_row_constant(m->format, &s, k)) moei_prefetch_rows(s.data, s.row_stride, row, n);
}

/* ---- prepare ---- */

/* RMSNorm of the router's input with its own weight (Gemma-4): x / sqrt(mean(x^2) + eps) * scale / sqrt(d). */
static void moei_router_norm(const moe_desc *d, const float *x, float *y) {
    float sum = 0.0f, n = (float)d->d_model;
    for (size_t i = 0; i < d->d_model; i++) sum = moei_fma(x[i], x[i], sum);
    float mean = sum / n, factor = 1.0f / sqrtf(mean + d->router.input_norm_eps), root = 1.0f / sqrtf(n);
    for (size_t i = 0; i < d->d_model; i++) y[i] = x[i] * factor * (moei_array_at(&d->router.input_scale, 0, d->d_model, i) * root);
}

/* The shared experts' gate (sigmoid of a dot product, or a softmax of two), which reads x itself. `row` is prepared scratch. */
static void moei_shared_gate(const moei_plan *p, const moei_scratch *s, const float *x, float *row, float *gates) {
    const moe_layer *l = p->layer;
    const moe_matrix *m = &l->desc.shared.gate_weight;
    uint32_t kind = l->desc.shared.gate_kind, rows = kind == MOE_SHARED_SOFTMAX2 ? 2 : 1;
    moei_rows w;
    float v[2], scale[2], bias[2];
    if (!p->gates || kind == MOE_SHARED_ROUTER_SINK) return;
    for (size_t i = 0; i < p->gates_per_token; i++) gates[i] = 1.0f;
    if (kind == MOE_SHARED_PLAIN) return;
    l->router->prepare(row, x, 0, l->desc.d_model, l->desc.d_model);
    const void *rows_x[1] = {row};
    moei_view(m, NULL, MOE_UP, 0, rows, l->desc.d_model, &w);
    moei_multiply(l->router, &w, rows, rows_x, 1, v, 2, s->panel);
    if (moei_row_affine(m, NULL, MOE_UP, 0, rows, 0, rows, l->desc.d_model, scale, bias)) l->vec->affine(v, scale, bias, rows);
    if (kind == MOE_SHARED_SIGMOID) {
        gates[0] = moei_sigmoid(v[0]);
    } else {
        float top = v[0] > v[1] ? v[0] : v[1], a = moei_exp(v[0] - top), b = moei_exp(v[1] - top);
        gates[0] = a / (a + b);
        gates[1] = b / (a + b);
    }
}

/* A caller's row as f32: itself, or read to `space`. */
static const float *moei_values(const moei_vec *v, const uint8_t *row, uint32_t type, size_t n, float *space) {
    if (type == MOE_TYPE_F32 && (uintptr_t)row % sizeof(float) == 0) return (const float *)(const void *)row;
    moei_read_row(v, space, row, type, 0, n);
    return space;
}

static void moei_prepare_router_row(const moei_plan *p, size_t token, size_t at, float *space) {
    const moe_io *io = p->io;
    const moe_layer *l = p->layer;
    size_t d = l->desc.d_model;
    const uint8_t *row = io->router_x ? (const uint8_t *)io->router_x + token * io->router_x_stride : moei_x_row(p, token);
    const float *x = moei_values(l->vec, row, io->x_type, d, space);
    if (l->desc.router.input_scale.type) moei_router_norm(&l->desc, x, space), x = space;
    l->router->prepare(p->router_x + at * p->router_x_stride, x, 0, d, d);
}

static void moei_prepare_expert_row(const moei_plan *p, const moei_scratch *s, size_t token, size_t at, float *space, float *row) {
    const moe_layer *l = p->layer;
    size_t d = l->desc.d_model;
    const float *x = moei_values(l->vec, moei_x_row(p, token), p->io->x_type, d, space);
    if (p->sums) (void)row;
    else if (l->desc.latent.d) l->latent_in->prepare(p->latent_row + at * p->latent_row_stride, x, 0, d, d);
    else l->routed.in->prepare(p->groups[0].x + at * p->groups[0].x_stride, x, 0, d, d);
    if (!p->groups[1].bank->n_experts) return;
    l->shared.in->prepare(p->groups[1].x + at * p->groups[1].x_stride, x, 0, d, d);
    moei_shared_gate(p, s, x, row, p->gates + token * p->gates_per_token);
}

/* Tokens [lo, hi) of the block that begins with `first`; for the router to its rows from `at` on. */
static void moei_prepare_rows(const moei_plan *p, const moei_scratch *s, size_t first, size_t lo, size_t hi, int router, size_t at, int experts) {
    float *space = s->row, *row = s->row + (moei_max(p->layer->desc.d_model, 1) + 63) / 64 * 64;
    for (size_t t = lo; t < hi; t++) {
        if (router) moei_prepare_router_row(p, first + t, at + (t - lo), space);
        if (experts) moei_prepare_expert_row(p, s, first + t, t, space, row);
    }
}
static void moei_prepare(const moei_plan *p, size_t block, int router, int experts, uint32_t ith, uint32_t nth) {
    size_t first = block * p->block, n = moei_min(p->block, p->n_tokens - first), lo, hi;
    moei_scratch s = moei_task_scratch(p, ith);
    moei_span(n, 1, ith, nth, &lo, &hi);
    moei_prepare_rows(p, &s, first, lo, hi, router, lo, experts);
}

/* Scales and biases of rows [r0, r1) to results of tokens [t0, t1). */
static void moei_project_affine(const moei_plan *p, const moei_scratch *s, const moe_matrix *m, size_t rows, size_t k, float *out,
                                size_t t0, size_t t1, size_t r0, size_t r1) {
    for (size_t r = r0; r < r1; r += MOEI_SLICE) {
        size_t part = moei_min(MOEI_SLICE, r1 - r);
        if (!moei_row_affine(m, NULL, MOE_UP, 0, rows, r, part, k, s->scale[0], s->bias[0])) break;
        for (size_t t = t0; t < t1; t++) p->layer->vec->affine(out + t * rows + r, s->scale[0], s->bias[0], part);
    }
}
/* out[t][rows] = matrix * prepared rows of the block, few tokens split by rows, many by tokens. */
static void moei_project(const moei_plan *p, const moei_arith *a, const moe_matrix *m, size_t rows, size_t k, const uint8_t *x,
                         size_t x_stride, size_t n, float *out, uint32_t ith, uint32_t nth) {
    moei_scratch s = moei_task_scratch(p, ith);
    moei_rows w;
    size_t t0 = 0, t1 = n, r0 = 0, r1 = rows;
    if (n >= (size_t)MOEI_MANY * nth) moei_span(n, 1, ith, nth, &t0, &t1);
    else moei_span(rows, 8, ith, nth, &r0, &r1);
    if (r0 == r1) return;
    moei_view(m, NULL, MOE_UP, 0, rows, k, &w);
    w.row0 = (uint32_t)r0;
    for (size_t t = t0, part; t < t1; t += part) {
        part = moei_chunk(a, moei_most(a, k), t1 - t);
        for (uint32_t i = 0; i < part; i++) s.x[i] = x + (t + i) * x_stride;
        moei_pack(a, s.x, (uint32_t)part, k, s.packed);
        moei_multiply(a, &w, (uint32_t)(r1 - r0), s.x, (uint32_t)part, out + t * rows + r0, rows, s.panel);
    }
    moei_project_affine(p, &s, m, rows, k, out, t0, t1, r0, r1);
}

/* ---- route ---- */

static float *moei_logits_row(const moei_plan *p, size_t token, size_t at) {
    size_t rows = p->layer->router_rows;
    if (p->io->logits_in) return (float *)(uintptr_t)(p->io->logits_in + token * rows);
    return p->logits + at * rows;
}

static void moei_logits(const moei_plan *p, size_t block, uint32_t ith, uint32_t nth) {
    const moe_layer *l = p->layer;
    size_t first = block * p->block, n = moei_min(p->block, p->n_tokens - first);
    moei_project(p, l->router, &l->desc.router.weight, l->router_rows, l->desc.d_model, p->router_x, p->router_x_stride, n,
                 p->logits, ith, nth);
}

/* Many tokens: a task prepares its own, packs a group while it is in L1, and multiplies as many as stay in L2. */
static void moei_prepare_logits(const moei_plan *p, size_t block, uint32_t ith, uint32_t nth) {
    const moe_layer *l = p->layer;
    const moei_arith *a = l->router;
    const moei_packing *pack = a->packing;
    size_t first = block * p->block, n = moei_min(p->block, p->n_tokens - first), d = l->desc.d_model, rows = l->router_rows, lo, hi;
    moei_scratch s = moei_task_scratch(p, ith);
    moei_rows w;
    moei_span(n, 1, ith, nth, &lo, &hi);
    moei_view(&l->desc.router.weight, NULL, MOE_UP, 0, rows, d, &w);
    for (size_t t = lo, part; t < hi; t += part) {
        part = moei_chunk(a, moei_min(moei_most(a, d), moei_max(MOEI_ROUTE_BYTES / a->row_bytes(d), 2 * MOEI_GROUP)), hi - t);
        size_t packs = pack && part >= pack->min, most = packs ? pack->group : part;
        for (size_t i = 0, group; i < part; i += group) {
            group = moei_min(most, part - i);
            moei_prepare_rows(p, &s, first, t + i, t + i + group, 1, lo, p->prepare_once);
            for (size_t j = 0; j < group; j++) s.x[i + j] = p->router_x + (lo + j) * p->router_x_stride;
            uint8_t *to = s.packed + i * a->row_bytes(d);
            if (packs) pack->pack(to, s.x + i, (uint32_t)group, 0, d, d), s.x[i] = to;
        }
        moei_multiply(a, &w, (uint32_t)rows, s.x, (uint32_t)part, p->logits + t * rows, rows, s.panel);
    }
    moei_project_affine(p, &s, &l->desc.router.weight, rows, d, p->logits, lo, hi, 0, rows);
}

/* The ids that a table or the caller gives; those out of range count as skipped here and are reported by SETTLE. */
static const int32_t *moei_given_ids(const moei_plan *p, size_t token, int32_t *ids) {
    const moe_router *r = &p->layer->desc.router;
    if (p->io->ids_in) {
        memcpy(ids, (const uint8_t *)p->io->ids_in + token * p->io->ids_stride, p->k * sizeof(int32_t));
    } else if (r->pick == MOE_PICK_TABLE) {
        (void)moei_table_row(&p->layer->desc, p->io->token_ids[token], p->k, ids); /* checked before the first phase */
    } else {
        return NULL;
    }
    return ids;
}

/* Ids and weights of one token: the router's, or the caller's ids with the router's or the caller's weights. */
static void moei_select_one(const moei_plan *p, const moei_router *r, size_t token, size_t at) {
    const moe_io *io = p->io;
    int32_t *ids = p->ids + token * p->k;
    float *weights = p->weights + token * p->k, *sink = r->n_sink && p->gates ? p->gates + token * p->gates_per_token : NULL;
    const int32_t *given = moei_given_ids(p, token, ids);
    if (!(io->ids_in && io->weights_in) || sink) {
        for (uint32_t j = 0; given && j < p->k; j++)
            if (ids[j] < 0 || (uint32_t)ids[j] >= r->n_ids) ids[j] = -1;
        uint32_t saved = moei_select_token(r, moei_logits_row(p, token, at), given, p->k, ids, weights, sink);
        if (p->best) p->best[token] = moei_best_score(r);
        if (io->stats) {
            io->stats->saved += saved;
            moei_route_stats(r, moei_logits_row(p, token, at), io->stats);
        }
        if (given) moei_given_ids(p, token, ids);
    }
    if (io->ids_in && io->weights_in) memcpy(weights, (const uint8_t *)io->weights_in + token * io->weights_stride, p->k * sizeof(float));
}

static void moei_select_block(const moei_plan *p, size_t block, uint32_t ith, uint32_t nth) {
    size_t first = block * p->block, n = moei_min(p->block, p->n_tokens - first), rows = p->layer->router_rows, lo, hi;
    moei_scratch s = moei_task_scratch(p, ith);
    moei_router r;
    moei_router_begin(&r, &p->layer->desc, p->layer->vec, p->k, s.route);
    moei_span(n, 1, ith, nth, &lo, &hi);
    for (size_t t = lo; t < hi; t++) {
        moei_select_one(p, &r, first + t, t);
        if (p->io->logits_out) memcpy(p->io->logits_out + (first + t) * rows, moei_logits_row(p, first + t, t), rows * sizeof(float));
    }
}

/* ---- settle: the only place where data can be wrong; y was not touched yet ---- */

static int moei_gap(const void *const *call, const void *const *own, uint32_t e) {
    const void *const *list = call ? call : own;
    return list && !list[e];
}
/* Is a pointer of expert e NULL? o: the call's lists, i: which of them. */
static int moei_gaps(const moe_matrix *m, const moe_experts *o, int i, uint32_t e) {
    return (m->format && moei_gap(o->data[i], m->expert, e)) || (m->scale.type && moei_gap(o->scale[i], m->scale.expert, e)) ||
           (m->zero.type && moei_gap(o->zero[i], m->zero.expert, e)) || (m->scale2.type && moei_gap(o->scale2[i], m->scale2.expert, e)) ||
           (m->bias.type && moei_gap(o->bias[i], m->bias.expert, e));
}
static int moei_absent(const moei_plan *p, uint32_t e) {
    moe_experts none; /* the desc's own pointers */
    const moei_bank *b = &p->layer->routed;
    memset(&none, 0, sizeof none);
    const moe_experts *o = p->io->experts ? p->io->experts : &none;
    return moei_gaps(&b->gate, o, MOE_GATE, e) || moei_gaps(&b->up, o, MOE_UP, e) || moei_gaps(&b->down, o, MOE_DOWN, e);
}

/* The position of a global expert id among those held here, or -1. */
static int64_t moei_local(const moe_desc *d, int32_t id) {
    int64_t e = (int64_t)id - (int64_t)d->expert_first;
    return id >= 0 && e >= 0 && e < (int64_t)d->expert_count ? e : -1;
}

static moe_status moei_check_ids(const moei_plan *p) {
    const moe_desc *d = &p->layer->desc;
    for (size_t i = 0; i < p->n_tokens * p->k; i++) {
        int32_t id = p->ids[i];
        if (id < -1 || (id >= 0 && (uint32_t)id >= p->layer->n_ids))
            return moei_fail(p->io->error, MOE_ERR_EXPERT_ID, "ids_in", (uint64_t)(int64_t)id, p->layer->n_ids);
        int64_t e = moei_local(d, id);
        if (e >= 0 && moei_absent(p, (uint32_t)e)) return moei_fail(p->io->error, MOE_ERR_EXPERT_ABSENT, "experts", (uint64_t)id, 0);
    }
    return MOE_OK;
}

/* From here on a slot without work has the id -2 - id; its weight is 0. */
static void moei_drop_slots(const moei_plan *p) {
    const moe_router *r = &p->layer->desc.router;
    moe_stats *stats = p->io->stats;
    int adaptive = !p->io->weights_in && (r->drop_below > 0 || r->top_p > 0);
    int capacity = (r->capacity || r->capacity_factor > 0) && !p->io->weights_in;
    for (size_t i = 0; i < p->n_tokens * p->k; i++) {
        int32_t id = p->ids[i];
        int gone = (moei_bits(p->weights[i]) << 1) == 0 && id >= 0 && (adaptive || capacity);
        if (stats) {
            stats->slots++;
            stats->skipped += id < 0;
            stats->dropped += gone && capacity;
            if (!gone && id >= 0 && stats->tokens) stats->tokens[id]++;
            if (!gone && id >= 0 && stats->weight) stats->weight[id] += (double)p->weights[i];
        }
        if (gone) p->ids[i] = -2 - id;
    }
    if (stats) stats->n_tokens += p->n_tokens;
}

static void moei_give_routing(const moei_plan *p) {
    const moe_io *io = p->io;
    for (size_t t = 0; t < p->n_tokens; t++)
        for (size_t j = 0; j < p->k; j++) {
            int32_t id = p->ids[t * p->k + j];
            float w = id < 0 ? 0.0f : p->weights[t * p->k + j];
            id = id < -1 ? -2 - id : id;
            if (io->ids_out) memcpy((uint8_t *)io->ids_out + t * io->ids_stride + 4 * j, &id, 4); /* strides may be odd */
            if (io->weights_out) memcpy((uint8_t *)io->weights_out + t * io->weights_stride + 4 * j, &w, 4);
        }
}

static void moei_apply_capacity(const moei_plan *p) {
    moei_scratch s = moei_task_scratch(p, 0);
    moei_router r;
    moei_held h;
    moei_router_begin(&r, &p->layer->desc, p->layer->vec, p->k, s.route);
    memset(&h, 0, sizeof h);
    h.n_tokens = p->n_tokens;
    h.k = p->k;
    h.ids = p->ids;
    h.weights = p->weights;
    h.sink = r.n_sink ? p->gates : NULL;
    h.best = p->best;
    h.pass = p->passed;
    moei_capacity(&r, &h, p->queue);
    if (p->io->stats) p->io->stats->saved += h.saved;
}

static void moei_settle(const moei_plan *p) {
    p->state[0] = MOE_OK;
    if (p->sums) return;
    p->state[0] = (uint32_t)moei_check_ids(p);
    if (p->state[0]) return;
    if (p->best && !p->io->weights_in) moei_apply_capacity(p);
    moei_drop_slots(p);
    moei_give_routing(p);
}

/* ---- sort ---- */

/* Bucket of a slot: an expert held here; n_experts = passes x through (identity experts, capacity); -1 = nothing. Of several
   processes only the one with the first experts passes x through. */
static int64_t moei_bucket(const moei_plan *p, size_t slot) {
    const moe_desc *d = &p->layer->desc;
    int32_t id = p->ids[slot];
    int dropped = id < -1 && p->passed && d->router.capacity_drop == MOE_DROP_PASS_THROUGH;
    int identity = id >= 0 && (uint32_t)id >= d->n_experts && d->zero_kind == MOE_ZERO_IDENTITY;
    if (dropped || identity) return d->expert_first ? -1 : (int64_t)p->layer->routed.n_experts;
    return moei_local(d, id);
}

static void moei_sort_routed(const moei_plan *p, size_t first, size_t n) {
    const moei_group *g = &p->groups[0];
    uint32_t buckets = g->bank->n_experts + 1;
    memset(g->start, 0, ((size_t)buckets + 1) * sizeof(uint32_t));
    for (size_t i = 0; i < n * p->k; i++) {
        int64_t b = moei_bucket(p, first * p->k + i);
        if (b >= 0) g->start[b + 1]++;
    }
    for (uint32_t b = 0; b < buckets; b++) g->start[b + 1] += g->start[b];
    for (size_t i = 0; i < n * p->k; i++) { /* start[b] runs through its bucket and ends where the next begins */
        size_t slot = first * p->k + i;
        int64_t b = moei_bucket(p, slot);
        if (b < 0) continue;
        uint32_t at = g->start[b]++;
        g->token[at] = (uint32_t)(i / p->k);
        g->source[at] = (uint32_t)i;
        g->weight[at] = p->ids[slot] < 0 ? p->passed[slot] : p->weights[slot];
    }
    memmove(g->start + 1, g->start, (size_t)buckets * sizeof(uint32_t));
    g->start[0] = 0;
}

static void moei_sort_shared(const moei_plan *p, size_t first, size_t n) {
    const moei_group *g = &p->groups[1];
    uint32_t kind = p->layer->desc.shared.gate_kind;
    for (uint32_t e = 0; e < g->bank->n_experts; e++) {
        g->start[e] = (uint32_t)(e * n);
        for (size_t t = 0; t < n; t++) {
            const float *gates = p->gates + (first + t) * p->gates_per_token;
            g->token[e * n + t] = (uint32_t)t;
            g->weight[e * n + t] = kind == MOE_SHARED_SOFTMAX2 ? gates[1] : kind == MOE_SHARED_ROUTER_SINK ? gates[e] : gates[0];
        }
    }
    g->start[g->bank->n_experts] = (uint32_t)(g->bank->n_experts * n);
}

/* Rough nanoseconds of a block of h rows, for an even split: bytes at 16 GB/s, multiply-adds at 96 or (of 8 and 16 bits) 256 a nanosecond:
   few tokens cost hardly more than one, which waits for memory. */
static uint64_t moei_up_cost(const moei_bank *b, uint32_t tokens) {
    const uint64_t rate = b->in->compute == MOE_COMPUTE_F32 ? 96 : 256;
    uint64_t matrices = b->gate.format ? 2 : 1, weights = (uint64_t)MOEI_UP_ROWS * b->d_in * matrices;
    uint64_t bytes = (uint64_t)MOEI_UP_ROWS * matrices * moe_row_bytes(b->up.format, b->d_in);
    return bytes / 16 + weights * tokens / rate + 1;
}

static void moei_list_work(const moei_plan *p) {
    uint32_t n = 0;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 2; i++) {
        const moei_group *g = &p->groups[i];
        if (i == 0 && p->sums) continue;
        for (uint32_t e = 0; e < g->bank->n_experts; e++) {
            uint32_t tokens = g->start[e + 1] - g->start[e];
            if (!tokens) continue;
            moei_work *w = &p->work[n++];
            w->group = i;
            w->expert = e;
            w->blocks = (g->bank->d_ff + MOEI_UP_ROWS - 1) / MOEI_UP_ROWS;
            w->cost = moei_up_cost(g->bank, tokens);
            w->begin = sum;
            sum += w->cost * w->blocks;
        }
    }
    p->work[n].begin = sum;
    p->state[1] = n;
}

static void moei_sort(const moei_plan *p, size_t block) {
    size_t first = block * p->block, n = moei_min(p->block, p->n_tokens - first);
    if (!p->sums) moei_sort_routed(p, first, n);
    if (p->groups[1].bank->n_experts) moei_sort_shared(p, first, n);
    moei_list_work(p);
}

/* ---- up: gate, up, activation ---- */

static void moei_activation(const moei_vec *v, const moe_ffn *f, float *g, float *t, size_t n) { /* g = act(g); t is scratch */
    size_t i;
    switch (f->activation) {
    case MOE_ACT_SILU:
    case MOE_ACT_OAI:
        v->sigmoid(t, g, f->activation == MOE_ACT_OAI ? f->alpha : 1.0f, n);
        v->times(g, t, n); /* -Inf gives -0, not NaN */
        break;
    case MOE_ACT_GELU_TANH: /* 0.5 g (1 + tanh(z)) = g sigmoid(2 z), z = sqrt(2 / pi) (g + 0.044715 g^3) */
        for (i = 0; i < n; i++) t[i] = g[i] * moei_fma(0.044715f * g[i], g[i], 1.0f);
        v->sigmoid(t, t, 1.59576912f, n);
        v->times(g, t, n);
        break;
    case MOE_ACT_GELU_ERF:
        for (i = 0; i < n; i++) g[i] = moei_gelu_erf(g[i]);
        break;
    case MOE_ACT_RELU:
    case MOE_ACT_RELU2:
        for (i = 0; i < n; i++) g[i] = g[i] < 0.0f ? 0.0f : g[i];
        if (f->activation == MOE_ACT_RELU2)
            for (i = 0; i < n; i++) g[i] = g[i] * g[i];
        break;
    default: /* MOE_ACT_SITU */
        v->sigmoid(t, g, 1.0f, n);
        for (i = 0; i < n; i++) g[i] = f->beta * moei_tanh(g[i] / f->beta) * t[i];
        break;
    }
}

/* g = act(g) * up, with clamps; u NULL = ungated. No activation returns less than MOEI_LEAST. */
static void moei_glu(const moei_vec *v, const moe_ffn *f, uint32_t clamp, float limit, float *g, float *u, float *t, size_t n) {
    const float inf = moei_float(0x7f800000u), one = f->activation == MOE_ACT_OAI ? 1.0f : -0.0f; /* v + -0 is v, -0 included */
    int clamped = clamp != MOE_CLAMP_NONE && limit > 0.0f && u;
    if (clamped && clamp == MOE_CLAMP_PRE) v->clamp(g, -inf, limit, -0.0f, n);
    moei_activation(v, f, g, t, n);
    if (clamped && clamp == MOE_CLAMP_POST) v->clamp(g, -inf, limit, -0.0f, n);
    if (!u) return;
    if (clamped || f->activation == MOE_ACT_OAI) v->clamp(u, clamped ? -limit : -inf, clamped ? limit : inf, one, n);
    if (f->activation == MOE_ACT_SITU)
        for (size_t i = 0; i < n; i++) u[i] = f->linear_beta * moei_tanh(u[i] / f->linear_beta);
    v->times(g, u, n);
}

static const moe_experts *moei_over(const moei_plan *p, const moei_group *g) { return g == &p->groups[0] ? p->io->experts : NULL; }

static uint32_t moei_next_expert(const moei_group *g, uint32_t e) { /* from e on, the first that has tokens */
    while (e < g->bank->n_experts && g->start[e] == g->start[e + 1]) e++;
    return e;
}
/* While tokens pass over these rows, memory has time for what is read next. */
static void moei_read_next(moei_rows *w, const uint8_t *next, size_t rows) {
    w->prefetch = next;
    w->prefetch_bytes = w->k_stride ? 0 : rows * w->row_stride;
}

/* An expert's gate and up, looked up once for all blocks of their rows (Zen 5: 90 ns a block), and where the next expert's begin. */
typedef struct moei_pair {
    uint32_t expert;
    moei_rows rows[2]; /* MOE_GATE, MOE_UP */
    const uint8_t *next[2];
} moei_pair;
static void moei_up_views(const moei_plan *p, const moei_group *g, uint32_t expert, moei_pair *v) {
    const moei_bank *b = g->bank;
    const uint32_t next = moei_next_expert(g, expert + 1);
    v->expert = expert;
    for (int i = b->gate.format ? MOE_GATE : MOE_UP; i <= MOE_UP; i++) {
        const moe_matrix *m = i == MOE_GATE ? &b->gate : &b->up;
        moei_rows after;
        moei_view(m, moei_over(p, g), i, expert, b->d_ff, b->d_in, &v->rows[i]);
        v->next[i] = NULL;
        if (next == b->n_experts || b->d_ff < MOEI_UP_ROWS) continue;
        moei_view(m, moei_over(p, g), i, next, b->d_ff, b->d_in, &after);
        v->next[i] = after.data;
    }
}
static moei_rows moei_up_rows(const moei_bank *b, const moei_pair *v, int which, uint32_t row, uint32_t wide) { /* `wide` from `row` on */
    moei_rows w = v->rows[which];
    w.row0 = row;
    if (row + wide + MOEI_UP_ROWS <= b->d_ff) moei_read_next(&w, w.data + (row + wide) * w.row_stride, moei_min(wide, b->d_ff - row - wide));
    else if (v->next[which]) moei_read_next(&w, v->next[which], MOEI_UP_ROWS);
    return w;
}
/* What follows the products of one matrix with n slots: row scale, weight on the input, and bias. */
static void moei_up_affine(const moei_plan *p, const moei_scratch *s, const moei_group *g, const moe_matrix *m, int which, uint32_t expert,
                           uint32_t row, uint32_t n_rows, uint32_t wide, uint32_t slot, uint32_t n, float *out) {
    const moei_bank *b = g->bank;
    const moei_vec *v = p->layer->vec;
    int at_input = g == &p->groups[0] && p->layer->desc.ffn.weight_at == MOE_WEIGHT_AT_INPUT;
    float *scale = s->scale[0], *bias = s->bias[0], *weighted = s->scale[1];
    int affine = moei_row_affine(m, moei_over(p, g), which, expert, b->d_ff, row, n_rows, b->d_in, scale, bias);
    if (!affine && !at_input) return;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t r = 0; r < n_rows && at_input; r++) weighted[r] = (affine ? scale[r] : 1.0f) * g->weight[slot + i];
        for (uint32_t r = 0; r < n_rows && !affine; r++) bias[r] = -0.0f;
        v->affine(out + (size_t)i * wide, at_input ? weighted : scale, bias, n_rows);
    }
}
/* Whether rows of gate and up (and of their scales) lie in turns, as gpt-oss has them. */
static int moei_in_turns(const moei_rows *a, const moei_rows *b) {
    const moei_side *s = &a->scale, *t = &b->scale;
    size_t half = a->row_stride / 2, half_s = s->row_stride / 2;
    if (a->format != b->format || a->k_stride || b->k_stride || a->zero.data || b->zero.data || !s->data != !t->data) return 0;
    if (s->data && (s->type != t->type || s->cols != t->cols || s->rows != 1 || t->rows != 1 || s->row_stride != t->row_stride ||
                    half_s * 2 != s->row_stride || t->data != s->data + half_s)) return 0;
    return half * 2 == a->row_stride && a->row_stride == b->row_stride && b->data == a->data + half;
}
#define MOEI_TURNS 4u /* tokens */
#define MOEI_UP_FEW 4u /* blocks that these take at a time */
/* gate and up: [n][wide]. Few tokens wait for memory, which is read in its order (gpt-oss-20b, one core of a Zen 5: matrix by
   matrix its gate and up are read at 27 GB/s, its down at 33). */
static void moei_up_matrices(const moei_plan *p, const moei_scratch *s, const moei_group *g, const moei_pair *v, uint32_t row, uint32_t rows,
                             uint32_t wide, uint32_t slot, uint32_t n, float *gate, float *up) {
    const moei_bank *b = g->bank;
    const uint32_t expert = v->expert;
    moei_rows w[2];
    moei_affine_ahead(&b->up, moei_over(p, g), MOE_UP, expert, b->d_ff, row, rows, b->d_in);
    if (gate) moei_affine_ahead(&b->gate, moei_over(p, g), MOE_GATE, expert, b->d_ff, row, rows, b->d_in);
    w[1] = moei_up_rows(b, v, MOE_UP, row, wide);
    if (gate) w[0] = moei_up_rows(b, v, MOE_GATE, row, wide);
    if (gate && n <= MOEI_TURNS && moei_in_turns(&w[0], &w[1])) {
        float *both = s->act;
        w[0].row_stride /= 2, w[0].scale.row_stride /= 2, w[0].row0 *= 2;
        moei_multiply(b->in, &w[0], 2 * rows, s->x, n, both, 2 * wide, s->panel);
        for (uint32_t i = 0; i < n; i++, both += 2 * wide)
            for (uint32_t r = 0; r < rows; r++) gate[i * wide + r] = both[2 * r], up[i * wide + r] = both[2 * r + 1];
    } else {
        if (gate) moei_multiply(b->in, &w[0], rows, s->x, n, gate, wide, s->panel);
        moei_multiply(b->in, &w[1], rows, s->x, n, up, wide, s->panel);
    }
    if (gate) moei_up_affine(p, s, g, &b->gate, MOE_GATE, expert, row, rows, wide, slot, n, gate);
    moei_up_affine(p, s, g, &b->up, MOE_UP, expert, row, rows, wide, slot, n, up);
}

/* A block of rows of n slots' h, prepared for down: rows of their own, or the groups that down multiplies, at their first slot. */
static void moei_keep_h(const moei_group *g, uint32_t slot, uint32_t n, uint32_t row, uint32_t rows, const float *h, uint32_t wide) {
    const moei_arith *a = g->bank->mid;
    uint64_t one[MOEI_GROUP][sizeof(moei_q8) / 8]; /* 32 values of any arithmetic */
    const void *x[MOEI_GROUP];
    int packs = a->packing && n >= a->packing->min;
    for (uint32_t i = 0; !packs && i < n; i++)
        a->prepare(g->h + (slot + i) * g->h_stride, h + (size_t)i * wide, row, rows, g->bank->d_ff);
    for (uint32_t i = 0, group; packs && i < n; i += group) {
        group = n - i < a->packing->group ? n - i : a->packing->group;
        uint8_t *to = g->h + (slot + i) * g->h_stride;
        const float *from = h + (size_t)i * wide;
        if (a->packing->prepare) {
            a->packing->prepare(to, from, wide, group, row, rows, g->bank->d_ff);
            continue;
        }
        for (uint32_t j = 0; j < group; j++) a->prepare(one[j], from + (size_t)j * wide, 0, rows, rows), x[j] = one[j];
        a->packing->pack(to, x, group, row, rows, g->bank->d_ff);
    }
}

/* Blocks of rows of h for n slots of one expert. */
static void moei_up_block(const moei_plan *p, const moei_scratch *s, const moei_group *g, const moei_pair *v, uint32_t block, uint32_t blocks,
                          uint32_t slot, uint32_t n) {
    const moei_bank *b = g->bank;
    const moe_ffn *f = &p->layer->desc.ffn;
    uint32_t row = block * MOEI_UP_ROWS, wide = blocks * MOEI_UP_ROWS, rows = b->d_ff - row < wide ? b->d_ff - row : wide;
    int at_hidden = g == &p->groups[0] && f->weight_at == MOE_WEIGHT_AT_HIDDEN, gated = b->gate.format != 0;
    float *up = s->out[1], *gate = gated ? s->out[0] : up, *scratch = s->act;
    moei_up_matrices(p, s, g, v, row, rows, wide, slot, n, gated ? gate : NULL, up);
    if (rows == wide) { /* the results lie densely: one long run */
        moei_glu(p->layer->vec, f, b->clamp, b->limit, gate, gated ? up : NULL, scratch, (size_t)n * rows);
    } else {
        for (uint32_t i = 0; i < n; i++)
            moei_glu(p->layer->vec, f, b->clamp, b->limit, gate + i * wide, gated ? up + i * wide : NULL, scratch, rows);
    }
    for (uint32_t i = 0; i < n && at_hidden; i++)
        for (uint32_t r = 0; r < rows; r++) gate[i * wide + r] = gate[i * wide + r] * g->weight[slot + i];
    for (uint32_t r = 0; r < rows; r += MOEI_UP_ROWS)
        moei_keep_h(g, slot, n, row + r, rows - r < MOEI_UP_ROWS ? rows - r : MOEI_UP_ROWS, gate + r, wide);
}

/* Parts from .. to of n of the next expert's tokens: since they were last read, a stream of weights has passed through the caches (Zen 5, qwen3-30b,
   512 tokens, BF16: 77.1 and 77.9 % of the roofline). */
static void moei_up_tokens_ahead(const moei_group *g, uint32_t expert, size_t from, size_t to, size_t n) {
    const uint32_t next = moei_next_expert(g, expert + 1);
    if (next == g->bank->n_experts) return;
    const size_t first = g->start[next], bytes = g->bank->in->row_bytes(g->bank->d_in);
    const size_t count = moei_min(g->start[next + 1] - first, MOEI_GROUPS_BYTES / bytes);
    for (size_t slot = first + count * from / n; slot < first + count * to / n; slot++)
        for (size_t b = 0; b < bytes; b += 64) MOEI_PREFETCH_L2(g->x + g->token[slot] * g->x_stride + b);
}
/* Blocks [from, to) of an expert. Tokens are packed once for all of them, or in chunks for several blocks, whose weights stay in
   the last cache while the chunks pass over them. Few tokens take several blocks at a time: memory waits where each ends. */
static void moei_up_blocks(const moei_plan *p, const moei_scratch *s, const moei_group *g, uint32_t expert, uint64_t from,
                           uint64_t to) {
    const moei_bank *b = g->bank;
    uint32_t end = g->start[expert + 1], n = end - g->start[expert];
    const size_t most = moei_most(b->in, b->d_in);
    uint64_t run = moei_chunk(b->in, most, n) == n ? to - from : 8;
    moei_pair v;
    moei_up_views(p, g, expert, &v);
    for (uint64_t at = from; at < to; at += run)
        for (uint32_t slot = g->start[expert]; slot < end; slot += n) {
            n = moei_chunk(b->in, most, end - slot);
            for (uint32_t i = 0; i < n; i++) s->x[i] = g->x + g->token[slot + i] * g->x_stride;
            moei_pack(b->in, s->x, n, b->d_in, s->packed);
            const uint64_t most_blocks = n > MOEI_TURNS ? b->in->up_blocks : MOEI_UP_FEW;
            for (uint64_t i = at, last = to - at < run ? to : at + run, blocks; i < last; i += blocks) {
                blocks = last - i < most_blocks ? last - i : most_blocks;
                moei_up_tokens_ahead(g, expert, (size_t)(i - from), (size_t)(i + blocks - from), (size_t)(to - from));
                moei_up_block(p, s, g, &v, (uint32_t)i, (uint32_t)blocks, slot, n);
            }
        }
}

/* The blocks whose cost begins in this task's share of the total. */
static void moei_up(const moei_plan *p, uint32_t ith, uint32_t nth) {
    moei_scratch s = moei_task_scratch(p, ith);
    uint32_t n = p->state[1];
    uint64_t total = p->work[n].begin, lo = total / nth * ith + total % nth * ith / nth, hi = total / nth * (ith + 1) + total % nth * (ith + 1) / nth;
    for (uint32_t i = 0; i < n; i++) {
        const moei_work *w = &p->work[i];
        if (w[1].begin <= lo && ith) continue;
        if (w->begin >= hi) break;
        uint64_t from = w->begin >= lo ? 0 : (lo - w->begin + w->cost - 1) / w->cost, to = (hi - w->begin + w->cost - 1) / w->cost;
        moei_up_blocks(p, &s, &p->groups[w->group], w->expert, from, to < w->blocks ? to : w->blocks);
    }
}

/* ---- down: every output element has one owner, who adds the experts in ascending id ---- */

static void moei_give_slots(const moei_plan *p, const moei_group *g, uint32_t slot, size_t first, size_t row, size_t n, const float *v) {
    float *to = p->io->slots_out + (first * p->k + g->source[slot]) * g->bank->d_in + row;
    memcpy(to, v, n * sizeof(float));
}

static void moei_down_group(const moei_plan *p, const moei_scratch *s, const moei_group *g, size_t first, size_t row, size_t n) {
    const moei_bank *b = g->bank;
    const moei_vec *v = p->layer->vec;
    int routed = g == &p->groups[0], weighted = !routed || p->layer->desc.ffn.weight_at == MOE_WEIGHT_AT_OUTPUT;
    for (uint32_t e = moei_next_expert(g, 0), next; e < b->n_experts; e = next) {
        moei_rows w, after;
        next = moei_next_expert(g, e + 1);
        moei_view(&b->down, moei_over(p, g), MOE_DOWN, e, b->d_in, b->d_ff, &w);
        w.row0 = (uint32_t)row;
        if (next < b->n_experts) {
            moei_view(&b->down, moei_over(p, g), MOE_DOWN, next, b->d_in, b->d_ff, &after);
            moei_read_next(&w, after.data + row * after.row_stride, n);
            w.next_x = g->h + g->start[next] * g->h_stride, w.next_x_bytes = (g->start[next + 1] - g->start[next]) * g->h_stride;
        }
        int affine = moei_row_affine(&b->down, moei_over(p, g), MOE_DOWN, e, b->d_in, row, n, b->d_ff, s->scale[0], s->bias[0]);
        for (uint32_t slot = g->start[e], tokens; slot < g->start[e + 1]; slot += tokens) {
            tokens = moei_chunk(b->mid, MOEI_PARTS, g->start[e + 1] - slot);
            for (uint32_t i = 0; i < tokens; i++) s->x[i] = g->h + (slot + i) * g->h_stride;
            moei_multiply(b->mid, &w, (uint32_t)n, s->x, tokens, s->out[1], n, s->panel);
            for (uint32_t i = 0; i < tokens; i++) {
                float *o = s->out[1] + i * n;
                if (affine) v->affine(o, s->scale[0], s->bias[0], n);
                if (routed && p->io->slots_out) moei_give_slots(p, g, slot + i, first, row, n, o);
                else v->axpy(s->sum + g->token[slot + i] * n, o, weighted ? g->weight[slot + i] : 1.0f, n);
            }
        }
    }
}

/* Identity experts and passed-through slots: w * x, after the real experts. */
static void moei_pass_through(const moei_plan *p, const moei_scratch *s, size_t first, size_t row, size_t n) {
    const moei_group *g = &p->groups[0];
    size_t width = g->bank->d_in;
    for (uint32_t slot = g->start[g->bank->n_experts]; slot < g->start[g->bank->n_experts + 1]; slot++) {
        const float *x = s->row;
        if (p->layer->desc.latent.d) x = p->latent_x + g->token[slot] * width + row;
        else moei_read_row(p->layer->vec, s->row, moei_x_row(p, first + g->token[slot]), p->io->x_type, row, n);
        if (p->io->slots_out) moei_give_slots(p, g, slot, first, row, n, x);
        else p->layer->vec->axpy(s->sum + g->token[slot] * n, x, g->weight[slot], n);
    }
}

/* sum = latent.out * normalised sum, the routed part of a latent layer. */
static void moei_latent_out(const moei_plan *p, const moei_scratch *s, size_t tokens, size_t row, size_t n) {
    const moe_layer *l = p->layer;
    const moe_matrix *m = &l->desc.latent.out;
    size_t d = l->desc.d_model, k = l->desc.latent.d;
    moei_rows w;
    moei_view(m, NULL, MOE_DOWN, 0, d, k, &w);
    w.row0 = (uint32_t)row;
    int affine = moei_row_affine(m, NULL, MOE_DOWN, 0, d, row, n, k, s->scale[0], s->bias[0]);
    for (size_t t = 0, part; t < tokens; t += part) {
        part = moei_chunk(l->latent_out, moei_most(l->latent_out, k), tokens - t);
        for (uint32_t i = 0; i < part; i++) s->x[i] = p->latent_row + (t + i) * p->latent_row_stride;
        moei_pack(l->latent_out, s->x, (uint32_t)part, k, s->packed);
        moei_multiply(l->latent_out, &w, (uint32_t)n, s->x, (uint32_t)part, s->sum + t * n, n, s->panel);
        for (uint32_t i = 0; i < part && affine; i++) l->vec->affine(s->sum + (t + i) * n, s->scale[0], s->bias[0], n);
    }
}

/* y = combine_scale * sum + out_bias (+ y), in the caller's type. */
static void moei_give_rows(const moei_plan *p, const moei_scratch *s, size_t first, size_t tokens, size_t row, size_t n, int whole) {
    const moe_desc *d = &p->layer->desc;
    const moe_io *io = p->io;
    int affine = whole && (d->ffn.combine_scale != 1.0f || d->ffn.out_bias.type);
    for (size_t i = 0; i < n && affine; i++) {
        s->scale[0][i] = d->ffn.combine_scale;
        s->bias[0][i] = d->ffn.out_bias.type ? moei_array_at(&d->ffn.out_bias, 0, d->d_model, row + i) : -0.0f;
    }
    for (size_t t = 0; t < tokens; t++) {
        float *v = s->sum + t * n;
        uint8_t *y = (uint8_t *)io->y + (first + t) * io->y_stride;
        if (affine) p->layer->vec->affine(v, s->scale[0], s->bias[0], n);
        if (io->y_add) {
            moei_read_row(p->layer->vec, s->row, y, io->y_type, row, n);
            for (size_t i = 0; i < n; i++) v[i] = s->row[i] + v[i];
        }
        moei_write_row(p->layer->vec, y, io->y_type, row, n, v);
    }
}

static void moei_scale_sums(const moei_scratch *s, size_t tokens, size_t n, float factor, const float *per_token, size_t stride) {
    for (size_t t = 0; t < tokens; t++) {
        float f = per_token ? per_token[t * stride] : factor;
        for (size_t i = 0; i < n && f != 1.0f; i++) s->sum[t * n + i] = s->sum[t * n + i] * f;
    }
}

/* Where the routed sum of a slice comes from: the experts, the latent projection, or the caller's partial sums. */
static void moei_routed_sum(const moei_plan *p, const moei_scratch *s, int finish, size_t first, size_t tokens, size_t row, size_t n) {
    const moe_desc *d = &p->layer->desc;
    if (finish && d->latent.d) {
        moei_latent_out(p, s, tokens, row, n);
    } else if (p->sums) {
        for (size_t t = 0; t < tokens; t++) memcpy(s->sum + t * n, p->sums + (first + t) * d->d_model + row, n * sizeof(float));
        moei_scale_sums(s, tokens, n, d->ffn.expert_out_scale, NULL, 0);
    } else {
        memset(s->sum, 0, tokens * n * sizeof(float));
        moei_down_group(p, s, &p->groups[0], first, row, n);
        moei_pass_through(p, s, first, row, n);
        if (d->expert_count == d->n_experts) moei_scale_sums(s, tokens, n, d->ffn.expert_out_scale, NULL, 0);
    }
}

static void moei_clear_slots(const moei_plan *p, size_t first, size_t tokens, size_t row, size_t n) {
    size_t width = p->layer->routed.d_in;
    for (size_t i = first * p->k; i < (first + tokens) * p->k; i++)
        if (moei_bucket(p, i) < 0) memset(p->io->slots_out + i * width + row, 0, n * sizeof(float));
}

/* DOWN without a latent space and FINISH write y; DOWN of a latent layer writes the narrow sum. */
static void moei_down(const moei_plan *p, size_t block, int finish, uint32_t ith, uint32_t nth) {
    const moe_layer *l = p->layer;
    const moe_desc *d = &l->desc;
    size_t first = block * p->block, tokens = moei_min(p->block, p->n_tokens - first), lo, hi;
    int narrow = d->latent.d && !finish, whole = !narrow && (d->expert_count == d->n_experts || p->sums);
    moei_scratch s = moei_task_scratch(p, ith);
    size_t slice = moei_slice(moei_widest_out(p), nth);
    s.sum = p->sum + ith * p->block * slice, s.out[1] = p->out + ith * moei_slots_at_once(p) * slice;
    moei_span(narrow ? d->latent.d : d->d_model, 16, ith, nth, &lo, &hi);
    for (size_t row = lo; row < hi; row += slice) {
        size_t n = moei_min(slice, hi - row);
        moei_routed_sum(p, &s, finish, first, tokens, row, n);
        if (p->io->slots_out) {
            moei_clear_slots(p, first, tokens, row, n);
            continue;
        }
        if (whole && l->shared.n_experts) {
            if (d->shared.gate_kind == MOE_SHARED_SOFTMAX2)
                moei_scale_sums(&s, tokens, n, 1.0f, p->gates + first * p->gates_per_token, p->gates_per_token);
            moei_down_group(p, &s, &p->groups[1], first, row, n);
        }
        if (!narrow || d->expert_count < d->n_experts) moei_give_rows(p, &s, first, tokens, row, n, whole);
        else
            for (size_t t = 0; t < tokens; t++) memcpy(p->latent_sum + t * d->latent.d + row, s.sum + t * n, n * sizeof(float));
    }
}

/* ---- latent ---- */

static void moei_latent_in_rows(const moei_plan *p, size_t block, uint32_t ith, uint32_t nth) {
    const moe_layer *l = p->layer;
    size_t n = moei_min(p->block, p->n_tokens - block * p->block);
    moei_project(p, l->latent_in, &l->desc.latent.in, l->desc.latent.d, l->desc.d_model, p->latent_row, p->latent_row_stride, n,
                 p->latent_x, ith, nth);
}

static void moei_latent_prepare(const moei_plan *p, size_t block, uint32_t ith, uint32_t nth) {
    size_t n = moei_min(p->block, p->n_tokens - block * p->block), d = p->layer->desc.latent.d, lo, hi;
    const moei_group *g = &p->groups[0];
    moei_span(n, 1, ith, nth, &lo, &hi);
    for (size_t t = lo; t < hi; t++) g->bank->in->prepare(g->x + t * g->x_stride, p->latent_x + t * d, 0, d, d);
}

/* RMSNorm of the narrow sum (Kimi-K3) and its preparation for latent.out. */
static void moei_latent_norm(const moei_plan *p, size_t block, uint32_t ith, uint32_t nth) {
    const moe_layer *l = p->layer;
    const moe_latent *a = &l->desc.latent;
    size_t first = block * p->block, n = moei_min(p->block, p->n_tokens - first), lo, hi;
    moei_span(n, 1, ith, nth, &lo, &hi);
    for (size_t t = lo; t < hi; t++) {
        float *v = p->latent_sum + t * a->d, sum = 0.0f;
        if (p->sums) {
            memcpy(v, p->sums + (first + t) * a->d, a->d * sizeof(float));
            for (size_t i = 0; i < a->d; i++) v[i] = v[i] * l->desc.ffn.expert_out_scale;
        }
        if (a->norm_eps > 0.0f) {
            for (size_t i = 0; i < a->d; i++) sum = moei_fma(v[i], v[i], sum);
            float mean = sum / (float)a->d, factor = 1.0f / sqrtf(mean + a->norm_eps);
            for (size_t i = 0; i < a->d; i++) v[i] = v[i] * factor * (a->norm.type ? moei_array_at(&a->norm, 0, a->d, i) : 1.0f);
        }
        l->latent_out->prepare(p->latent_row + t * p->latent_row_stride, v, 0, a->d, a->d);
    }
}

/* ---- one scheduler ---- */

/* What has to be done around a task, or NULL. */
static const moei_packing *moei_task_state(const moe_layer *l) {
    const moei_arith *const used[] = {l->routed.in, l->routed.mid, l->shared.in, l->shared.mid, l->latent_in, l->latent_out};
    for (size_t i = 0; i < MOEI_COUNT(used); i++)
        if (used[i] && used[i]->packing && used[i]->packing->begin) return used[i]->packing;
    return NULL;
}

static void moei_run_task(const moei_plan *p, uint32_t kind, size_t block, uint32_t ith, uint32_t nth) {
    switch (kind) {
    case MOEI_PREPARE_ROUTER: moei_prepare(p, block, 1, p->prepare_once, ith, nth); break;
    case MOEI_LOGITS: moei_logits(p, block, ith, nth); break;
    case MOEI_PREPARE_LOGITS: moei_prepare_logits(p, block, ith, nth); break;
    case MOEI_SELECT: moei_select_block(p, block, ith, nth); break;
    case MOEI_SETTLE: moei_settle(p); break;
    case MOEI_PREPARE: moei_prepare(p, block, 0, 1, ith, nth); break;
    case MOEI_SORT: moei_sort(p, block); break;
    case MOEI_LATENT_IN: moei_latent_in_rows(p, block, ith, nth); break;
    case MOEI_LATENT_PREPARE: moei_latent_prepare(p, block, ith, nth); break;
    case MOEI_UP: moei_up(p, ith, nth); break;
    case MOEI_DOWN: moei_down(p, block, 0, ith, nth); break;
    case MOEI_LATENT_NORM: moei_latent_norm(p, block, ith, nth); break;
    default: moei_down(p, block, 1, ith, nth); break;
    }
}
static void moei_run_phase(const moei_plan *p, uint32_t kind, size_t block, uint32_t ith, uint32_t nth) {
    const moei_packing *state = moei_task_state(p->layer);
    if (state) state->begin();
    moei_run_task(p, kind, block, ith, nth);
    if (state) state->end();
}

/* ---- a call becomes a plan ---- */

static moe_status moei_check_rows(const moe_io *io, uint32_t type, size_t *stride, size_t width, const char *field, const char *type_field) {
    size_t end, element = moei_element(type);
    if (type < MOE_TYPE_F32 || type > MOE_TYPE_BF16) return moei_fail(io->error, MOE_ERR_TYPE, type_field, type, MOE_TYPE_F32);
    if (!*stride) *stride = width * element;
    if (*stride < width * element) return moei_fail(io->error, MOE_ERR_STRIDE, field, *stride, width * element);
    if (!moei_mul(*stride, io->n_tokens, &end)) return moei_fail(io->error, MOE_ERR_OVERFLOW, field, *stride, 0);
    return MOE_OK;
}

/* What a call writes may overlap nothing else of it: other tokens' rows would change before they are read. Rows of equal stride may
   lie in each other's gaps (ids beside their weights). */
typedef struct moei_area {
    const char *field;
    const void *at;          /* NULL: not there */
    size_t n, stride, bytes; /* n rows of so many bytes each */
} moei_area;
static int moei_overlap(const moei_area *a, const moei_area *b) {
    if ((uintptr_t)a->at > (uintptr_t)b->at) return moei_overlap(b, a);
    size_t apart = (uintptr_t)b->at - (uintptr_t)a->at;
    if (apart >= (a->n - 1) * a->stride + a->bytes) return 0;
    if (a->stride != b->stride || !a->stride) return 1;
    return apart % a->stride < a->bytes || apart % a->stride + b->bytes > a->stride;
}
static moe_status moei_check_alias(const moei_plan *p) {
    const moe_io *io = &p->call;
    const moe_desc *d = &p->layer->desc;
    size_t n = io->n_tokens, ids = (size_t)p->k * 4, x = d->d_model * moei_element(io->x_type);
    size_t y = (d->expert_count < d->n_experts && !p->sums ? p->layer->routed.d_in : d->d_model) * moei_element(io->y_type);
    size_t logits = (size_t)p->layer->router_rows * 4, width = p->layer->routed.d_in * (size_t)4;
    size_t loads = ((size_t)d->n_experts + d->n_zero_experts) * 8;
    const moe_stats none = {NULL, NULL, NULL, 0, 0, 0, 0, 0, 0.0}, *stats = io->stats ? io->stats : &none;
    int rows = !p->route_only && !io->slots_out, in_place = io->x_type == io->y_type;
    enum { Y, IDS, WEIGHTS, LOGITS, SLOTS, SPACE, STATS, TOKENS, WEIGHT, SCORE, WRITTEN };
    enum { X = WRITTEN, IDS_IN, WEIGHTS_IN, LOGITS_IN, TOKEN_IDS, SUMS, ROUTER_X, ALL };
    const moei_area all[ALL] = {{"y", rows ? io->y : NULL, n, io->y_stride, y},
                                {"ids_out", io->ids_out, n, io->ids_stride, ids},
                                {"weights_out", io->weights_out, n, io->weights_stride, ids},
                                {"logits_out", io->logits_out, n, logits, logits},
                                {"slots_out", p->route_only ? NULL : io->slots_out, n * p->k, width, width},
                                {"workspace", io->workspace, 1, 0, io->workspace_size},
                                {"stats", io->stats, 1, 0, sizeof *stats},
                                {"stats.tokens", stats->tokens, 1, 0, loads},
                                {"stats.weight", stats->weight, 1, 0, loads},
                                {"stats.score", stats->score, 1, 0, loads},
                                {"x", io->x_stride ? io->x : NULL, n, io->x_stride, x}, /* no stride: it is not read */
                                {"ids_in", io->ids_in, n, io->ids_stride, ids},
                                {"weights_in", io->weights_in, n, io->weights_stride, ids},
                                {"logits_in", io->logits_in, n, logits, logits},
                                {"token_ids", io->token_ids, n, 4, 4},
                                {"sums", p->sums, n, width, width},
                                {"router_x", io->router_x, n, io->router_x_stride, x}};
    /* y: a task reads its part of a row before it writes it; ids and weights are copied first; routing has read router_x by then */
    for (size_t i = 0; i < WRITTEN; i++)
        for (size_t j = i + 1; all[i].at && j < ALL; j++) {
            int same = all[i].at == all[j].at && all[i].stride == all[j].stride;
            int allowed = (i == Y && j == ROUTER_X) || (same && ((i == Y && j == X && in_place) || (i == IDS && j == IDS_IN) ||
                          (i == WEIGHTS && j == WEIGHTS_IN) || (i == Y && j == SUMS && all[i].bytes == width)));
            if (all[j].at && !allowed && moei_overlap(&all[i], &all[j])) return moei_fail(io->error, MOE_ERR_ALIAS, all[i].field, 0, 0);
        }
    return MOE_OK;
}

static moe_status moei_check_routing_input(const moei_plan *p, int needs_logits) {
    const moe_io *io = p->io;
    const moe_router *r = &p->layer->desc.router;
    if (io->weights_in && !io->ids_in) return moei_fail(io->error, MOE_ERR_NULL, "ids_in", 0, 0);
    if (needs_logits && !io->logits_in && !r->weight.format) return moei_fail(io->error, MOE_ERR_NULL, "router.weight.data", 0, 0);
    if (r->pick != MOE_PICK_TABLE || io->ids_in) return MOE_OK;
    if (!io->token_ids) return moei_fail(io->error, MOE_ERR_TOKEN_ID, "token_ids", 0, r->table_rows);
    for (size_t t = 0; t < io->n_tokens; t++) {
        int32_t id = io->token_ids[t];
        moe_status bad = moei_table_row(&p->layer->desc, id, p->k, NULL);
        if (bad) return moei_fail(io->error, bad, bad == MOE_ERR_TOKEN_ID ? "token_ids" : "router.table", (uint64_t)(int64_t)id, r->table_rows);
    }
    return MOE_OK;
}

/* Only routed experts may be absent: what every token uses has no NULL in its lists. */
static moe_status moei_check_present(const moei_plan *p, int partial) {
    const moe_desc *d = &p->layer->desc;
    const moei_bank *b = &p->layer->shared;
    uint32_t end = !p->route_only && !partial, shared = end ? b->n_experts : 0, in = !p->route_only && !p->sums && d->latent.d;
    uint32_t gated = shared && (d->shared.gate_kind == MOE_SHARED_SIGMOID || d->shared.gate_kind == MOE_SHARED_SOFTMAX2);
    const struct { const moe_matrix *m; uint32_t n; } all[] = {
        {&d->router.weight, 1}, {&d->latent.in, in}, {&d->latent.out, end && d->latent.d}, {&b->gate, shared}, {&b->up, shared},
        {&b->down, shared}, {&d->shared.gate_weight, gated}};
    const moe_array *const arrays[] = {&d->router.input_scale, &d->latent.norm, &d->ffn.out_bias};
    moe_experts none;
    memset(&none, 0, sizeof none);
    for (size_t i = 0; i < MOEI_COUNT(all); i++)
        for (uint32_t e = 0; e < all[i].n; e++)
            if (moei_gaps(all[i].m, &none, 0, e)) return moei_fail(p->io->error, MOE_ERR_NULL, "expert", e, 0);
    for (size_t i = 0; i < MOEI_COUNT(arrays); i++)
        if (arrays[i]->type && moei_gap(NULL, arrays[i]->expert, 0)) return moei_fail(p->io->error, MOE_ERR_NULL, "expert", 0, 0);
    return MOE_OK;
}

static moe_status moei_check_io(moei_plan *p, int needs_logits) {
    moe_io *io = &p->call;
    const moe_desc *d = &p->layer->desc;
    int partial = d->expert_count < d->n_experts && !p->sums;
    size_t y_width = partial ? p->layer->routed.d_in : d->d_model, row = (size_t)p->k * 4;
    int reads_x = !p->route_only || (needs_logits && !io->logits_in && !io->router_x);
    if (reads_x && !io->x) return moei_fail(io->error, MOE_ERR_NULL, "x", 0, 0);
    if (!p->route_only && !io->y && !io->slots_out) return moei_fail(io->error, MOE_ERR_NULL, "y", 0, 0);
    if (reads_x || io->router_x) MOEI_TRY(moei_check_rows(io, io->x_type, &io->x_stride, d->d_model, "x_stride", "x_type"));
    if (io->router_x) MOEI_TRY(moei_check_rows(io, io->x_type, &io->router_x_stride, d->d_model, "router_x_stride", "x_type"));
    if (!io->ids_stride) io->ids_stride = row;
    if (!io->weights_stride) io->weights_stride = row;
    if (io->ids_stride < row) return moei_fail(io->error, MOE_ERR_STRIDE, "ids_stride", io->ids_stride, row);
    if (io->weights_stride < row) return moei_fail(io->error, MOE_ERR_STRIDE, "weights_stride", io->weights_stride, row);
    if (!p->route_only && !io->slots_out) MOEI_TRY(moei_check_rows(io, io->y_type, &io->y_stride, y_width, "y_stride", "y_type"));
    MOEI_TRY(moei_check_present(p, partial));
    return moei_check_routing_input(p, needs_logits);
}

static void moei_add_phase(uint32_t *list, uint32_t *n, int wanted, uint32_t kind) {
    if (wanted) list[(*n)++] = kind;
}

static void moei_list_phases(moei_plan *p, int needs_route, int needs_logits) {
    int latent = p->layer->desc.latent.d != 0, narrow_only = p->io->slots_out || p->layer->desc.expert_count < p->layer->desc.n_experts;
    int project = needs_logits && !p->io->logits_in, prepared = project && p->n_blocks == 1;
    p->n_route = p->n_block = 0;
    int many = p->block >= (size_t)MOEI_MANY * p->n_tasks; /* tokens of a task: enough to split the router's product by them */
    moei_add_phase(p->route_phases, &p->n_route, project && many, MOEI_PREPARE_LOGITS);
    moei_add_phase(p->route_phases, &p->n_route, project && !many, MOEI_PREPARE_ROUTER);
    moei_add_phase(p->route_phases, &p->n_route, project && !many, MOEI_LOGITS);
    moei_add_phase(p->route_phases, &p->n_route, needs_route, MOEI_SELECT);
    if (p->route_only) return;
    p->prepare_once = prepared;
    moei_add_phase(p->block_phases, &p->n_block, !prepared, MOEI_PREPARE);
    moei_add_phase(p->block_phases, &p->n_block, 1, MOEI_SORT);
    moei_add_phase(p->block_phases, &p->n_block, latent && !p->sums, MOEI_LATENT_IN);
    moei_add_phase(p->block_phases, &p->n_block, latent && !p->sums, MOEI_LATENT_PREPARE);
    moei_add_phase(p->block_phases, &p->n_block, 1, MOEI_UP);
    moei_add_phase(p->block_phases, &p->n_block, !(latent && p->sums), MOEI_DOWN);
    moei_add_phase(p->block_phases, &p->n_block, latent && (p->sums || !narrow_only), MOEI_LATENT_NORM);
    moei_add_phase(p->block_phases, &p->n_block, latent && (p->sums || !narrow_only), MOEI_FINISH);
}

static void moei_plan_sizes(moei_plan *p, const moe_layer *layer, const moe_io *io) {
    memset(p, 0, sizeof *p);
    p->layer = layer;
    p->call = *io;
    p->io = &p->call;
    p->n_tokens = io->n_tokens;
    p->k = io->ids_in && io->k ? io->k : layer->desc.top_k;
    p->n_tasks = io->n_tasks ? io->n_tasks : 1;
}

static moe_status moei_begin(moei_plan *p, const moe_layer *layer, const moe_io *io, const float *sums, int route_only) {
    moei_plan_sizes(p, layer, io);
    p->sums = sums;
    p->route_only = route_only;
    int sink = layer->desc.shared.gate_kind == MOE_SHARED_ROUTER_SINK, needs_route = !sums || sink;
    int needs_logits = needs_route && (!(io->ids_in && io->weights_in) || sink);
    MOEI_TRY(moei_check_io(p, needs_logits));
    uintptr_t at = (uintptr_t)io->workspace, base = (at + 63) & ~(uintptr_t)63;
    if (!io->workspace) return moei_fail(io->error, MOE_ERR_NULL, "workspace", 0, moe_workspace_size(layer, io->n_tokens, p->n_tasks));
    p->block = io->workspace_size > base - at ? moei_fit_block(p, io->workspace_size - (base - at)) : 0;
    if (!p->block)
        return moei_fail(io->error, MOE_ERR_WORKSPACE, "workspace_size", io->workspace_size, moe_workspace_min(layer, io->n_tokens, p->n_tasks));
    MOEI_TRY(moei_check_alias(p));
    p->n_blocks = (p->n_tokens + p->block - 1) / p->block;
    p->base = (uint8_t *)io->workspace + (base - at);
    moei_lay_out(p);
    if (sums) p->groups[0].bank = &p->none;
    if (!sums && (io->slots_out || layer->desc.expert_count < layer->desc.n_experts)) p->groups[1].bank = &p->none;
    moei_list_phases(p, needs_route, needs_logits);
    return MOE_OK;
}

static uint32_t moei_phases(const moei_plan *p) {
    return (uint32_t)(p->n_blocks * p->n_route + 1 + p->n_blocks * p->n_block);
}

/* What phase number i is. */
static uint32_t moei_phase_kind(const moei_plan *p, uint32_t i, size_t *block) {
    size_t routing = p->n_blocks * p->n_route;
    *block = 0;
    if (i < routing) {
        *block = i / p->n_route;
        return p->route_phases[i % p->n_route];
    }
    if (i == routing) return MOEI_SETTLE;
    *block = (i - routing - 1) / p->n_block;
    return p->block_phases[(i - routing - 1) % p->n_block];
}

/* How many tasks are worth it: the bookkeeping of few tokens takes less time than waking a worker. */
static uint32_t moei_phase_tasks(const moei_plan *p, uint32_t kind, uint32_t nth) {
    switch (kind) {
    case MOEI_SETTLE:
    case MOEI_SORT: return 1;
    case MOEI_SELECT:
        if (p->io->stats) return 1; /* they are added up without atomics */
        return p->block <= 16 ? 1 : nth;
    case MOEI_PREPARE_ROUTER:
    case MOEI_PREPARE:
    case MOEI_LATENT_PREPARE: return p->block <= 4 ? 1 : nth;
    default: return nth;
    }
}

typedef struct moei_job {
    const moei_plan *plan;
    uint32_t kind, nth;
    size_t block;
} moei_job;

static void moei_task(void *arg, uint32_t i) {
    const moei_job *j = (const moei_job *)arg;
    moei_run_phase(j->plan, j->kind, j->block, i, j->nth);
}

static void moei_parallel_for(const moe_parallel *parallel, uint32_t n, moei_job *job) {
    if (n > 1 && parallel && parallel->run) {
        parallel->run(parallel->user, n, moei_task, job);
        return;
    }
#if defined(MOE_USE_OPENMP) && defined(_OPENMP)
    if (n > 1) {
        int32_t count = (int32_t)n;
#pragma omp parallel for schedule(static, 1)
        for (int32_t i = 0; i < count; i++) moei_task(job, (uint32_t)i);
        return;
    }
#endif
    for (uint32_t i = 0; i < n; i++) moei_task(job, i);
}

static moe_status moei_run(const moe_layer *layer, const moe_io *io, const float *sums, int route_only) {
    moei_plan p;
    if (!layer || !io) return MOE_ERR_NULL;
    moei_fail(io->error, MOE_OK, "", 0, 0);
    if (!io->n_tokens) return MOE_OK;
    MOEI_TRY(moei_begin(&p, layer, io, sums, route_only));
    for (uint32_t i = 0, n = moei_phases(&p); i < n; i++) {
        moei_job job = {&p, 0, 0, 0};
        job.kind = moei_phase_kind(&p, i, &job.block);
        job.nth = moei_phase_tasks(&p, job.kind, p.n_tasks);
        moei_parallel_for(io->parallel, job.nth, &job);
        if (job.kind == MOEI_SETTLE && p.state[0]) return (moe_status)p.state[0];
    }
    return MOE_OK;
}

/* ==== >>api: the rest of the public functions ========================================================================== */

MOE_API moe_status moe_forward(const moe_layer *layer, const moe_io *io) { return moei_run(layer, io, NULL, 0); }
MOE_API moe_status moe_route(const moe_layer *layer, const moe_io *io) { return moei_run(layer, io, NULL, 1); }
MOE_API moe_status moe_finish(const moe_layer *layer, const moe_io *io, const float *sums) {
    if (!sums && io && io->n_tokens) return moei_fail(io->error, MOE_ERR_NULL, "sums", 0, 0);
    return moei_run(layer, io, sums, 0);
}

MOE_API uint32_t moe_phase_count(const moe_layer *layer, const moe_io *io) {
    moei_plan p;
    moe_io quiet;
    if (!layer || !io || !io->n_tokens) return 0;
    quiet = *io;
    quiet.error = NULL;
    return moei_begin(&p, layer, &quiet, NULL, 0) ? 1 : moei_phases(&p); /* the one phase reports the error */
}

MOE_API moe_status moe_phase_run(const moe_layer *layer, const moe_io *io, uint32_t phase, uint32_t ith, uint32_t nth) {
    moei_plan p;
    moe_io call;
    size_t block;
    if (!layer || !io) return MOE_ERR_NULL;
    call = *io;
    if (ith) call.error = NULL; /* one worker reports */
    if (!io->n_tokens) return MOE_OK;
    MOEI_TRY(moei_begin(&p, layer, &call, NULL, 0));
    if (!nth || nth > p.n_tasks || ith >= nth) return moei_fail(call.error, MOE_ERR_PHASE, "nth", nth, p.n_tasks);
    if (phase >= moei_phases(&p)) return moei_fail(call.error, MOE_ERR_PHASE, "phase", phase, moei_phases(&p));
    uint32_t kind = moei_phase_kind(&p, phase, &block), tasks = moei_phase_tasks(&p, kind, nth);
    int settled = phase > p.n_blocks * p.n_route;
    if (settled && p.state[0]) return (moe_status)p.state[0];
    if (tasks == 1 && ith) return MOE_OK;
    moei_run_phase(&p, kind, block, ith, tasks);
    return kind == MOEI_SETTLE ? (moe_status)p.state[0] : MOE_OK;
}

MOE_API uint32_t moe_layer_tier(const moe_layer *layer) { return layer ? layer->tier : (uint32_t)MOE_TIER_C; }
MOE_API uint32_t moe_layer_compute(const moe_layer *layer, uint32_t matrix) {
    if (!layer || !layer->routed.in) return MOE_COMPUTE_DEFAULT;
    return matrix == MOE_DOWN ? layer->routed.mid->compute : layer->routed.in->compute;
}

#ifdef __cplusplus
}
#endif
#ifdef MOEI_OPTIMIZE
#pragma GCC pop_options
#endif
#endif /* MOEI_ONCE */
#endif /* MOE_IMPLEMENTATION */

/*
   MIT License

   Copyright (c) 2026 the moe.h authors

   Permission is hereby granted, free of charge, to any person obtaining a copy
   of this software and associated documentation files (the "Software"), to deal
   in the Software without restriction, including without limitation the rights
   to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
   copies of the Software, and to permit persons to whom the Software is
   furnished to do so, subject to the following conditions:

   The above copyright notice and this permission notice shall be included in all
   copies or substantial portions of the Software.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
   IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
   FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
   AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
   LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
   SOFTWARE.
*/
