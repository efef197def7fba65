/* avx512_emulation.h: the instructions of AVX-512 (F, BW, DQ, VL, VBMI, VNNI, BF16) and AVX-VNNI that moe.h uses, by those of AVX2,
   so that its tiers avxvnni, avx512, vnni and avx512bf16 run on any processor with AVX2 and under sanitizers. Masked loads and
   stores touch what their mask names and nothing else; what an instruction leaves undefined is set to ones; BF16's arithmetic is
   what Intel's manual says (subnormals are zeros, each step is fused).
   gcc -std=gnu11 -O2 -I. -Itests -include tests/avx512_emulation.h ... (not clang, whose vectors of 64 bytes want the target) */
#ifndef AVX512_EMULATION_H
#define AVX512_EMULATION_H
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#pragma GCC diagnostic ignored "-Wpsabi"
#undef _mm512_setr_epi32
#undef _mm512_setr_epi64
#undef _mm256_dpbusd_epi32

typedef union emu {
    __m512 f;
    __m512i i;
    __m512bh h;
    __m256 f256[2];
    __m256i i256[2];
    __m128 f128[4];
    __m128i i128[4];
    float f32[16];
    uint8_t u8[64];
    int8_t s8[64];
    uint16_t u16[32];
    int16_t s16[32];
    uint32_t u32[16];
    int32_t s32[16];
    uint64_t u64[8];
} emu;
/* Not inlined: moe.h's kernels would take minutes to compile. */
#define EMU(type) static __attribute__((noinline, unused, target("avx2,fma,f16c"))) type
EMU(emu) emu_i(__m512i v) {
    emu e;
    e.i = v;
    return e;
}
EMU(emu) emu_f(__m512 v) {
    emu e;
    e.f = v;
    return e;
}
EMU(emu) emu_ones(void) {
    emu e;
    memset(&e, 0xff, sizeof e);
    return e;
}
EMU(emu) emu_y(__m256i v) {
    emu e = emu_ones();
    e.i256[0] = v;
    return e;
}

/* ---- half by half ---- */

#define EMU_BOTH(name, type, v512, v256, op)                                                                         \
    EMU(type) emu_##name(type a, type b) {                                                                           \
        emu x, y;                                                                                                    \
        x.v512 = a, y.v512 = b;                                                                                      \
        for (int n = 0; n < 2; n++) x.v256[n] = op(x.v256[n], y.v256[n]);                                            \
        return x.v512;                                                                                               \
    }
