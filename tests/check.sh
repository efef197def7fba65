#!/bin/sh
# make check: what needs more than a C compiler and make. One line per check; logs in build/check. What is lacking is named.
cd "$(dirname "$0")/.." || exit 1
out=build/check
mkdir -p $out
passed=0 failed=0 skipped=0
W="-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wundef -Wdouble-promotion -Werror"
I="-I. -Iexamples -Itests"

check() { # check NAME TOOL COMMAND...: skipped if the tool is missing
    name=$1 tool=$2 start=$(date +%s)
    shift 2
    if ! command -v "$tool" >/dev/null 2>&1; then
        skipped=$((skipped + 1))
        echo "skipped $name: no $tool"
        return
    fi
    if sh -c "$*" >"$out/log" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $name ($(($(date +%s) - start)) s)"
    else
        failed=$((failed + 1))
        echo "FAIL    $name: $*"
        tail -n 8 "$out/log"
    fi
}
emit() { printf '#define MOE_IMPLEMENTATION\n#include "moe.h"\n' >$out/emit.$1; }
emit c
emit cc
printf '#include "moe.h"\n#include "moe.h"\nint main(void) { return (int)(moe_version() == 0); }\n' >$out/use.c
printf '#define MOE_STATIC\n#define MOE_IMPLEMENTATION\n#include "moe.h"\nint NAME(void);\nint NAME(void) { return (int)moe_version(); }\n' >$out/static.c
printf 'int one(void);\nint two(void);\nint main(void) { return one() != two(); }\n' >$out/main.c

for cc in gcc clang; do
    for std in c11 c17; do check "$cc -std=$std, all warnings" $cc "$cc -std=$std -O0 $W -Wstrict-prototypes -I. -fsyntax-only $out/emit.c"; done
    for o in "-O0" "-O2" "-O3 -march=native" "-Ofast"; do check "$cc $o, all warnings" $cc "$cc -std=c11 $o $W -I. -c $out/emit.c -o $out/emit-$cc.o"; done
    for no in SIMD AVX2 AVX512 VNNI BF16 AMX NEON; do check "$cc MOE_NO_$no" $cc "$cc -std=c11 -O1 -DMOE_NO_$no $W -I. -fsyntax-only $out/emit.c"; done
    check "$cc header alone, twice, two translation units" $cc "$cc -std=c11 -O1 $W -I. $out/use.c $out/emit.c -o $out/two -lm && $out/two"
    check "$cc MOE_STATIC twice in one program" $cc "$cc -O1 -std=c11 $W -I. -DNAME=one -c $out/static.c -o $out/s1.o && $cc -O1 -std=c11 $W -I. -DNAME=two -c $out/static.c -o $out/s2.o && $cc $out/main.c $out/s1.o $out/s2.o -o $out/statics -lm && $out/statics"
    check "$cc same bits with contracted products" $cc "$cc -std=gnu11 -O2 -ffp-contract=fast $I tests/test_layer.c -o $out/layer -lm && $out/layer 1"
done
for cxx in g++ clang++; do
    for std in c++11 c++17 c++20; do check "$cxx -std=$std" $cxx "$cxx -std=$std -O0 -Wall -Wextra -Wpedantic -I. -fsyntax-only $out/emit.cc"; done
done
check "no data, no bss, no allocation or output in the object" nm "gcc -std=c11 -O2 -fno-pie -I. -c $out/emit.c -o $out/emit.o && ! nm $out/emit.o | grep -E ' [dDbBC] | U (malloc|calloc|realloc|free|printf|fprintf|puts|abort|exit|getenv|fopen)$'"
check "address and undefined-behaviour sanitizers: layer" gcc "gcc -std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all $I tests/test_layer.c -o $out/asan -lm && $out/asan 1"
check "sanitizers: checkpoints" gcc "gcc -std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all $I tests/test_checkpoint.c -o $out/asan -lm -lpthread && $out/asan"
check "fuzz corpora" gcc "for f in safetensors gguf index route layer; do gcc -std=c11 -O1 $I tests/fuzz/fuzz_\$f.c -o $out/fuzz_\$f -lm && $out/fuzz_\$f tests/fuzz/corpus/\$f/* || exit 1; done"
check "thread sanitizer: team and pool" gcc "gcc -std=c11 -O1 -g -fsanitize=thread $I examples/team.c -o $out/team -lm -lpthread && $out/team"
check "aarch64 (qemu): formats" qemu-aarch64 "aarch64-linux-gnu-gcc -std=c11 -O2 -static $I tests/test_formats.c -o $out/a64 -lm && qemu-aarch64 $out/a64"
check "oracle against the golden layers" python3 "python3 -c 'import numpy' && python3 tests/tools/oracle_vs_golden.py"
check "version is the changelog's newest" grep "grep -q '^## 0.1.0' CHANGELOG.md && grep -q 'MOE_VERSION_MINOR 1' moe.h"
echo "check: $passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
