# shellcheck shell=bash
# Sourced by tests/kernels/run: what a guest's output means.

# Warnings of the kernel that are its own affair, as PATTERN:WHY. The latter has no colon.
known_warnings=(
    'nf_queue\.c:[0-9]+ nf_reinject:of packets dropped with their hook, up to 6.1'
)

# What stands between the beginning and the end of program $2 in an output.
output_of() {
    awk -v begin="$mark begin $2" -v end="$mark end $2 " '
        index($0, end) == 1 { exit }
        inside { print }
        $0 == begin { inside = 1 }' "$1"
}

# Prints the line about a kernel: NAME LOG MARK SECONDS QEMU_STATUS SOME PROGRAM... Returns 0 if all
# is well.
judge() {
    local name=$1 log=$2 mark=$3 seconds=$4 qemu=$5 some=$6 bad=0 program parts=() kernel status has_ended=''
    shift 6
    sed -i 's/\r$//' "$log/console" "$log/output" 2>/dev/null || true
    [ -e "$log/output" ] || : >"$log/output"
    [ -e "$log/console" ] || : >"$log/console"
    ! grep -qx "$mark done" "$log/output" || has_ended=yes
    kernel=$(sed -n "s/^$mark kernel //p" "$log/output")
    for program; do
        output_of "$log/output" "$program" >"$log/$program"
        status=$(sed -n "s/^$mark end $program //p" "$log/output")
        judge_program "$program" "$status" "$log/$program" "$some" || bad=1
    done
    judge_warnings "$log" || bad=1
    while read -r status; do
        parts+=("module $status not loaded")
    done < <(sed -n "s/^$mark module //p" "$log/output")
    parts+=("$(noted lacks lacks "$log/output")" "$(noted untested 'not tested:' "$log/output")")
    if [ -z "$has_ended" ]; then
        bad=1
        case $qemu in
            124 | 137) parts+=('NO END: stopped when its time was up') ;;
            *) parts+=("NO END: qemu ended with $qemu: $(last_words "$log")") ;;
        esac
    fi
    if [ $bad = 0 ]; then status=ok; else status=FAILED; fi
    printf '%s: %s: %s' "$name" "$status" "${kernel:-does not boot}"
    printf '; %s' "${parts[@]}" "$seconds s"
    echo
    return $bad
}

# Adds to parts what came of a program: NAME STATUS OUTPUT SOME.
judge_program() {
    local program=$1 status=$2 output=$3 some=$4 line numbers failed
    if [ "$program" = demo ]; then
        [ "$status" = 0 ] && parts+=("demo ok") && return
        parts+=("demo FAILED ($(of_status "$status"))")
        return 1
    fi
    # All that a test binary says in the end; one that did not get that far has no such line.
    line=$(grep -E '^test result: ' "$output" | tail -1)
    if [[ ! $line =~ ([0-9]+)\ passed\;\ ([0-9]+)\ failed\;\ ([0-9]+)\ ignored\;.*\ ([0-9]+)\ filtered ]]; then
        parts+=("$program FAILED ($(of_status "$status")$(last_tests "$output"))")
        return 1
    fi
    numbers=("${BASH_REMATCH[@]:1}")
    failed=$(sed -nE 's/^test (.*[^ ]) +\.\.\. FAILED$/\1/p' "$output" | paste -sd ' ')
    # Of the programs' tests those of one run here; the others are not meant to.
    [ "$program" != programs ] || numbers[3]=0
    line="$program ${numbers[0]} passed, ${numbers[1]} failed, $((numbers[2] + numbers[3])) skipped"
    if [ "$status" != 0 ] && [ -z "$failed" ]; then failed=$(of_status "$status"); fi
    parts+=("$line${failed:+ ($failed)}")
    [ "$status" = 0 ] && [ "${numbers[0]}" -gt 0 ] && [ "${numbers[1]}" = 0 ] && [ "${numbers[2]}" = 0 ] || return 1
    [ "${numbers[3]}" = 0 ] || [ -n "$some" ]
}

of_status() {
    case $1 in
        '') echo 'no result' ;;
        137) echo 'killed, its time was up' ;;
        *) echo "exit status $1" ;;
    esac
}

# How far a test binary came.
last_tests() {
    local ended
    ended=$(grep -cE '^test .*\.\.\. ' "$1" || true)
    echo ", $ended tests had ended"
}

# Adds to parts what the kernel warned of, in the console in folder $1.
judge_warnings() {
    local log=$1 tainted line known why unknown=0 list=()
    local pattern='WARNING: |BUG: |Oops|general protection|Kernel panic|UBSAN|KASAN|KFENCE|INFO: task|INFO: rcu'
    pattern+='|detected stall|soft lockup|unregister_netdevice: waiting|suspicious RCU|refcount_t'
    grep -E "$pattern" "$log/console" | sed -E 's/^\[ *[0-9.]+\] *(\[[^]]*\])? *//; s/ (CPU|PID): [0-9]+//g' |
        sort | uniq -c | sed -E 's/^ *([0-9]+) /\1 times /' >"$log/warnings" || true
    while IFS= read -r line; do
        why=
        for known in "${known_warnings[@]}"; do
            [[ ! $line =~ ${known%:*} ]] || why=" (known: ${known##*:})"
        done
        [ -n "$why" ] || unknown=1
        list+=("$line$why")
    done <"$log/warnings"
    # What the kernel itself has noted about a warning (512) or an oops (128).
    tainted=$(sed -n "s/^$mark tainted //p" "$log/output")
    if [ ${#list[@]} = 0 ] && ((${tainted:-0} & 640)); then
        list=("tainted $tainted, and nothing on the console") unknown=1
    fi
    if [ ${#list[@]} = 0 ]; then
        parts+=("$([ -n "$has_ended" ] && echo 'no warnings' || echo 'warnings: unknown')")
    else
        parts+=("$([ $unknown = 0 ] || echo 'UNKNOWN ')warnings: $(printf '%s, ' "${list[@]}" | sed 's/, $//')")
    fi
    return $unknown
}

# What tests have noted, each once: KIND TITLE OUTPUT. Where they did not come to an end, nobody knows
# what else they would have noted.
noted() {
    local list rest=nothing
    [ -n "$has_ended" ] || rest=unknown
    list=$(sed -n "s/^$mark noted $1 //p" "$3" | sed 's/:.*//' | sort -u | paste -sd ,)
    [ -z "$list" ] || [ "$rest" = nothing ] || list+=",the rest $rest"
    echo "$2 ${list:-$rest}" | sed 's/,/, /g'
}

# Why a guest has ended.
last_words() {
    { grep -E 'Kernel panic|BUG: |Oops' "$1/console" || tail -q -n 1 "$1/console" "$1/qemu"; } 2>/dev/null |
        { grep -v '^$' || echo 'without a word'; } | tail -1
}
