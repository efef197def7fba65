#!/bin/sh
# make check: what needs more than a C compiler and make. Every check is one command line, in a folder of its own under
# build/check; as many run at once as there are cores. What is lacking is named.
cd "$(dirname "$0")/.." || exit 1
all=build/check
if [ "${1:-}" = --one ]; then # the check of that number: tools, name, command
    o=$all/$2 start=$(date +%s)
    { read -r tools; read -r name; } <"$o/check"
    lacks=
    for tool in $tools; do command -v "$tool" >/dev/null 2>&1 || lacks="$lacks $tool"; done
    if [ -n "$lacks" ]; then
        result="skipped $name: no$lacks"
    elif sed 1,2d "$o/check" | sh >"$o/log" 2>&1; then
        result="ok      $name ($(($(date +%s) - start)) s)"
    else
        result="FAIL    $name: $(sed 1,2d "$o/check")
$(tail -n 12 "$o/log" | sed 's/^/    /')"
    fi
    echo "$result" | tee "$o/result"
    exit 0
fi

rm -rf $all
mkdir -p $all
n=0
check() { # check TOOLS NAME COMMAND: @ in the command is the check's own folder. ONLY=PATTERN make check runs those it names
    case "$2" in *${ONLY:-}*) ;; *) return ;; esac
    n=$((n + 1))
    mkdir -p $all/$n
    printf '%s\n%s\n%s\n' "$1" "$2" "$3" | sed "3,\$s|@|$all/$n|g" >$all/$n/check
}

W="-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wundef -Wdouble-promotion -Werror"
WC="$W -Wstrict-prototypes"
T="-I. -Iexamples -Itests"
aarch64="qemu-aarch64 aarch64-linux-gnu-gcc" s390x="qemu-s390x s390x-linux-gnu-gcc"
printf '#define MOE_IMPLEMENTATION\n#include "moe.h"\n' | tee $all/emit.c >$all/emit.cc
printf '#include "moe.h"\n#include "moe.h"\nint main(void) { return (int)(moe_version() == 0); }\n' >$all/use.c
printf '#define MOE_STATIC\n#define MOE_IMPLEMENTATION\n#include "moe.h"\nint NAME(void);\nint NAME(void) { return (int)moe_version(); }\n' >$all/static.c
{
    printf '#include <stdio.h>\n#include <stdlib.h>\n'
    awk '/^```c$/ { on = 1; next } /^```$/ { on = 0 } on { print } on && /^#include "moe.h"/ {
        print "int f(const void *gate, const void *up, const void *down, const void *router, const float *x, float *y, size_t n_tokens);"
        print "int f(const void *gate, const void *up, const void *down, const void *router, const float *x, float *y, size_t n_tokens) {"
    } END { print "return 0; }" }' README.md
} >$all/readme.c
mkdir -p $all/msvc # gcc that says it is MSVC, after its own headers
: >$all/msvc/intrin.h
printf '#include <%s>\n' immintrin.h cpuid.h stddef.h stdint.h string.h math.h >$all/msvc.c
printf '#undef __GNUC__\n#undef __linux__\n#define _MSC_VER 1938\n#define _M_X64 100\n#define __forceinline inline __attribute__((always_inline))\n' >>$all/msvc.c
cat $all/emit.c >>$all/msvc.c
printf 'int one(void);\nint two(void);\nint main(void) { return one() != two(); }\n' >$all/main.c

