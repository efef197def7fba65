/* The input is a safetensors file. */
#include "fuzz_checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ckpt_file file = {"x.safetensors", data, size};
    fuzz_files(&file, 1);
    return 0;
}
