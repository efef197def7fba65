/* Made by test_invariance --print: do not edit. Hashes of a fixed computation; 0 = no such compute. */
#ifndef HASHES_H
#define HASHES_H

#include <stdint.h>

typedef struct stored_hash {
    const char *format;
    uint64_t f32, q8, bf16[2]; /* bf16: on avx512bf16, on neonbf16 */
} stored_hash;

/* clang-format off */
static const stored_hash stored_hashes[] = {
    {"f32", 0x66b7ce21b92b2300u, 0x0000000000000000u, {0xa84dffc943cee61au, 0xe9bafedc3b3f60b3u}},
    {"f16", 0x604b7412f723d4a0u, 0x0000000000000000u, {0xb26b9733cc2e14edu, 0x34321962f812e882u}},
    {"bf16", 0x94955e6777ffd654u, 0x0000000000000000u, {0x587edd427562b2d0u, 0x3acd0a0a0efba9fbu}},
    {"q8_0", 0xc1d7b9156188bc5cu, 0x8749da4b32f8e886u, {0x16f7f4e212ee32dbu, 0x379b65baa4abab6fu}},
    {"q4_0", 0xebd335399b8700d1u, 0x16131618fbe508cau, {0xd3e46aa4d2f20a7fu, 0x91bc4b2a20834723u}},
    {"q4_1", 0x62ddac46df882ec1u, 0x992303db440afe48u, {0xc08e026b5ff28ec3u, 0x9817bb7c97f538d4u}},
    {"q5_0", 0xa8870e198812c8c7u, 0xdcf4716fe63ff0ebu, {0xce6c0e96a687e73fu, 0x2b9a994ba43cfde4u}},
    {"q5_1", 0xb4e784ef350b18b6u, 0xda2624412327b3b7u, {0x1344e120b47e2cbfu, 0x65222f00973d68a6u}},
    {"q2_K", 0x310d7a0d91a52486u, 0xc4aa7698403ad8efu, {0x1a325550ddba1202u, 0xeb11e51296d615f8u}},
    {"q3_K", 0x8e0414aee74219aau, 0xc722e942a7296ca3u, {0xedf1660ba739ca31u, 0xe9e43a353584da48u}},
    {"q4_K", 0x7218a41d8e7b46a5u, 0xcce3999440c3942bu, {0xce176052d244155fu, 0x13135d6509ebb4ddu}},
    {"q5_K", 0xb79fefc0da7a74ddu, 0x7ab9fa579e1663efu, {0x8df52d18d5a8306fu, 0xbc5d294beda25d6cu}},
    {"q6_K", 0x25b3e4f83471fd3fu, 0x229d2907e4e4f76bu, {0x5910a5789f111a45u, 0x8684ecbd3810d812u}},
    {"iq4_nl", 0xe1d571a1b2682cfau, 0x14d4a9ebfbeaf483u, {0x28527368e4f2f36fu, 0x66ad8bb9bdc5b3b3u}},
    {"iq4_xs", 0x9483fe5635680300u, 0x54304b997acb4044u, {0xe47baf77ec14c75fu, 0x40e4035776d35e2eu}},
    {"mxfp4", 0x88b9b97bd9852605u, 0xaa582af85979ac5fu, {0xc759b2e1d353e96au, 0x879dbe939007a7bau}},
    {"nvfp4", 0x264e8530d1a8b022u, 0xd3592fe0c0e7ceb9u, {0xc00b1e1c51366727u, 0xa0618962fd12f6c9u}},
    {"mxfp4_hf", 0xfbd2f603222dd8bdu, 0x04f3b9a290cc63bcu, {0xa5eb1461bcb9f0d4u, 0xcbf5173c6b52c5b3u}},
    {"nvfp4_hf", 0x63b21fa96f8edc9cu, 0x36dee44c05317944u, {0x5670656d0759052du, 0x27484f770d21af60u}},
    {"mxfp8", 0xf1107c649f8a0b36u, 0x0000000000000000u, {0xf41fa63ca2db1039u, 0x4512ee6ec091f3e0u}},
    {"fp8_block", 0x7d4363634bb5e2f1u, 0x0000000000000000u, {0x1ac9bee28cf3b8a5u, 0xcd7a6e84cd1b9a38u}},
    {"fp8_channel", 0x861d0c478cd655e7u, 0x0000000000000000u, {0x437c0258f91a98aeu, 0x21b8781b47958f3fu}},
    {"int8_channel", 0x3ac92f8abb0a6a88u, 0x8dd80efa53a24255u, {0x3688eda9b0609a0du, 0x7a48605a4ba4f072u}},
    {"int4_group", 0x6624835a90affba8u, 0x120ecdf9a5a50250u, {0x51c4ef06b46faff1u, 0xeeee5790f52f54bfu}},
};

/* The same of what a desc or a call may ask for besides, with weights in q8_0 (transposed: f32). */
static const stored_hash variant_hashes[] = {
    {"latent", 0x42180db730a407ccu, 0x7c753f0d16da288du, {0, 0}},
    {"sink", 0xe860f60af0ea3223u, 0xad81183d826ae0f1u, {0, 0}},
    {"ungated", 0x872588cf1a4ffd4du, 0x8feb1bf0d7ae9ed0u, {0, 0}},
    {"clamp_pre", 0xf99841576432c202u, 0xbb8a14d94f094731u, {0, 0}},
    {"clamp_post", 0x05817c59eae23892u, 0x29bf28af698631cbu, {0, 0}},
    {"weight_at_input", 0x3976f04578afa992u, 0x557aeb0172812d5fu, {0, 0}},
    {"weight_at_hidden", 0x1512a6f960aa44bfu, 0xfc3d46ee0005309cu, {0, 0}},
    {"group_max", 0x90995233f5b3edccu, 0x065d7476eba5230bu, {0, 0}},
    {"group_sum", 0xe30f278d56ba4503u, 0x67c304e021b0fdfcu, {0, 0}},
    {"per_group", 0x7ac529a10d368578u, 0x1e56f605d425d00au, {0, 0}},
    {"sparsemixer", 0xbee9d595fad7c4e2u, 0x953292e3aa181a8bu, {0, 0}},
    {"capacity", 0xeffc3a339719b9a1u, 0x2279a76b678854adu, {0, 0}},
    {"capacity_by_score", 0x472988c11de825a5u, 0xe60a1558db814d4du, {0, 0}},
    {"drop_below", 0x312e1f14bb88fa18u, 0xef1e831d025ce291u, {0, 0}},
    {"top_p", 0xe01cb3569b293fa1u, 0xd6f20088e42283cfu, {0, 0}},
    {"zero_experts", 0xc5ae6892b9c71669u, 0xfe62af296b541625u, {0, 0}},
    {"router_norm", 0x4a49bb4d69f015b8u, 0xade0121d1e4ba96fu, {0, 0}},
    {"softmax_selected", 0xd0a28b30299c14c8u, 0xeea02ea41addd540u, {0, 0}},
    {"rows_of_16_bits", 0x34a4e69e8c7d9bdcu, 0x6eaa7a8b3ed81f3eu, {0, 0}},
    {"given_ids", 0x147acd4546754df9u, 0x340e60500308b88bu, {0, 0}},
    {"transposed", 0xa4df4221155dbf09u, 0x0000000000000000u, {0, 0}},
};
/* clang-format on */

#endif