#define EMU_I(name, op) EMU_BOTH(name, __m512i, i, i256, op)
#define EMU_F(name)     EMU_BOTH(name, __m512, f, f256, _mm256_##name)
#define EMU_ZERO        ((__m512i)(__v8di){0})
#define _mm512_add_ps   emu_add_ps
EMU_F(add_ps)
#define _mm512_sub_ps emu_sub_ps
EMU_F(sub_ps)
#define _mm512_mul_ps emu_mul_ps
EMU_F(mul_ps)
#define _mm512_div_ps emu_div_ps
EMU_F(div_ps)
#define _mm512_max_ps emu_max_ps
EMU_F(max_ps)
#define _mm512_min_ps emu_min_ps
EMU_F(min_ps)
#define _mm512_xor_ps emu_xor_ps
EMU_F(xor_ps)
#define _mm512_add_epi8 emu_add_epi8
EMU_I(add_epi8, _mm256_add_epi8)
#define _mm512_add_epi16 emu_add_epi16
EMU_I(add_epi16, _mm256_add_epi16)
#define _mm512_add_epi32 emu_add_epi32
EMU_I(add_epi32, _mm256_add_epi32)
#define _mm512_add_epi64 emu_add_epi64
EMU_I(add_epi64, _mm256_add_epi64)
#define _mm512_sub_epi8 emu_sub_epi8
EMU_I(sub_epi8, _mm256_sub_epi8)
#define _mm512_sub_epi16 emu_sub_epi16
EMU_I(sub_epi16, _mm256_sub_epi16)
#define _mm512_sub_epi32 emu_sub_epi32
EMU_I(sub_epi32, _mm256_sub_epi32)
#define _mm512_sub_epi64 emu_sub_epi64
EMU_I(sub_epi64, _mm256_sub_epi64)
#define _mm512_and_si512 emu_and_si512
EMU_I(and_si512, _mm256_and_si256)
#define _mm512_or_si512 emu_or_si512
EMU_I(or_si512, _mm256_or_si256)
#define _mm512_xor_si512 emu_xor_si512
EMU_I(xor_si512, _mm256_xor_si256)
#define _mm512_max_epi32 emu_max_epi32
EMU_I(max_epi32, _mm256_max_epi32)
#define _mm512_min_epi32 emu_min_epi32
EMU_I(min_epi32, _mm256_min_epi32)
#define _mm512_madd_epi16 emu_madd_epi16
EMU_I(madd_epi16, _mm256_madd_epi16)
#define _mm512_mullo_epi16 emu_mullo_epi16
EMU_I(mullo_epi16, _mm256_mullo_epi16)
#define _mm512_mullo_epi32 emu_mullo_epi32
EMU_I(mullo_epi32, _mm256_mullo_epi32)
#define _mm512_packs_epi32 emu_packs_epi32
EMU_I(packs_epi32, _mm256_packs_epi32)
#define _mm512_shuffle_epi8 emu_shuffle_epi8
EMU_I(shuffle_epi8, _mm256_shuffle_epi8)
#define _mm512_unpacklo_epi8 emu_unpacklo_epi8
EMU_I(unpacklo_epi8, _mm256_unpacklo_epi8)
#define _mm512_unpackhi_epi8 emu_unpackhi_epi8
EMU_I(unpackhi_epi8, _mm256_unpackhi_epi8)
#define _mm512_unpacklo_epi32 emu_unpacklo_epi32
EMU_I(unpacklo_epi32, _mm256_unpacklo_epi32)
#define _mm512_unpackhi_epi32 emu_unpackhi_epi32
EMU_I(unpackhi_epi32, _mm256_unpackhi_epi32)
#define _mm512_unpacklo_epi64 emu_unpacklo_epi64
EMU_I(unpacklo_epi64, _mm256_unpacklo_epi64)
#define _mm512_unpackhi_epi64 emu_unpackhi_epi64
EMU_I(unpackhi_epi64, _mm256_unpackhi_epi64)
#define _mm512_sllv_epi32 emu_sllv_epi32
EMU_I(sllv_epi32, _mm256_sllv_epi32)
#define _mm512_srlv_epi32 emu_srlv_epi32
EMU_I(srlv_epi32, _mm256_srlv_epi32)
#define _mm512_srlv_epi64 emu_srlv_epi64
EMU_I(srlv_epi64, _mm256_srlv_epi64)
#define EMU_COUNT(name)                                                                                              \
    EMU(__m512i) emu_##name(__m512i v, int n) {                                                                      \
        emu x = emu_i(v);                                                                                            \
        x.i256[0] = _mm256_##name(x.i256[0], n), x.i256[1] = _mm256_##name(x.i256[1], n);                            \
        return x.i;                                                                                                  \
    }
#define _mm512_slli_epi16(v, n) emu_slli_epi16(v, (int)(n))
EMU_COUNT(slli_epi16)
#define _mm512_srli_epi16(v, n) emu_srli_epi16(v, (int)(n))
EMU_COUNT(srli_epi16)
#define _mm512_slli_epi32(v, n) emu_slli_epi32(v, (int)(n))
EMU_COUNT(slli_epi32)
#define _mm512_srli_epi32(v, n) emu_srli_epi32(v, (int)(n))
EMU_COUNT(srli_epi32)
#define _mm512_srai_epi32(v, n) emu_srai_epi32(v, (int)(n))
EMU_COUNT(srai_epi32)
#define _mm256_rorv_epi32 emu_rorv32
EMU(__m256i) emu_rorv32(__m256i v, __m256i n) { /* shifts by 32 or more give zeros */
    n = _mm256_and_si256(n, _mm256_set1_epi32(31));
    return _mm256_or_si256(_mm256_srlv_epi32(v, n), _mm256_sllv_epi32(v, _mm256_sub_epi32(_mm256_set1_epi32(32), n)));
}
EMU(__m256i) emu_rorv64(__m256i v, __m256i n) {
    n = _mm256_and_si256(n, _mm256_set1_epi64x(63));
    return _mm256_or_si256(_mm256_srlv_epi64(v, n),
                           _mm256_sllv_epi64(v, _mm256_sub_epi64(_mm256_set1_epi64x(64), n)));
}
#define _mm512_rorv_epi32 emu_rorv_epi32
EMU_I(rorv_epi32, emu_rorv32)
#define _mm512_rorv_epi64 emu_rorv_epi64
EMU_I(rorv_epi64, emu_rorv64)
#define _mm512_ror_epi32(v, n)  emu_rorv_epi32(v, _mm512_set1_epi32(n))
#define _mm512_rol_epi32(v, n)  emu_rorv_epi32(v, _mm512_set1_epi32(-(n)))
#define _mm512_shuffle_ps       emu_shuffle_ps
#define _mm512_permute_ps(v, n) emu_shuffle_ps(v, v, n)
EMU(__m512) emu_shuffle_ps(__m512 a, __m512 b, int n) { /* in each quarter two of a and two of b */
    emu x = emu_f(a), y = emu_f(b), e;
    for (int i = 0; i < 16; i++) e.f32[i] = (i & 2 ? y : x).f32[(i & ~3) + (n >> 2 * (i & 3) & 3)];
    return e.f;
}

