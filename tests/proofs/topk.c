/* The k largest of any keys, as a sorted list and by a heap: no access outside of [n], nothing read that was not written, and the
   ids of 16 keys are below 16. */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "__fc_builtin.h"

enum { N = 16 };

static void top(uint32_t n, uint32_t k, int heap) {
    uint32_t key[N], i;
    uint64_t best[N];
    Frama_C_make_unknown((char *)key, n * sizeof *key);
    if (heap) moei_top_many(key, n, k, best);
    else moei_top_few(key, n, k, best);
    for (i = 0; i < k; i++) {
        uint32_t id = ~(uint32_t)best[i];
        //@ assert id < N;
    }
}

int main(void) {
    for (int heap = 0; heap < 2; heap++) {
        for (uint32_t k = 1; k <= N; k++) top(N, k, heap);
        for (uint32_t n = 1; n < 8; n++)
            for (uint32_t k = 1; k <= n; k++) top(n, k, heap);
    }
    return 0;
}
