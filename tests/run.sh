#!/bin/sh
# Runs the test programs given as arguments from the repository's root and adds up their closing lines
# ("NAME: N passed, N failed, N skipped"). A program that ends without one, or with another status, counts as failed.
passed=0 failed=0 skipped=0 start=$(date +%s)
for t in "$@"; do
    out=$("$t" 2>&1) && status=0 || status=$?
    line=$(printf '%s\n' "$out" | tail -n 1)
    set -- $(printf '%s\n' "$line" | sed -n 's/^[a-z_0-9]*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
    if [ $# -ne 3 ] || { [ "$status" -ne 0 ] && [ "$2" -eq 0 ]; }; then
        printf '%s\n%s: no closing line, or status %s\n' "$out" "$t" "$status"
        failed=$((failed + 1))
        continue
    fi
    printf '%s\n' "$out"
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
done
echo "$(($(date +%s) - start)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
