/* The input is a GGUF file; then it is also both shards of a split one, which fails late or never. */
#include "fuzz_checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ckpt_file file = {"x.gguf", data, size};
    ckpt_file shards[] = {{"x-00001-of-00002.gguf", data, size}, {"x-00002-of-00002.gguf", data, size}};
    fuzz_files(&file, 1);
    fuzz_files(shards, 2);
    return 0;
}
