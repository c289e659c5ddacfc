# What the jobs share: a step that is asked to stop in time, the verdict that it leaves, and whether the job starts again.
# Sourced by train.sbatch, sweep.sbatch and pack.sbatch after site.env. Bash 4.4 or later.

VERDICTS=files   # none: a command without a verdict, which any start continues
asked=""      # the first signal that asked for a stop
signals=0     # how many were seen
reminder=""   # process that asks the step

say() { printf '%s kdscale job %s: %s\n' "$(date '+%F %T')" "$(job_name)" "$*" >&2; }

# An element of an array by its array's name: the number of one of them stands for them all.
job_name() { echo "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"; }

job_fact() { scontrol --oneliner show job "$(job_name)" 2>/dev/null | sed -n "s/.* $1=\([^ ]*\).*/\1/p" | head -n 1; }

# The word after --out among those of a command.
folder_of() {
    while [ $# -gt 0 ]; do
        case "$1" in
            --out | -o) echo "${2:-}"; return ;;
            --out=*) echo "${1#--out=}"; return ;;
        esac
        shift
    done
}

# Where a run's logs and its count of starts are: beside its folder, which holds nothing but the run.
open_logs() {   # $1: the run's folder
    OUT="${1%/}"
    if [ -z "$OUT" ]; then say "no folder is named: --out DIR"; exit 64; fi
    BESIDE="$OUT.slurm"
    STATE="$BESIDE/state-${SLURM_JOB_ID}"
    starts=0 stuck=0 reached=-1
    mkdir -p "$BESIDE" || exit 64
    if [ -f "$STATE" ]; then read -r starts stuck reached <"$STATE"; fi
    starts=$((${starts:-0} + 1)) stuck="${stuck:-0}" reached="${reached:--1}"   # the file of a node that died may be empty
    echo "$starts $stuck $reached" >"$STATE"
    if [ "$starts" -gt $((KDSCALE_RESTARTS + 1)) ]; then   # a job that never came to its own decision: its nodes died
        say "start $starts is more than KDSCALE_RESTARTS=$KDSCALE_RESTARTS allows"
        exit 70
    fi
    LOGS="$BESIDE/job-${SLURM_JOB_ID}-start-$starts"
    mkdir -p "$LOGS"
    : >"$LOGS/begun"   # the verdict of an earlier start is older than this file
    say "start $starts on $SLURM_JOB_NODELIST, logs in $LOGS"
    if [ "$(job_fact Requeue)" = 0 ]; then say "this job may not be requeued and will not start again by itself: sbatch --requeue"; fi
}

# The address of a node. Its name need not resolve: Slurm itself may know it by another.
address_of() {
    local told
    told="$(scontrol --oneliner show node "$1" 2>/dev/null | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')"
    echo "${told:-$1}"
}

rendezvous() {
    MASTER_ADDR="$(address_of "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)")"
    MASTER_PORT=$((20000 + (SLURM_JOB_ID + 997 * (starts - 1)) % 10000))   # a port that was taken is not tried again
    export MASTER_ADDR MASTER_PORT
    if [ -n "${KDSCALE_INTERFACE:-}" ]; then export NCCL_SOCKET_IFNAME="$KDSCALE_INTERFACE" GLOO_SOCKET_IFNAME="$KDSCALE_INTERFACE"; fi
}

# Cores of the node of this job that has fewest: "4(x2),2" -> 2.
cores() { tr ',' '\n' <<<"${SLURM_JOB_CPUS_PER_NODE:-1}" | sed 's/(.*//' | sort -n | head -n 1; }

# `kdscale "$@"` on every rank of the job, as one step.
start_ranks() {
    local nodes="${SLURM_JOB_NUM_NODES:-1}" ranks="${KDSCALE_RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}" tasks=1 share words
    rendezvous
    if [ "$ranks" -lt 1 ]; then ranks=1; fi
    if [ "$KDSCALE_LAUNCH" = srun ]; then tasks="$ranks"; fi
    share=$(($(cores) / tasks))
    words=(--nodes="$nodes" --ntasks=$((nodes * tasks)) --ntasks-per-node="$tasks" --cpus-per-task=$((share > 0 ? share : 1)))
    export KDSCALE_RANKS="$ranks" KDSCALE_NODES="$nodes"
    start_step "${words[@]}" -- ranks "$@"
}

# `kdscale "$@"` as one process with all cores of a node.
start_one() { start_step --nodes=1 --ntasks=1 --cpus-per-task="$(cores)" -- one "$@"; }

start_step() {   # options of srun -- words for task.sh
    local options=() prefix
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    # What sbatch was told of tasks would be taken for what srun is told.
    unset SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE
    read -r -a prefix <<<"${KDSCALE_CONTAINER:-}"
    export SLURM_EXPORT_ENV=ALL   # whatever sbatch was given to export: ranks need what is set here
    export LOGS TORCH_ELASTIC_SHUTDOWN_TIMEOUT="$KDSCALE_SAVE_SECONDS"
    # A rank that has ended is no reason to end the others at once: they may be writing the save. What is left is killed later.
    srun --kill-on-bad-exit=0 --wait="$KDSCALE_SAVE_SECONDS" "${options[@]}" \
        "${prefix[@]}" bash "$KDSCALE_SLURM/task.sh" "$@" 2>>"$LOGS/step.log" &
    step=$!
}