# Long ones first.
# (undefined behaviour is looked for in the portable code: with it the kernels take minutes to compile)
san="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
linked="test_layer test_memory test_errors test_checkpoint test_models test_corners test_api test_generate"
sanitize() { # sanitize COMPILER NAME FLAGS
    check $1 "$2: $linked" "make CC=$1 BUILD=@ CFLAGS='$3' $(for t in $linked; do printf '@/%s ' $t; done) && @/test_layer 1 && @/test_memory 120 && for t in ${linked#* * }; do @/\$t || exit 1; done"
}
# (Calls check what large functions access, which are the kernels: they compile in a third of the time. clang's tests take a third of gcc's.)
asan=clang
echo 'int main(void) { return 0; }' | clang -fsanitize=address -x c - -o $all/asan 2>/dev/null || asan=libclang-rt-dev
sanitize $asan "address sanitizer, all tiers" "-O1 -g1 -fsanitize=address -mllvm -asan-instrumentation-with-call-threshold=60"
sanitize gcc "address and undefined-behaviour sanitizers, tier c" "$san -DMOE_NO_SIMD"
check gcc "address sanitizer: emulated tiles" "gcc -std=c11 -O1 -g1 -fsanitize=address --param asan-instrumentation-with-call-threshold=0 $T -DMOE_NO_Q8 tests/test_amx.c -o @/t -lm && @/t"
check frama-c "proofs" "ONLY= sh tests/proofs/run.sh"
for t in formats route; do
    check gcc "sanitizers: $t" "gcc -std=c11 $san $T -DMOE_NO_SIMD tests/test_$t.c -o @/t -lm && @/t"
    check "$s390x" "s390x, big-endian (qemu): $t" "s390x-linux-gnu-gcc -std=gnu11 -O2 -static $T tests/test_$t.c -o @/t -lm && qemu-s390x @/t"
    check "$aarch64" "aarch64 (qemu): $t" "aarch64-linux-gnu-gcc -std=c11 -O2 -static $T tests/test_$t.c -o @/t -lm && qemu-aarch64 @/t"
    check i686-linux-gnu-gcc "i686: $t" "i686-linux-gnu-gcc -std=c11 -O2 -msse2 -mfpmath=sse -static $T tests/test_$t.c -o @/t -lm && @/t"
done
for t in formats layer; do check tcc "a compiler without extensions (tcc): $t" "tcc -std=c11 $T tests/test_$t.c -o @/t -lm && @/t 1"; done
check gcc "thread sanitizer: team and pool" "gcc -std=c11 -O1 -g -fsanitize=thread -DMOE_NO_Q8 $T examples/team.c -o @/t -lm -lpthread && @/t"
check gcc "thread sanitizer: callbacks, teams, many callers" "gcc -std=c11 -O1 -g -fsanitize=thread -DMOE_NO_AVX512 $T tests/test_invariance.c -o @/t -lm -lpthread && @/t threads"
hashes="$T tests/test_invariance.c -o @/t -lm -lpthread &&"
# AVX-512 and AVX-VNNI by AVX2's instructions: the same code and the same stored hashes where the processor has neither
emulated="gcc -std=gnu11 -O1 -w $T -include tests/avx512_emulation.h"
check gcc "AVX-512 emulated: stored hashes" "$emulated -DMOE_NO_AMX $hashes @/t hashes | tee @/out && grep -q ' 0 failed' @/out && ! grep -qE 'hashes of avx' @/out"
grep -q avx512_bf16 /proc/cpuinfo || { # make test has run them there
    check gcc "AVX-512 emulated: q8" "$emulated -DMOE_NO_BF16 tests/test_q8.c -o @/t -lm && @/t"
    check gcc "AVX-512 emulated: tiers" "$emulated -DMOE_NO_Q8 tests/test_tiers.c -o @/t -lm && @/t"
}
check clang "stored hashes: clang -O3 -march=native, contracted products" "clang -std=c11 -O3 -march=native -ffp-contract=fast $hashes @/t hashes"
for build in "gcc -O0" "gcc -O0 -DMOE_NO_OPTIMIZE" "gcc -O2 -DMOE_NO_Q8" "clang -O0"; do check ${build%% *} "stored hashes: $build" "$build -std=gnu11 $hashes @/t hashes"; done
for t in q8 tiers; do
    check "$aarch64" "aarch64 (qemu): $t" "aarch64-linux-gnu-gcc -std=c11 -O2 -static $T tests/test_$t.c -o @/t -lm && qemu-aarch64 -cpu max @/t"
