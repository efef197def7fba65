/* Shared by all fuzz targets: a check that stops, and a main() that replays files.

       clang -g -O1 -fsanitize=fuzzer,address,undefined tests/fuzz/fuzz_gguf.c -o fuzz_gguf
       ./fuzz_gguf tests/fuzz/corpus/gguf
       cc tests/fuzz/fuzz_gguf.c -o replay_gguf
       find tests/fuzz/corpus/gguf -type f | xargs ./replay_gguf */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void fuzz_require(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

/* libFuzzer brings a main of its own, which wins. */
#if defined(__GNUC__) || defined(__clang__)
__attribute__((weak))
#endif
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        size_t size = 0, capacity = 1;
        uint8_t *data = (uint8_t *)malloc(capacity);
        if (!f || !data) return fprintf(stderr, "%s: cannot open\n", argv[i]), 1;
        for (size_t n; (n = fread(data + size, 1, capacity - size, f)) > 0;) {
            size += n;
            if (size < capacity) continue;
            data = (uint8_t *)realloc(data, capacity *= 2);
            if (!data) return 1;
        }
        fclose(f);
        uint8_t *exact = (uint8_t *)malloc(size ? size : 1); /* so that sanitizers see reads past the end */
        if (!exact) return 1;
        if (size) memcpy(exact, data, size);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
        free(data);
    }
    printf("%s: %d files replayed\n", argv[0], argc - 1);
    return 0;
}

#endif