# Asks every task of the step to save and to leave, as soon as there is one. Never USR1: torchrun dies of it and leaves its
# ranks behind.
ask_step() {   # $1: seconds to wait before
    trap 'kill $!; exit' TERM
    sleep "$1" & wait $!
    until [ -s "$LOGS/step" ]; do sleep 0.2 & wait $!; done
    scancel --signal=TERM "$(cat "$LOGS/step")" 2>/dev/null
}

# USR1 comes to this shell alone and is handed on at once. With TERM Slurm has asked the step by itself, and a second word
# within five seconds would make the ranks drop the save that they are writing: the step is only reminded.
on_signal() {
    signals=$((signals + 1))
    say "received $1"
    if [ -z "$asked" ]; then
        asked="$1"
        if [ "$1" = USR1 ]; then ask_step 0 & else ask_step 8 & fi
        reminder=$!
    fi
}
trap 'on_signal USR1' USR1
trap 'on_signal TERM' TERM

# Waits for a child, whatever signals arrive meanwhile; its exit code.
wait_for() {
    local code seen
    while :; do
        seen="$signals"
        wait "$1"
        code=$?
        if [ "$signals" = "$seen" ]; then break; fi
    done
    if [ -n "$reminder" ]; then kill "$reminder" 2>/dev/null; fi
    return "$code"
}

# How the run ended. Launchers turn every exit code into 1, so the run's own word counts, if this start has left one.
code_of() {   # $1: exit code of the step
    local told=""
    if [ "$VERDICTS" = none ]; then
        if [ "$1" = 0 ]; then told=0; fi
    elif [ "$OUT/verdict.json" -nt "$LOGS/begun" ]; then
        told="$(sed -n 's/^ *"code": *\([0-9]\{1,3\}\).*/\1/p' "$OUT/verdict.json" | head -n 1)"
    fi
    if [ -z "$told" ] && [ -n "$asked" ]; then told=75; fi   # asked before it had begun
    # Before it holds its folder a run has no verdict, and of several exit codes srun tells the highest: what is not worth
    # a retry stands in the words of torchrun and srun.
    if [ -z "$told" ]; then
        told="$(sed -n 's/^.*\(exitcode *: *\|exit code \)\(64\|71\)\( .*\)\{0,1\}$/\2/p' "$LOGS"/launcher-*.log "$LOGS/step.log" 2>/dev/null | head -n 1)"
    fi
    echo "${told:-70}"
}

# The last step that a save holds, or the number of shards: what a start may have gained.
progress() {
    local newest
    if [ "$VERDICTS" = none ]; then find "$OUT" -name '*.tar' 2>/dev/null | wc -l; return; fi
    newest="$(ls "$OUT/checkpoints" 2>/dev/null | sed -n 's/^step-0*\([0-9]\{1,\}\)$/\1/p' | sort -n | tail -n 1)"
    echo "${newest:--1}"
}

# Whether a start that ended with this code is followed by another: "again" or "end", and why.
decide() {   # $1: code, $2: starts so far, $3: faults in a row without a newer save
    case "$1" in
        0) echo "end done" ;;
        75 | 70 | 72)
            if [ "$2" -gt "$KDSCALE_RESTARTS" ]; then
                echo "end $2 starts are more than KDSCALE_RESTARTS=$KDSCALE_RESTARTS allows"
            elif [ "$1" = 75 ]; then
                echo "again saved, and to be continued"
            elif [ "$3" -gt "$KDSCALE_RETRIES" ]; then
                echo "end $3 faults without a newer save between them are more than KDSCALE_RETRIES=$KDSCALE_RETRIES allows"
            else
                echo "again fault $3 without a newer save; KDSCALE_RETRIES=$KDSCALE_RETRIES"
            fi
            ;;
        *) echo "end with a code that is not started again" ;;
    esac
}

# Ends the job: requeued, or with the run's code. Never returns.
conclude() {   # $1: exit code of the step
    local code now verdict state
    code="$(code_of "$1")"
    now="$(progress)"
    if [ "$now" -gt "$reached" ]; then stuck=0 reached="$now"; fi
    case "$code" in 70 | 72) stuck=$((stuck + 1)) ;; esac
    echo "$starts $stuck $reached" >"$STATE"
    verdict="$(decide "$code" "$starts" "$stuck")"
    say "ended with $code at step $now (the step's own exit code: $1): ${verdict#* }"
    case "$code" in 0 | 75) ;; *) tail -n 5 "$LOGS"/*.log >&2 ;; esac
    if [ "${verdict%% *}" = end ]; then exit "$code"; fi
    state="$(job_fact JobState)"   # one that is being cancelled or requeued already is not ours to requeue
    if [ "$state" != RUNNING ]; then
        say "Slurm is ending this job itself (${state:-no state})"
    elif scontrol requeue "$(job_name)"; then
        exit 0
    else
        say "requeue was refused: submit the same command again, it continues"
    fi
    exit "$code"
}