done
check "$aarch64" "aarch64 (qemu) without dot products: tiers" "aarch64-linux-gnu-gcc -std=c11 -O2 -static $T tests/test_tiers.c -o @/t -lm && qemu-aarch64 -cpu cortex-a72 @/t | tee @/out && grep -q '^this machine and build: c neon\$' @/out"
check "$aarch64" "aarch64 (qemu): guard pages" "aarch64-linux-gnu-gcc -std=c11 -O1 -static $T tests/test_memory.c -o @/t -lm && qemu-aarch64 -cpu max @/t 120"
check aarch64-linux-gnu-g++ "aarch64: all warnings, C++11" "aarch64-linux-gnu-g++ -std=c++11 -O1 $W -I. -c $all/emit.cc -o @/emit.o"
for o in -O0 "-O2 -mcpu=neoverse-v1" "-O1 -march=armv8.4-a" "-O0 -march=armv8.1-a" "-O0 -DMOE_NO_DOTPROD" "-O0 -DMOE_NO_I8MM" "-O0 -DMOE_NO_BF16"; do
    check aarch64-linux-gnu-gcc "aarch64 $o, all warnings" "aarch64-linux-gnu-gcc -std=c11 $o $WC -I. -c $all/emit.c -o @/emit.o"
done
for cc in gcc aarch64-linux-gnu-gcc; do # moei_q8_c, and no other table
    check $cc "MOE_NO_Q8 leaves its kernels out: $cc" "$cc -std=c11 -O1 -DMOE_NO_Q8 $WC -I. -c $all/emit.c -o @/emit.o && ${cc%gcc}nm @/emit.o >@/nm && grep -q ' moei_q8_c\$' @/nm && ! grep -E '(avx2|avxvnni|vnni|neon|dotprod|i8mm)' @/nm | grep q8"
done
check "$aarch64" "stored hashes: aarch64 (qemu), BF16 too" "aarch64-linux-gnu-gcc -std=c11 -O2 -static $hashes qemu-aarch64 -cpu max @/t hashes | tee @/out && grep -q ' 0 failed' @/out && ! grep -q 'hashes of neonbf16' @/out"
check "$s390x" "stored hashes: s390x, big-endian (qemu)" "s390x-linux-gnu-gcc -std=gnu11 -O2 -static $hashes qemu-s390x @/t hashes"
check i686-linux-gnu-gcc "stored hashes: i686" "i686-linux-gnu-gcc -std=c11 -O2 -msse2 -mfpmath=sse -static $hashes @/t hashes"
# WebAssembly: what it needs besides clang is the tool that is looked for.
wasm=clang
python3 -c 'import wasmtime' 2>/dev/null || wasm=wasmtime
[ -f "$(clang --target=wasm32-wasi -print-libgcc-file-name 2>/dev/null)" ] || wasm=libclang-rt-dev-wasm32
[ -f /usr/include/wasm32-wasi/stdio.h ] || wasm=wasi-libc
command -v wasm-ld >/dev/null || wasm=wasm-ld
wasi="clang --target=wasm32-wasi -std=c11 $T -Itests/tools/wasm -Wl,--stack-first" run="-o @/t.wasm -lm && python3 tests/tools/wasm_run.py @/t.wasm"
# (What overflows the stack traps. It has 64 KB by default, which is what moe_select and the test of routing take each.)
for t in formats route; do check $wasm "WebAssembly (wasmtime): $t" "$wasi -Wl,-z,stack-size=262144 -O2 tests/test_$t.c $run"; done
for o in "-O2" "-O3 -msimd128"; do check $wasm "stored hashes: WebAssembly (wasmtime) $o" "$wasi $o tests/test_invariance.c $run hashes"; done
check clang "clang: same bits with contracted products" "clang -std=gnu11 -O2 -ffp-contract=fast $T tests/test_layer.c -o @/t -lm && @/t 1"
check gcc "gcc -Ofast: route" "make CC=gcc BUILD=@ CFLAGS=-Ofast @/test_route && @/test_route"
# The object as users compile it: no warnings, test_errors linked to it, no more than 3 MB, no data, no bss, and no reference to what
# allocates, prints, starts threads, reads files or the environment, or stops.
may="mem(cpy|move|set|cmp)|str(cmp|ncmp|len|cspn)|log2?|sqrtf?|roundf|floorf|fmaf|__cpu_model|_GLOBAL_OFFSET_TABLE_"
object() { # object COMPILER FLAGS (-Ofast rounds log2 early)
    [ "$2" = -Ofast ] && early='|log2?f' || early=
    echo "make CC=$1 BUILD=@ CFLAGS='$2 -Werror -fno-pie' LIBS='-lm -lpthread -no-pie' @/test_errors && @/test_errors && [ \$(wc -c <@/moe.o) -lt 3000000 ] && nm @/moe.o >@/nm && grep -q ' T moe_forward' @/nm && ! grep -E ' [dDbBC] ' @/nm && ! grep ' [UwW] ' @/nm | grep -vE ' ($may$early)\$'"
}
for cc in gcc clang; do
    for o in "-O0" "-O2" "-O3 -march=native" "-Ofast" "-O2 -DMOE_NO_SIMD"; do check $cc "$cc $o: all warnings, errors, size, references" "$(object "$cc" "$o")"; done
    check $cc "$cc: header alone, twice, two translation units" "$cc -std=c11 -O1 $WC -I. $all/use.c $all/emit.c -o @/two -lm && @/two"
    check $cc "$cc: MOE_STATIC twice in one program" "for n in one two; do $cc -O1 -std=c11 $WC -I. -DNAME=\$n -c $all/static.c -o @/\$n.o || exit 1; done; $cc $all/main.c @/one.o @/two.o -o @/t -lm && @/t"
    for std in c11 c17 gnu11; do check $cc "$cc -std=$std, all warnings" "$cc -std=$std -O0 $WC -I. -fsyntax-only $all/emit.c"; done
    for no in SIMD AVX2 AVX512 VNNI BF16 AMX NEON Q8; do check $cc "$cc MOE_NO_$no" "$cc -std=c11 -O1 -DMOE_NO_$no $WC -I. -fsyntax-only $all/emit.c"; done