#define _mm512_fmadd_ps emu_fmadd
EMU(__m512) emu_fmadd(__m512 a, __m512 b, __m512 c) {
    emu x = emu_f(a), y = emu_f(b), z = emu_f(c);
    for (int n = 0; n < 2; n++) z.f256[n] = _mm256_fmadd_ps(x.f256[n], y.f256[n], z.f256[n]);
    return z.f;
}
#define _mm256_ternarylogic_epi32 emu_ternary256
#define _mm512_ternarylogic_epi32 emu_ternary
EMU(__m256i) emu_ternary256(__m256i a, __m256i b, __m256i c, int table) { /* bit 4 a + 2 b + c of the table */
    __m256i r = _mm256_setzero_si256(), ones = _mm256_set1_epi32(-1);
    for (int i = 0; i < 8; i++) {
        if (!(table >> i & 1)) continue;
        __m256i x = i & 4 ? a : _mm256_xor_si256(a, ones), y = i & 2 ? b : _mm256_xor_si256(b, ones);
        __m256i z = i & 1 ? c : _mm256_xor_si256(c, ones);
        r = _mm256_or_si256(r, _mm256_and_si256(x, _mm256_and_si256(y, z)));
    }
    return r;
}
EMU(__m512i) emu_ternary(__m512i a, __m512i b, __m512i c, int table) {
    emu x = emu_i(a), y = emu_i(b), z = emu_i(c);
    for (int n = 0; n < 2; n++) z.i256[n] = emu_ternary256(x.i256[n], y.i256[n], z.i256[n], table);
    return z.i;
}

/* ---- constants, casts, loads and stores ---- */

