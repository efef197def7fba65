#!/bin/sh
# Prints the logs of the test programs given as arguments and adds up their closing lines ("NAME: N passed, N failed, N skipped",
# then "status N"). A program that ended without one, or failed without saying what, counts as failed.
passed=0 failed=0 skipped=0
for log in "$@"; do
    sed '$d' "$log"
    set -- $(tail -n 2 "$log" | sed -n 's/^[a-z_0-9]*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p; s/^status //p')
    if [ $# -ne 4 ] || { [ "$4" -ne 0 ] && [ "$2" -eq 0 ]; }; then
        echo "$log: no closing line, or a status other than 0"
        failed=$((failed + 1))
        continue
    fi
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
