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
