#!/bin/bash
# One task of a step: `task.sh ranks WORDS...` starts this node's ranks, or is one; `task.sh rank` is what
# torchrun starts, and `task.sh one` a command that needs no ranks.
# Every rank becomes the Python process (exec): a signal meets no shell on its way.
set -u
what="$1"
shift

become() { exec "$KDSCALE_PYTHON" -m kdscale "$@" >>"$LOGS/$log.log" 2>&1 </dev/null; }

if [ "$what" = rank ]; then
    log="rank-$RANK"
    become "$@"
fi
if [ "$SLURM_PROCID" = 0 ]; then echo "$SLURM_JOB_ID.$SLURM_STEP_ID" >"$LOGS/step"; fi
if [ -n "${KDSCALE_SCRATCH:-}" ]; then
    mkdir -p "$KDSCALE_SCRATCH" || exit 64
    export TMPDIR="$KDSCALE_SCRATCH"
fi
if [ "$what" = one ] || [ "$KDSCALE_LAUNCH" = srun ]; then
    log="rank-$SLURM_PROCID"
    become "$@"
fi
exec "$KDSCALE_PYTHON" -m torch.distributed.run --nnodes "$KDSCALE_NODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$KDSCALE_RANKS" \
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" --max-restarts 0 \
    --no-python bash "$KDSCALE_SLURM/task.sh" rank "$@" >>"$LOGS/launcher-$SLURM_NODEID.log" 2>&1 </dev/null