#define _mm512_setzero_si512()    EMU_ZERO
#define _mm512_setzero_ps()       ((__m512)EMU_ZERO)
#define _mm512_set1_epi8(v)       emu_same(_mm256_set1_epi8(v))
#define _mm512_set1_epi16(v)      emu_same(_mm256_set1_epi16(v))
#define _mm512_set1_epi32(v)      emu_same(_mm256_set1_epi32(v))
#define _mm512_set1_epi64(v)      emu_same(_mm256_set1_epi64x(v))
#define _mm512_set1_ps(v)         ((__m512)emu_same((__m256i)_mm256_set1_ps(v)))
#define _mm512_setr_epi32(...)    ((__m512i)(__v16si){__VA_ARGS__})
#define _mm512_setr_epi64(...)    ((__m512i)(__v8di){__VA_ARGS__})
#define _mm512_set_epi16(...)     emu_reverse((__m512i)(__v32hi){__VA_ARGS__})
#define _mm512_broadcast_i64x4    emu_same
#define _mm512_broadcast_f32x8(v) ((__m512)emu_same((__m256i)(v)))
#define _mm512_broadcast_i32x4(v) emu_same(_mm256_broadcastsi128_si256(v))
EMU(__m512i) emu_same(__m256i v) {
    emu e;
    e.i256[0] = e.i256[1] = v;
    return e.i;
}
EMU(__m512i) emu_reverse(__m512i v) {
    emu e, from = emu_i(v);
    for (int i = 0; i < 32; i++) e.u16[i] = from.u16[31 - i];
    return e.i;
}
#define _mm512_castps_si512(v)          ((__m512i)(v))
#define _mm512_castsi512_ps(v)          ((__m512)(v))
#define _mm512_castsi512_si256(v)       (emu_i(v).i256[0])
#define _mm512_castps512_ps256(v)       (emu_f(v).f256[0])
#define _mm512_castsi512_si128(v)       (emu_i(v).i128[0])
#define _mm512_castsi256_si512(v)       (emu_y(v).i)
#define _mm512_castps256_ps512(v)       (emu_y((__m256i)(v)).f)
#define _mm512_castsi128_si512(v)       emu_put128(emu_ones().i, v, 0)
#define _mm512_castps128_ps512(v)       ((__m512)emu_put128(emu_ones().i, (__m128i)(v), 0))
#define _mm512_extractf32x8_ps(v, n)    (emu_f(v).f256[n])
#define _mm512_extracti64x4_epi64(v, n) (emu_i(v).i256[n])
#define _mm512_insertf32x8(v, y, n)     ((__m512)emu_put256((__m512i)(v), (__m256i)(y), n))
#define _mm512_inserti64x4              emu_put256
#define _mm512_inserti32x4              emu_put128
EMU(__m512i) emu_put128(__m512i v, __m128i x, int n) {
    emu e = emu_i(v);
    e.i128[n] = x;
    return e.i;
}
EMU(__m512i) emu_put256(__m512i v, __m256i y, int n) {
    emu e = emu_i(v);
    e.i256[n] = y;
    return e.i;
}
#define _mm512_loadu_si512     emu_load
#define _mm512_loadu_ps(p)     ((__m512)emu_load(p))
#define _mm512_storeu_si512    emu_store
#define _mm512_storeu_ps(p, v) emu_store(p, (__m512i)(v))
EMU(__m512i) emu_load(const void *p) {
    emu e;
    memcpy(&e, p, 64);
    return e.i;
}
EMU(void) emu_store(void *p, __m512i v) { memcpy(p, &v, 64); }
/* What is at p where the mask says so, and `other` elsewhere. */
EMU(emu) emu_some(emu other, uint64_t mask, const void *p, int n, size_t size) {
    for (int i = 0; i < n; i++)
        if (mask >> i & 1) memcpy(other.u8 + (size_t)i * size, (const uint8_t *)p + (size_t)i * size, size);
    return other;
}
EMU(void) emu_put_some(void *p, uint64_t mask, emu e, int n, size_t size) {
    for (int i = 0; i < n; i++)
        if (mask >> i & 1) memcpy((uint8_t *)p + (size_t)i * size, e.u8 + (size_t)i * size, size);
}
#define _mm512_maskz_loadu_ps(m, p)       (emu_some(emu_i(EMU_ZERO), m, p, 16, 4).f)
#define _mm512_maskz_loadu_epi16(m, p)    (emu_some(emu_i(EMU_ZERO), m, p, 32, 2).i)
#define _mm512_maskz_loadu_epi8(m, p)     (emu_some(emu_i(EMU_ZERO), m, p, 64, 1).i)
#define _mm512_mask_loadu_epi8(v, m, p)   (emu_some(emu_i(v), m, p, 64, 1).i)
#define _mm256_maskz_loadu_epi16(m, p)    (emu_some(emu_i(EMU_ZERO), m, p, 16, 2).i256[0])
#define _mm_mask_loadu_epi8(v, m, p)      (emu_some(emu_i(emu_put128(EMU_ZERO, v, 0)), m, p, 16, 1).i128[0])
#define _mm512_mask_storeu_ps(p, m, v)    emu_put_some(p, m, emu_f(v), 16, 4)
#define _mm512_mask_storeu_epi32(p, m, v) emu_put_some(p, m, emu_i(v), 16, 4)
#define _mm256_mask_storeu_epi32(p, m, v) emu_put_some(p, m, emu_y(v), 8, 4)

/* ---- masks ---- */

