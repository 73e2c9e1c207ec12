#!/usr/bin/env bash
# Several hosts on one machine: N processes of hydra-jax, each with fake CPU devices, that talk by gloo.
#
#   experiments/launch/local.sh 2 run --config=configs/digits.py --workdir=runs/two --distributed
#   DEVICES=4 experiments/launch/local.sh 2 run --config=configs/digits.py --workdir=runs/eight --distributed \
#     --config.parallel.mesh.data=-1 --config.parallel.mesh.head=2
#
# Process 0 speaks on the terminal; the others write to process-1.log, process-2.log, … in $LOGS.
# SIGTERM and SIGINT are passed on to all, SIGHUP as SIGTERM; a second SIGINT kills all.
# When a process ends with an error, the others have GRACE seconds to end too; what is left is then killed.
#
# Exit code: 0 where all processes return 0. Otherwise 2 if any returned 2 (change something, do not try again);
# else 75 if any returned 75 (saved, try again); else the code of the process that failed first.
# Codes of processes that were killed here, because of another's error, do not count.
#
#   DEVICES    fake devices of each process (1)
#   LOGS       folder of the logs (a temporary one, which stays where something failed)
#   GRACE      seconds (15)
#   POLL       seconds between looks at the processes (0.2)
#   HYDRA_JAX  the program (hydra-jax), such as "python -m hydra_jax.cli"
set -uo pipefail # not -e: codes are looked at one by one

say() { printf 'local.sh: %s\n' "$*" >&3; }
exec 3>&2

if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]] || (($# < 2)); then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
processes=$1
shift
read -ra program <<< "${HYDRA_JAX:-hydra-jax}"
for needed in "${program[0]}" python3; do
  command -v "$needed" > /dev/null || { say "there is no $needed on PATH"; exit 2; }
done
if [[ -n ${LOGS:-} ]]; then mkdir -p "$LOGS" || exit 2; fi
logs=${LOGS:-$(mktemp -d "${TMPDIR:-/tmp}/hydra-local.XXXXXX")} || exit 2
grace=${GRACE:-15} poll=${POLL:-0.2}

# A port that nobody listens on, below those that Linux gives to outgoing connections (32768 and more).
for _ in {1..100}; do
  port=$((20000 + RANDOM % 12000))
  (exec 4<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null || break
done

# bash starts what runs in the background with SIGINT ignored, and Python then never hears of it. And each process
# leads its own group: Ctrl-C comes once, from here, and a signal reaches whatever the process has started.
start='import os, signal, sys
os.setpgid(0, 0)
for s in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE): signal.signal(s, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])'
# Where Linux offers it: should this script be killed itself, its processes are told to save and end.
orphans=()
if setpriv --pdeathsig TERM true 2> /dev/null; then orphans=(setpriv --pdeathsig TERM); fi

launch() { # launch I ARGUMENTS…: becomes process I
  export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port
  export JAX_NUM_PROCESSES=$processes JAX_PROCESS_ID=$1
  export JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"
  exec ${orphans[@]+"${orphans[@]}"} python3 -c "$start" "${program[@]}" "${@:2}"
}

pids=() codes=() # of those that run; of those that have ended by themselves
first=''         # the code of the first that failed
interrupts=0

pass() { # pass SIGNAL: to all that run
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do
    kill "-$1" -- "-$pid" || kill "-$1" "$pid" # the second, in the moment before the group exists
  done
}

collect() { # takes out of `pids` those that have ended
  local alive i code
  alive=$'\n'$(jobs -pr)$'\n'
  for i in "${!pids[@]}"; do
    [[ $alive == *$'\n'${pids[i]}$'\n'* ]] && continue
    wait "${pids[i]}"
    code=$?
    unset "pids[i]"
    codes[i]=$code
    if ((code)); then
      say "process $i ended with code $code"
      first=${first:-$code}
    fi
  done
}

finish() { # finish SECONDS: until all have ended, at most so long
  local until=$((SECONDS + $1))
  while ((${#pids[@]} && SECONDS < until)); do
    sleep "$poll"
    collect
  done
}

trap 'pending=TERM' TERM HUP
trap 'pending=INT' INT
trap 'pass KILL' EXIT
pending=''

for ((i = 0; i < processes; i++)); do
  if ((i)); then
    launch "$i" "$@" < /dev/null > "$logs/process-$i.log" 2>&1 3>&- &
  else
    launch "$i" "$@" < /dev/null 3>&- &
  fi
  pids[i]=$!
done
exec 2> /dev/null # what bash itself has to say of processes that are killed
((processes == 1)) || say "the other processes write to $logs"

deadline=''
while ((${#pids[@]})); do
  sleep "$poll" # signals are seen to after it
  if [[ -n $pending ]]; then
    signal=$pending pending=''
    if [[ $signal == INT ]] && ((interrupts++)); then signal=KILL; fi
    pass "$signal"
  fi
  collect
  if [[ -n $first && -z $deadline ]]; then deadline=$((SECONDS + grace)); fi
  if [[ -n $deadline ]] && ((SECONDS >= deadline && ${#pids[@]})); then
    say "process(es) ${!pids[*]} still run: killed"
    judged=("${codes[@]}")
    pass TERM
    finish 2
    pass KILL
    finish 10
    codes=("${judged[@]}")
    break
  fi
done

result=${first:-0}
for code in "${codes[@]}"; do
  if ((code == 2 || (code == 75 && result != 2))); then result=$code; fi
done

case $result in
  0 | 75 | 130) [[ -n ${LOGS:-} ]] || rm -rf "$logs" ;;
  *) for file in "$logs"/process-*.log; do
    if [[ -s $file ]]; then { echo "== $file"; tail -n 15 "$file"; } >&3; fi
  done ;;
esac
exit "$result"
