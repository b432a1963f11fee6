#!/bin/sh
# Verifies and measures on a machine with an NVIDIA GPU: `sh run.sh OUTDIR`, in less than 10 minutes. OUTDIR gets summary.txt, a line for
# each step; log.txt, all that the steps printed; and results as JSON. Exit status 1 if a step failed. What could not be tried is NOT
# VERIFIED and has not passed.
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit 1
mkdir -p "${1:?usage: sh run.sh OUTDIR}" || exit 1
out=$(cd "$1" && pwd) || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
chmod +x "$here"/bin/* "$here"/cuda/* 2>/dev/null
export RUST_BACKTRACE=0 # the last lines of a failure go to the summary
gpu=$here/bin/gpu
encode=$here/bin/nwc-encode
commit=$(cat "$here/commit")
machine=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
deadline=$(($(date +%s) + 570))
passed=0 failed=0 unverified=0
: >"$out/log.txt"
: >"$out/summary.txt"

say() {
    echo "$*" | tee -a "$out/summary.txt"
}

pass() {
    passed=$((passed + 1))
    say "$1: passed$2"
}

fail() {
    failed=$((failed + 1))
    say "$1: FAILED$2: $(tail -n 4 "$work/step" | tr '\n' ' ')"
}

skip() {
    unverified=$((unverified + 1))
    say "$1: NOT VERIFIED: $2"
}

# limited SECONDS PROGRAM...: runs it for so long at most, and for what is left of the script's time. Status 124 if that was not enough.
limited() {
    limit=$1
    shift
    left=$((deadline - $(date +%s)))
    if [ "$left" -lt "$limit" ]; then limit=$left; fi
    if [ "$limit" -le 0 ]; then
        echo "no time is left"
        return 124
    fi
    timeout -k 5 "$limit" "$@"
}

# attempt NAME COMMAND...: runs it, its output in the log and in $work/step; leaves its status in $status and its time in $took.
attempt() {
    echo "== $*" >>"$out/log.txt"
    shift
    started=$(date +%s)
    "$@" >"$work/step" 2>&1
    status=$?
    took=" in $(($(date +%s) - started)) s"
    cat "$work/step" >>"$out/log.txt"
}

# step NAME COMMAND...: passes if the command ends with status 0.
step() {
    attempt "$@"
    if [ "$status" -eq 0 ]; then pass "$1" "$took"; else fail "$1" " with status $status$took"; fi
}

# results COMMAND: standard input, as the files of benches/results have results.
results() {
    printf '{\n  "command": "%s",\n  "commit": "%s",\n  "machine": "%s",\n  "results": %s\n}\n' \
        "$1" "$commit" "${machine:-unknown}" "$(cat)"
}

# What a GPU decompresses is what the processor does.
same() {
    rm -rf "$work/cpu" "$work/gpu"
    limited 30 "$encode" decompress "$1" -o "$work/cpu" &&
        limited 30 "$encode" decompress "$1" -o "$work/gpu" --device cuda &&
        diff -r "$work/cpu" "$work/gpu"
}

decompress() {
    limited 60 "$encode" compress "$here/model" -o "$work/model.nwc" --bits 4 || return 1
    for container in "$work/model.nwc" "$here/vectors/clip-mini.nwc" "$here/vectors/aliases.nwc" "$here/vectors/seek.nwc"; do
        same "$container" || return 1
    done
}

bench_decode() {
    limited 30 "$encode" bench decode "$work/model.nwc" --device cuda --runs 51 --json >"$work/json" || return 1
    results "nwc-encode compress examples/clip-mini -o model.nwc --bits 4; nwc-encode bench decode model.nwc --device cuda --runs 51 --json" \
        <"$work/json" | tee "$out/bench-decode.json"
}

# The CUDA C++ example, with some tensors and the checksums that their weights must have.
custom_gemv() {
    sed -n 's/^\([0-9]*\) \[.*\] [0-9]* \([0-9a-f]\{8\}\) .*$/\1 \2/p' "$here/cuda/image.txt" | head -n 8 >"$work/tensors"
    test -s "$work/tensors" || return 1
    while read -r number crc; do
        limited 15 "$here/cuda/custom_gemv" "$here/cuda/image.nwci" "$number" "$crc" </dev/null || return 1
    done <"$work/tensors"
}

peers() {
    limited 75 python3 "$here/peers.py" >"$work/json" || return 1
    results "python3 xtask/src/gpu_bundle/peers.py" <"$work/json" | tee "$out/peers.json"
}

# sanitize TOOL: a short verification under NVIDIA's checker, which refuses to run on some virtual machines.
sanitize() {
    attempt "$1" limited 75 "$sanitizer" --tool "$1" --error-exitcode 99 \
        "$gpu" verify "$here/vectors" --most-bytes 4096 --item-rows 64 --warps 5 --commit "$commit"
    if [ "$status" -eq 0 ] && grep -q 'SUMMARY: 0 ' "$work/step"; then
        pass "$1" ", clean$took"
        verdict="clean"
    elif grep -qi 'not supported' "$work/step"; then
        skip "$1" "compute-sanitizer refuses: $(grep -i 'not supported' "$work/step" | head -n 1)"
        verdict="not verified: refused"
    elif [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
        skip "$1" "not done$took"
        verdict="not verified: out of time"
    elif grep -q 'SUMMARY: ' "$work/step"; then
        fail "$1" " with status $status$took"
        verdict="failed"
    else
        # Without a summary nothing was checked.
        skip "$1" "compute-sanitizer ended with status $status: $(tail -n 2 "$work/step" | tr '\n' ' ')"
        verdict="not verified: no summary"
    fi
    verdicts="$verdicts${verdicts:+, }\"$1\": \"$verdict\""
}

say "commit $commit, ${machine:-an unknown GPU}"
step verify limited 90 "$gpu" verify "$here/vectors" --out "$out/verify.json" --commit "$commit"
step decompress decompress
step bench-decode bench_decode
if [ -x "$here/cuda/custom_gemv" ]; then step custom-gemv custom_gemv; else skip custom-gemv "it is not in the bundle"; fi
if [ -x "$here/cuda/probe" ]; then step probe limited 15 "$here/cuda/probe"; fi
step malformed limited 240 "$gpu" malformed "$here/vectors" --out "$out/malformed.json" --commit "$commit"
step speed limited 200 "$gpu" speed --out "$out/speed.json" --commit "$commit"
step speed-rates limited 90 "$gpu" speed --bits 2,3,5,6 --gigabytes 0.4 --item-rows 256 --out "$out/speed-rates.json" --commit "$commit"
step speed-syntheses limited 120 "$gpu" speed --synthesis identity,hadamard,linear,compact,deep,paper --gigabytes 0.4 --item-rows 256 --out "$out/speed-syntheses.json" --commit "$commit"
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    step peers peers
else
    skip peers "python3 has no torch that finds a GPU"
fi

verdicts=
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
for tool in memcheck racecheck initcheck synccheck; do
    if [ -n "$sanitizer" ]; then
        sanitize "$tool"
    else
        skip "$tool" "compute-sanitizer is missing"
        verdicts="$verdicts${verdicts:+, }\"$tool\": \"not verified: no compute-sanitizer\""
    fi
done
echo "{ $verdicts }" | results "sh run.sh OUTDIR" >"$out/sanitizer.json"

say "$passed passed, $failed failed, $unverified not verified"
[ "$failed" -eq 0 ]