#define _mm512_mask_mov_ps(v, m, w)       (emu_some(emu_f(v), m, emu_f(w).u8, 16, 4).f)
#define _mm512_mask_mov_epi16(v, m, w)    (emu_some(emu_i(v), m, emu_i(w).u8, 32, 2).i)
#define _mm512_maskz_slli_epi32(m, v, n)  (emu_some(emu_i(EMU_ZERO), m, emu_i(_mm512_slli_epi32(v, n)).u8, 16, 4).i)
#define _mm512_mask_add_epi16(v, m, a, b) _mm512_mask_mov_epi16(v, m, _mm512_add_epi16(a, b))
#define _mm512_mask_add_epi8(v, m, a, b)  (emu_some(emu_i(v), m, emu_i(_mm512_add_epi8(a, b)).u8, 64, 1).i)
#define _mm256_mask_mov_ps(v, m, w)       ((__m256)emu_some(emu_y((__m256i)(v)), m, emu_y((__m256i)(w)).u8, 8, 4).i256[0])
#define _mm256_mask_blend_epi16(m, v, w)  (emu_some(emu_y(v), m, emu_y(w).u8, 16, 2).i256[0])
#define _mm256_maskz_div_ps(m, a, b)      _mm256_mask_mov_ps(_mm256_setzero_ps(), m, _mm256_div_ps(a, b))
#define _mm256_cmp_ps_mask(a, b, op)      ((__mmask8)_mm256_movemask_ps(_mm256_cmp_ps(a, b, op)))
#define _mm256_cmpgt_epi32_mask(a, b)     ((__mmask8)_mm256_movemask_ps((__m256)_mm256_cmpgt_epi32(a, b)))
EMU(uint64_t) emu_bits8(__m512i v) { /* the top bits of bytes */
    emu e = emu_i(v);
    return (uint32_t)_mm256_movemask_epi8(e.i256[0]) | (uint64_t)(uint32_t)_mm256_movemask_epi8(e.i256[1]) << 32;
}
EMU(uint64_t) emu_bits(__m512i v, int size) { /* of elements that are all ones or all zeros */
    uint64_t bytes = emu_bits8(v), bits = 0;
    for (int i = 0; i < 64 / size; i++) bits |= (bytes >> size * i & 1) << i;
    return bits;
}
#define _mm512_cmpeq_epi16_mask(a, b) ((__mmask32)emu_bits(emu_equal16(a, b), 2))
EMU_I(equal16, _mm256_cmpeq_epi16)
#define _mm512_cmpeq_epi32_mask(a, b)  ((__mmask16)emu_bits(emu_equal32(a, b), 4))
#define _mm512_cmpneq_epi32_mask(a, b) ((__mmask16)~_mm512_cmpeq_epi32_mask(a, b))
EMU_I(equal32, _mm256_cmpeq_epi32)
#define _mm512_test_epi16_mask(a, b) ((__mmask32)~emu_bits(emu_equal16(_mm512_and_si512(a, b), EMU_ZERO), 2))
#define _mm512_test_epi8_mask(a, b)  ((__mmask64)~emu_bits8(emu_equal8(_mm512_and_si512(a, b), EMU_ZERO)))
EMU_I(equal8, _mm256_cmpeq_epi8)
#define _mm512_cmpgt_epu32_mask emu_above
EMU(__mmask16) emu_above(__m512i a, __m512i b) {
    emu x = emu_i(a), y = emu_i(b);
    uint32_t m = 0;
    for (int i = 0; i < 16; i++) m |= (uint32_t)(x.u32[i] > y.u32[i]) << i;
    return (__mmask16)m;
}

/* ---- across the halves ---- */

#define EMU_PICK(name, field, n)                                                                                     \
    EMU(__m512i) emu_pick_##name(__m512i a, __m512i from, __m512i b) {                                               \
        emu x = emu_i(a), y = emu_i(b), f = emu_i(from), e;                                                          \
        for (int i = 0; i < n; i++)                                                                                  \
            e.field[i] = (f.field[i] & n) != 0 ? y.field[f.field[i] & (n - 1)] : x.field[f.field[i] & (n - 1)];      \
        return e.i;                                                                                                  \
    }
EMU_PICK(8, u8, 64)
EMU_PICK(16, u16, 32)
EMU_PICK(32, u32, 16)
EMU_PICK(64, u64, 8)
#define _mm512_permutex2var_epi8                     emu_pick_8
#define _mm512_permutex2var_epi16                    emu_pick_16
#define _mm512_permutex2var_epi32                    emu_pick_32
#define _mm512_permutex2var_epi64                    emu_pick_64
#define _mm512_permutexvar_epi16(from, a)            emu_pick_16(a, from, a)
#define _mm512_permutexvar_epi64(from, a)            emu_pick_64(a, from, a)
#define _mm512_permutexvar_ps(from, a)               ((__m512)emu_pick_32((__m512i)(a), from, (__m512i)(a)))
#define _mm512_mask_permutexvar_epi16(v, m, from, a) _mm512_mask_mov_epi16(v, m, _mm512_permutexvar_epi16(from, a))
#define _mm512_maskz_permutexvar_epi16(m, from, a)   _mm512_mask_permutexvar_epi16(EMU_ZERO, m, from, a)
#define _mm512_shuffle_i32x4                         emu_quarters
#define _mm512_shuffle_i64x2                         emu_quarters
#define _mm512_shuffle_f32x4(a, b, n)                ((__m512)emu_quarters((__m512i)(a), (__m512i)(b), n))
EMU(__m512i) emu_quarters(__m512i a, __m512i b, int n) {
    emu x = emu_i(a), y = emu_i(b), e;
    for (int i = 0; i < 4; i++) e.i128[i] = i < 2 ? x.i128[n >> 2 * i & 3] : y.i128[n >> 2 * i & 3];
    return e.i;
}

