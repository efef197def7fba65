/* GGUF's header and arrays (of strings too) from a cursor anywhere in 64 bytes of anything: the file ends where the array does,
   whatever the lengths in it say. */
#include "moe.h"
#include "checkpoint.h"
#include "__fc_builtin.h"

enum { SIZE = 64 };
static uint8_t file[SIZE];

static void from(uint64_t at, int array) {
    static ckpt c;
    ckpti_cursor g;
    ckpt_value v;
    uint64_t a = 0, b = 0;
    memset(&c, 0, sizeof c);
    memset(&v, 0, sizeof v);
    c.file = "x";
    Frama_C_make_unknown((char *)file, SIZE);
    g.c = &c, g.data = file, g.size = SIZE, g.at = at, g.cut = Frama_C_interval(0, 1);
    if (array) ckpti_gguf_array(&g, &v);
    else ckpti_gguf_header(&g, &a, &b);
    //@ assert g.at <= SIZE;
}
int main(void) {
    for (uint64_t at = 0; at <= SIZE; at++)
        for (int array = 0; array < 2; array++) from(at, array);
    return 0;
}