done
for cxx in g++ clang++; do
    for std in c++11 c++14 c++17 c++20; do check $cxx "$cxx -std=$std, all warnings" "$cxx -std=$std -O0 $W -I. -fsyntax-only $all/emit.cc"; done
    check $cxx "$cxx: the implementation as C++" "$cxx -std=c++11 -O1 -I. -Iexamples examples/cpp.cc -o @/t -lm -lpthread && @/t"
done
check i686-linux-gnu-gcc "i686: all warnings" "i686-linux-gnu-gcc -std=c11 -O1 $WC -I. -fsyntax-only $all/emit.c"
check gcc "what is left for MSVC" "gcc -std=c11 -O0 -march=cascadelake -Wall -Wextra -Wpedantic -Werror -Wno-unused-function -I. -I$all/msvc -fsyntax-only $all/msvc.c"
check gcc "words that windows.h takes" "gcc -std=c11 -I. -Dnear= -Dfar= -Dsmall=char -Dhyper= -Dinterface=struct -fsyntax-only $all/emit.c"
check gcc "the C block of README.md compiles" "gcc -std=c11 $WC -I. -fsyntax-only $all/readme.c"
check gcc "fuzz corpora" "for f in tests/fuzz/fuzz_*.c; do n=\$(basename \$f .c) && gcc -std=c11 -O1 $T \$f -o @/\$n -lm && @/\$n tests/fuzz/corpus/\${n#fuzz_}/* || exit 1; done"
check python3 "oracle against the golden layers" "python3 -c 'import numpy' && python3 tests/tools/oracle_vs_golden.py"
check python3 "mutants: six semantic ones, others every day" "python3 tests/mutate.py --semantic --sample 6 --seed $(date +%j)"
check python3 "every family's checkpoint against the oracle" "python3 -c 'import numpy' && python3 tests/tools/families.py"
check clang-format "format of the tests, examples (but the manual's) and benches" "clang-format --dry-run -Werror tests/*.[ch] tests/fuzz/*.[ch] bench/*.[ch] $(ls examples/*.[ch] | grep -v minimal.c | tr '\n' ' ')"
check grep "the version is the newest released one of the changelog" "grep -m1 '^## [0-9]' CHANGELOG.md | grep -q \"^## \$(sed -n 's/^#define MOE_VERSION_\\(MAJOR\\|MINOR\\|PATCH\\) *\\([0-9]*\\).*/\\2/p' moe.h | paste -sd.)\""

[ "$n" -gt 0 ] || { echo "check: nothing has '${ONLY:-}' in its name"; exit 1; }
seq $n | xargs -P "$(getconf _NPROCESSORS_ONLN)" -I{} sh tests/check.sh --one {}
cat $all/*/result >$all/results
count() { grep -c "^$1 " $all/results; }
failed=$((n - $(count ok) - $(count skipped)))
echo "check: $(count ok) passed, $failed failed, $(count skipped) skipped"
[ $failed -eq 0 ]