/* ---- conversions ---- */

#define _mm512_cvtepi32_ps emu_cvtepi32_ps
EMU(__m512) emu_cvtepi32_ps(__m512i v) {
    emu x = emu_i(v);
    for (int n = 0; n < 2; n++) x.f256[n] = _mm256_cvtepi32_ps(x.i256[n]);
    return x.f;
}
EMU(__m512i) emu_two(__m256i a, __m256i b) {
    emu e;
    e.i256[0] = a, e.i256[1] = b;
    return e.i;
}
EMU(__m128i) emu_upper(__m128i v) { return _mm_unpackhi_epi64(v, v); }
#define EMU_WIDEN(name)                                                                                              \
    EMU(__m512i) emu_##name(__m128i v) { return emu_two(_mm256_##name(v), _mm256_##name(emu_upper(v))); }
EMU_WIDEN(cvtepu8_epi32)
EMU_WIDEN(cvtepi8_epi32)
#define EMU_WIDEN2(name)                                                                                             \
    EMU(__m512i) emu_##name(__m256i v) {                                                                             \
        return emu_two(_mm256_##name(_mm256_castsi256_si128(v)), _mm256_##name(_mm256_extracti128_si256(v, 1)));     \
    }
EMU_WIDEN2(cvtepu8_epi16)
EMU_WIDEN2(cvtepi8_epi16)
EMU_WIDEN2(cvtepu16_epi32)
#define _mm512_cvtepu8_epi32  emu_cvtepu8_epi32
#define _mm512_cvtepi8_epi32  emu_cvtepi8_epi32
#define _mm512_cvtepu8_epi16  emu_cvtepu8_epi16
#define _mm512_cvtepi8_epi16  emu_cvtepi8_epi16
#define _mm512_cvtepu16_epi32 emu_cvtepu16_epi32
#define _mm512_cvtepi32_epi8  emu_to_8
#define _mm512_cvtepi32_epi16 emu_to_16
EMU(__m128i) emu_to_8(__m512i v) { /* the low bits, not saturated */
    emu x = emu_i(v), e;
    for (int i = 0; i < 16; i++) e.u8[i] = (uint8_t)x.u32[i];
    return e.i128[0];
}
EMU(__m256i) emu_to_16(__m512i v) {
    emu x = emu_i(v), e;
    for (int i = 0; i < 16; i++) e.u16[i] = (uint16_t)x.u32[i];
    return e.i256[0];
}
#define _mm512_cvtph_ps emu_half
EMU(__m512) emu_half(__m256i v) {
    emu e;
    e.f256[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(v)),
    e.f256[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1));
    return e.f;
}
#define _mm512_scalef_ps emu_scale
EMU(__m512) emu_scale(__m512 a, __m512 b) { /* a 2^floor(b), rounded once */
    emu x = emu_f(a), y = emu_f(b);
    for (int i = 0; i < 16; i++) {
        double n = __builtin_floor((double)y.f32[i]);
        if (n != n) x.f32[i] = y.f32[i];
        else x.f32[i] = (float)__builtin_ldexp((double)x.f32[i], n > 512 ? 512 : n < -512 ? -512 : (int)n);
    }
    return x.f;
}
EMU(__m128i) emu_srlv16(__m128i v, __m128i n) {
    emu x, y;
    x.i128[0] = v, y.i128[0] = n;
    for (int i = 0; i < 8; i++) x.u16[i] = (uint16_t)(y.u16[i] > 15 ? 0 : x.u16[i] >> y.u16[i]);
    return x.i128[0];
}
#define _mm_srlv_epi16 emu_srlv16

