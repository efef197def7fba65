#!/bin/sh
# make static: gcc -fanalyzer, clang-tidy and cppcheck over moe.h (portable tier: the others are straight-line intrinsics, which take them hours)
# and examples/checkpoint.h. Every exclusion has its reason; anything else that is reported fails.
cd "$(dirname "$0")/.." || exit 1
out=build/static bad=0
mkdir -p $out
printf '#define MOE_NO_SIMD\n#define MOE_IMPLEMENTATION\n#include "moe.h"\n' >$out/moe.c
printf '#include "examples/checkpoint.h"\nint use(ckpt *c, const char *path, char *err);\nint use(ckpt *c, const char *path, char *err) { return ckpt_open(c, path, err); }\n' >$out/checkpoint.c

report() { # report NAME LOG PATTERN
    n=$(grep -cE "$3" "$2")
    echo "static $1: $n findings"
    [ "$n" -eq 0 ] || { bad=1; grep -E "$3" "$2" | sort -u | head -n 20; }
}
have() { command -v "$1" >/dev/null 2>&1 || { echo "static $2: skipped, no $1"; return 1; }; }

# too-complex: the analyzer gave up on a function's paths, it found nothing wrong.
# double-free: gcc 12 takes the NULL that realloc gets twice for a pointer that was freed; the fuzz targets count allocations under ASan.
for f in moe checkpoint; do
    have gcc "gcc -fanalyzer $f" || continue
    timeout 900 gcc -std=c11 -O1 -fanalyzer -Wno-analyzer-too-complex -Wno-analyzer-double-free -I. -c $out/$f.c -o $out/$f.o 2>$out/gcc-$f.log || echo "gcc gave up on $f" >>$out/gcc-$f.log
    report "gcc -fanalyzer $f" $out/gcc-$f.log 'warning:|gave up'
done

# bugprone-easily-swappable-parameters   shapes are numbers of the same type by nature
# bugprone-narrowing-conversions         -Wconversion -Werror says it more exactly
# bugprone-implicit-widening-of-multiplication-result   sizes are checked before (moei_mul), products of small constants
# bugprone-reserved-identifier, bugprone-macro-parentheses, bugprone-branch-clone   X-macro rows; equal branches that say what they stand for
# bugprone-assignment-in-if-condition    declarations by design of the readers
# bugprone-suspicious-include            moe.h is compiled as a file on purpose
# cert-dcl37-c,cert-dcl51-cpp            reserved identifiers: aliases of the above
# cert-err33-c                           results of fprintf and fclose on streams that were only read
# cert-flp30-c                           no loop counts in floats: it takes for (x < float) of search loops for one
checks='-*,bugprone-*,cert-*,clang-analyzer-*,-bugprone-easily-swappable-parameters,-bugprone-narrowing-conversions'
checks="$checks,-bugprone-implicit-widening-of-multiplication-result,-bugprone-reserved-identifier,-bugprone-macro-parentheses,-bugprone-branch-clone"
checks="$checks,-bugprone-assignment-in-if-condition,-bugprone-suspicious-include,-cert-dcl37-c,-cert-dcl51-cpp,-cert-err33-c,-cert-flp30-c"
# bugprone-suspicious-string-compare     if (strcmp(a, b)) is C
# bugprone-signed-char-misuse,cert-str34-c   Q6_K's scales are signed bytes
# bugprone-not-null-terminated-result    the end is copied by the next memcpy
checks="$checks,-bugprone-suspicious-string-compare,-bugprone-signed-char-misuse,-cert-str34-c,-bugprone-not-null-terminated-result"
# clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling   wants memcpy_s, which C libraries don't have
checks="$checks,-clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling"
for f in moe checkpoint; do
    have clang-tidy "clang-tidy $f" || continue
    timeout 900 clang-tidy --quiet --header-filter='(moe|checkpoint)\.h' --checks="$checks" $out/$f.c -- -std=c11 -I. >$out/tidy-$f.log 2>/dev/null || echo "clang-tidy: error: gave up" >>$out/tidy-$f.log
    report "clang-tidy $f" $out/tidy-$f.log '(warning|error):'
done

# missingIncludeSystem: cppcheck knows the C library by itself. invalidPointerCast: scratch is cut into arrays of several types, each
# written before it is read.
for f in moe checkpoint; do
    have cppcheck "cppcheck $f" || continue
    timeout 900 cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr --suppress=missingIncludeSystem --suppress=invalidPointerCast \
        --suppress=unmatchedSuppression -D__x86_64__ -D__GNUC__=12 -DMOE_NO_SIMD -DMOE_IMPLEMENTATION -I. $out/$f.c 2>$out/cppcheck-$f.log || echo "error: gave up" >>$out/cppcheck-$f.log
    report "cppcheck $f" $out/cppcheck-$f.log '(warning|error|performance|portability):'
done
exit $bad
