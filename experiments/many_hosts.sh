#!/bin/sh
# Trains, evaluates or predicts with several processes on this machine, as with as many hosts, CPUs only:
#     experiments/many_hosts.sh PROCESSES [MODE] --config=configs/quickstart.py --workdir=runs/hosts
# PYTHON, PORT and DEVICES (of each process) may be set; the exit code is that of the worst.
set -eu
[ $# -ge 2 ] || { sed -n '2,4s/^# *//p' "$0" >&2; exit 2; }
count=$1
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
address=127.0.0.1:${PORT:-29500}
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"
pids=
trap 'kill -TERM $pids 2>/dev/null' INT TERM
for process in $(seq 0 $((count - 1))); do
    "$python" main.py "$@" --coordinator="$address" --processes="$count" --process="$process" &
    pids="$pids $!"
done
worst=0
for pid in $pids; do
    code=0
    wait "$pid" || code=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || code=$?; done # after a signal
    [ "$code" -le "$worst" ] || worst=$code
done
exit "$worst"