/* ---- dot products ---- */

EMU(__m256i) emu_dpbusd(__m256i s, __m256i u, __m256i v) { /* 7 bits and 1: twice 127 x 128 fits 16 */
    const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(u, _mm256_set1_epi8(127)), v);
    const __m256i high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(u, 7), _mm256_set1_epi8(1)), v);
    s = _mm256_add_epi32(s, _mm256_madd_epi16(high, _mm256_set1_epi16(128)));
    return _mm256_add_epi32(s, _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
}
#define _mm256_dpbusd_epi32     emu_dpbusd
#define _mm256_dpbusd_avx_epi32 emu_dpbusd
#define _mm512_dpbusd_epi32     emu_dpbusd512
EMU(__m512i) emu_dpbusd512(__m512i s, __m512i u, __m512i v) {
    emu x = emu_i(s), y = emu_i(u), z = emu_i(v);
    for (int n = 0; n < 2; n++) x.i256[n] = emu_dpbusd(x.i256[n], y.i256[n], z.i256[n]);
    return x.i;
}
#define _mm512_dpwssd_epi32(s, u, v) _mm512_add_epi32(s, _mm512_madd_epi16(u, v))
#define _mm256_dpbf16_ps(s, w, v)    emu_dpbf16(s, (__m256i)(w), (__m256i)(v))
#define _mm512_dpbf16_ps(s, w, v)    emu_dpbf16_512(s, (__m512i)(w), (__m512i)(v))
EMU(__m256) emu_dpbf16(__m256 s, __m256i w, __m256i v) { /* the odd products first */
    const __m256i top = _mm256_set1_epi32(-65536);
    const __m256i w0 = _mm256_slli_epi32(w, 16), w1 = _mm256_and_si256(w, top), v0 = _mm256_slli_epi32(v, 16),
                  v1 = _mm256_and_si256(v, top);
    const unsigned mode = _mm_getcsr(),
                   zeros = 0x9fc0; /* round to nearest, subnormals in and out are zeros, no exceptions */
    __asm__ volatile(
        "ldmxcsr %[zeros]\n\tvfmadd231ps %[w1], %[v1], %[s]\n\tvfmadd231ps %[w0], %[v0], %[s]\n\tldmxcsr %[mode]"
        : [s] "+x"(s)
        : [w0] "x"(w0), [w1] "x"(w1), [v0] "x"(v0), [v1] "x"(v1), [mode] "m"(mode), [zeros] "m"(zeros));
    return s;
}
EMU(__m512) emu_dpbf16_512(__m512 s, __m512i w, __m512i v) {
    emu x = emu_f(s), y = emu_i(w), z = emu_i(v);
    for (int n = 0; n < 2; n++) x.f256[n] = emu_dpbf16(x.f256[n], y.i256[n], z.i256[n]);
    return x.f;
}
#define _mm512_cvtne2ps_pbh(high, low) ((__m512bh)emu_two(emu_to_bf16(low), emu_to_bf16(high)))
#define _mm256_cvtne2ps_pbh(high, low)                                                                               \
    ((__m256bh)_mm512_castsi512_si256(                                                                               \
        emu_same(emu_to_bf16(_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)))))
EMU(__m256i) emu_to_bf16(__m512 v) {
    emu x = emu_f(v), e;
    for (int i = 0; i < 16; i++) {
        uint32_t u = x.u32[i], a = u & 0x7fffffffu;
        if (a > 0x7f800000u) u |= 0x400000u;
        else if (a < 0x00800000u) u &= 0x80000000u;
        else u += 0x7fff + (u >> 16 & 1);
        e.u16[i] = (uint16_t)(u >> 16);
    }
    return e.i256[0];
}

/* ---- into moe.h ---- */

#define MOEI_AVX512_TARGET(more) MOEI_TARGET("avx2,fma,f16c")
#ifndef EMULATED_TRAITS
#define EMULATED_TRAITS MOEI_VBMI
#endif
#define MOEI_TIERS_EMULATED                                                                                          \
    (EMULATED_TRAITS | (MOEI_TIERS_BUILT & (MOE_TIER_BIT(MOE_TIER_AVXVNNI) | MOE_TIER_BIT(MOE_TIER_AVX512) |         \
                                            MOE_TIER_BIT(MOE_TIER_VNNI) | MOE_TIER_BIT(MOE_TIER_AVX512BF16))))
#endif
