#!/bin/sh
# run.sh SECONDS TARGET...: each target from its corpus, new inputs into build/corpus; executions, coverage and findings, one line each.
cd "$(dirname "$0")/../.." || exit 1
seconds=$1 bad=0
shift
for t in "$@"; do
    seeds=tests/fuzz/corpus/$t && [ "$t" = tiers ] && seeds=tests/fuzz/corpus/layer
    mkdir -p build/corpus/$t build/findings
    dict=$(ls tests/fuzz/$t.dict 2>/dev/null)
    [ "$t" = index ] || [ "$t" = safetensors ] && dict=tests/fuzz/json.dict
    case $t in route | layer | tiers) length=0 ;; *) length=100 ;; esac # of any length from the start
    build/fuzz_$t -len_control=$length -max_total_time="$seconds" -max_len=8192 -print_final_stats=1 ${dict:+-dict=$dict} -artifact_prefix=build/findings/$t- \
        build/corpus/$t $seeds >build/fuzz_$t.log 2>&1
    status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' build/fuzz_$t.log)
    cov=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' build/fuzz_$t.log | tail -n 1)
    [ $status -eq 0 ] || bad=1
    echo "fuzz $t: $seconds s, ${runs:-0} executions, $cov edges, $([ $status -eq 0 ] && echo no findings || echo "FOUND: build/fuzz_$t.log")"
done
exit $bad
