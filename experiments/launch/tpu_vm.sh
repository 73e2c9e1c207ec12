#!/usr/bin/env bash
# A slice of Cloud TPU VMs: asks for it, installs, runs, starts again when it is taken away, deletes it at the end.
#
#   hydra-jax check --config=configs/cifar10.py --devices=16 \
#     --config.parallel.mesh.data=-1 --config.parallel.mesh.head=2
#   PROJECT=my-project ZONE=us-east5-b FILESTORE=10.0.0.2:/share experiments/launch/tpu_vm.sh
#
# where gcloud is installed and logged in; best within tmux, since it stays until the work is done. If it is killed,
# the same command goes on with the slice that is there. Ctrl-C saves, then deletes the slice (not with KEEP=1).
# What follows the script's name goes to hydra-jax, such as --config.teacher.members=20.
#
# FILESTORE is an NFS share in the network of the TPU: that is where results go, and where the data sets must be, in
# its folder `data`. It outlives the slice.
set -euo pipefail

PROJECT=${PROJECT:?which project?}
ZONE=${ZONE:?which zone?}
FILESTORE=${FILESTORE:?which NFS share, as address:/share?}
NAME=${NAME:-hydra}                 # of the queued resource, and of the slice
TYPE=${TYPE:-v6e-16}                # 16 chips on 4 hosts
RUNTIME=${RUNTIME:-v2-alpha-tpuv6e} # v5e: v2-alpha-tpuv5-lite; v5p: v2-alpha-tpuv5; v4: tpu-ubuntu2204-base
TIER=${TIER---spot}                 # TIER= asks for a slice that is not taken away
CONFIG=${CONFIG:-configs/cifar10.py}
MOUNT=/mnt/hydra
WORKDIR=${WORKDIR:-$MOUNT/runs/$NAME}
DATA_DIR=${DATA_DIR:-$MOUNT/data}
HEAD=${HEAD:-2} # devices over which members and heads are spread; the batch is spread over the rest
KEEP=${KEEP:-0}
POLL=${POLL:-30}               # seconds between looks at the queue
RETRY_AFTER=${RETRY_AFTER:-600} # seconds; who fails earlier will do so again

cd "$(dirname "$0")/../.."
command=(run --config="$CONFIG" --workdir="$WORKDIR" --data_dir="$DATA_DIR" --distributed
  --config.parallel.mesh.data=-1 --config.parallel.mesh.head="$HEAD" "$@")

say() { printf '%(%H:%M:%S)T tpu_vm.sh: %s\n' -1 "$*" >&2; }
tpus() { gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"; }

# Alive every 30 s: a host that is gone is noticed after two minutes, and not when TCP gives up.
on_all() { # on_all COMMAND: on all hosts of the slice
  tpus tpu-vm ssh "$NAME" --worker=all --command="$1" \
    --ssh-flag='-o ServerAliveInterval=30 -o ServerAliveCountMax=4 -o ConnectTimeout=20'
}

state() { # of the request and of the slice: ACTIVE/READY can be used, / does not exist
  local request slice
  request=$(tpus queued-resources list --filter="name~/$NAME\$" --format='value(state.state)') || request=UNKNOWN
  slice=$(tpus tpu-vm list --filter="name~/$NAME\$" --format='value(state)') || slice=UNKNOWN
  echo "$request/$slice"
}

release() { tpus queued-resources delete "$NAME" --force --quiet; }

acquire() {
  local now before=''
  while :; do
    now=$(state)
    [[ $now == "$before" ]] || say "request/slice: $now"
    before=$now
    case $now in
      ACTIVE/READY) return ;;
      /*)
        tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
          --runtime-version="$RUNTIME" ${TIER:+"$TIER"} || exit
        ;;
      FAILED/* | SUSPENDED/* | */PREEMPTED | */TERMINATED) release || true ;; # none of these comes back
    esac
    sleep "$POLL"
  done
}

# The next three run on the hosts: their text is sent there.
install_on_host() { # SHARE MOUNT WORKDIR
  set -e
  if ! mountpoint -q "$2"; then
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y nfs-common
    sudo mkdir -p "$2"
    sudo mount -t nfs "$1" "$2"
  fi
  sudo mkdir -p "$3"
  [ -O "$3" ] || sudo chown -R "$(id -u)" "$3"
  rm -rf hydra
  mkdir hydra
  tar -xzf hydra.tar.gz -C hydra
  python3 -m pip install -q --user uv # the hosts' own Python is too old
  [ -x hydra-env/bin/python ] || python3 -m uv venv -q --python 3.12 hydra-env
  python3 -m uv pip install -q --python hydra-env/bin/python ./hydra 'jax[tpu]'
}

run_on_host() { # ARGUMENTS…
  cd hydra || exit 1
  # A TPU belongs to one process. If a lost connection has left one behind: it saves and ends first.
  pkill -TERM -u "$(id -u)" -x hydra-jax
  exec 9> "$HOME/hydra.lock"
  flock -w 300 9 || exit 1
  exec "$HOME/hydra-env/bin/hydra-jax" "$@"
}

stop_on_host() {
  pkill -TERM -u "$(id -u)" -x hydra-jax
  timeout 120 flock "$HOME/hydra.lock" true
}

install() {
  say 'installing'
  tar -czf "$scratch/hydra.tar.gz" pyproject.toml README.md LICENSE hydra_jax configs || return
  tpus tpu-vm scp "$scratch/hydra.tar.gz" "$NAME:" --worker=all || return
  on_all "$(declare -f install_on_host); install_on_host$(printf ' %q' "$FILESTORE" "$MOUNT" "$WORKDIR")" || return
  if ! on_all "test -O$(printf ' %q' "$WORKDIR")"; then
    say 'could not check that user ids are the same on all hosts; if they differ: use OS Login'
    return 1
  fi
}

run() { # in the background, so that a signal is seen to at once
  say 'running'
  on_all "$(declare -f run_on_host); run_on_host$(printf ' %q' "${command[@]}")" &
  wait $!
}

interrupted() {
  trap '' INT TERM HUP
  say 'saving on all hosts'
  on_all "$(declare -f stop_on_host); stop_on_host" || true
  exit 130
}

leave() {
  local code=$?
  rm -rf "$scratch"
  if [[ $KEEP == 1 ]]; then
    say "kept: gcloud compute tpus queued-resources delete $NAME --force --project=$PROJECT --zone=$ZONE"
  else
    say 'deleting the slice'
    release || say 'IT COULD NOT BE DELETED, and may cost money'
  fi
  exit "$code"
}

scratch=$(mktemp -d)
trap leave EXIT
trap interrupted INT TERM HUP

while :; do
  acquire
  started=$SECONDS code=0
  { install && run; } || code=$?
  say "ended with code $code after $((SECONDS - started)) s"
  case $code in
    0 | 2) exit "$code" ;; # done; or something has to be changed
    75) continue ;;        # saved
  esac
  # A slice that was lost is one reason, and is asked for again. Otherwise: who fails in the first ten minutes will do
  # so again.
  sleep "$POLL"
  if [[ $(state) == ACTIVE/READY ]] && ((SECONDS - started < RETRY_AFTER)); then exit "$code"; fi
done
