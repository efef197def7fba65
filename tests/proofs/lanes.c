/* The k largest of 64 and 65 keys of any bits, by bounds of lanes: no access outside of [n]. */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "__fc_builtin.h"

enum { N = 65 };

static void top(uint32_t n, uint32_t k) {
    uint32_t key[N], i;
    uint64_t best[N];
    Frama_C_make_unknown((char *)key, n * sizeof *key);
    moei_top_lanes(&moei_vec_c, key, n, k, best);
    for (i = 0; i < k; i++) {
        uint32_t id = ~(uint32_t)best[i];
        //@ assert id < 2 * (N - 1);
    }
}

int main(void) {
    for (uint32_t n = N - 1; n <= N; n++)
        for (uint32_t k = 1; k <= 12; k += 11) top(n, k);
    return 0;
}
