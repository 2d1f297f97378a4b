#!/usr/bin/env bash
# Train on a Cloud TPU VM or a whole pod slice, from your own machine:
#   launch/tpu_vm.sh up --name demo --zone us-west4-a --type v5litepod-16 -- train gsm8k --output_dir gs://bucket/run
#
# Decisions. Every worker gets the same text to run and finds its own number in the VM's metadata. The run lives in
# a session of its own, so a lost connection cannot end it; launch.pid and launch.log stand in the checkout on each
# worker. Works with the bash 3.2 of macOS, hence no arrays that may be empty.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/tpu_vm.sh VERB --name NAME --zone ZONE [options] [-- train [RECIPE] --field value ...]

  create    make the TPU VM or pod slice (--type)
  install   put the code on every worker and install it there
  run       start `grpo-jax train ...` on every worker, detached from the connection
  follow    show the log of worker 0 until the run ends
  stop      SIGTERM to every worker's run, which saves and exits; waits for that
  delete    delete the TPU VM and its disks; asks first
  up        create if missing (or preempted), install, run: also the command that resumes

options:
  --name NAME        the TPU VM's name
  --zone ZONE        for example us-west4-a
  --project PROJECT  default: gcloud's own setting
  --type TYPE        accelerator type: v5litepod-16, v6e-16, v5p-32, v4-8 (create, up)
  --version IMAGE    runtime image; default: the one that Google lists for the type
  --spot             a Spot VM: cheaper, may be taken away at any time
  --repo URL         git repository to install; default: a copy of this checkout, with your changes
  --env NAME=VALUE   a variable for the run, may be repeated (--env LIBTPU_INIT_ARGS=--xla_...)
  --yes              delete without asking
  --dry-run          print every command, ready to be pasted, and run none
  -h, --help         this text
EOF
}

die() {
  echo "error: $*" >&2
  exit 2
}

# One word, single-quoted only where a shell would change it. Not printf %q: its $'...' is bash's own and its
# backslashes make a whole script unreadable.
quote() {
  local rest=$1
  case $rest in
    '' | *[!A-Za-z0-9_./:=,@%+-]*) ;;
    *) printf '%s' "$rest" && return ;;
  esac
  printf "'"
  while [[ $rest == *\'* ]]; do
    printf "%s'\\\\''" "${rest%%\'*}"
    rest=${rest#*\'}
  done
  printf "%s'" "$rest"
}

quote_all() {
  local word separator=
  for word in "$@"; do
    printf '%s' "$separator" && quote "$word"
    separator=' '
  done
}

do_or_print() {
  if [[ $dry_run ]]; then quote_all "$@" && echo; else "$@"; fi
}

tpu() {
  do_or_print gcloud compute tpus tpu-vm "$@" "--zone=$zone" ${project:+"--project=$project"}
}

everywhere() {
  tpu ssh "$name" --worker=all "--command=$1"
}

# The images of https://cloud.google.com/tpu/docs/runtimes for JAX.
image_for() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  [[ $type ]] || die "$verb needs --type, for example --type v5litepod-16"
  tpu create "$name" "--accelerator-type=$type" "--version=${version:-$(image_for "$type")}" ${spot:+--spot}
}

# A preempted Spot VM cannot be started again and its disk is gone: only deleting it frees the name.
create_if_missing() {
  [[ $type ]] || die "$verb needs --type, for example --type v5litepod-16"
  if [[ $dry_run ]]; then
    echo "# unless '$name' is there and READY:"
    create
    return
  fi
  local state
  state=$(tpu describe "$name" "--format=value(state)" 2>/dev/null) || state=absent
  case $state in
    READY) echo "using '$name', which is there already" >&2 ;;
    absent) create ;;
    PREEMPTED | TERMINATED)
      echo "'$name' is $state: deleting it and making it anew" >&2
      tpu delete "$name" --quiet
      create
      ;;
    *) die "'$name' is $state, not READY: wait, or see 'gcloud compute tpus tpu-vm describe $name --zone=$zone'" ;;
  esac
}

# The functions *_text print what a worker's shell runs, in the checkout ~/grpo-jax.
# The pid file may be left from before a reboot, so the process behind it is asked for its name.
# shellcheck disable=SC2016  # expanded on the worker
prelude='cd grpo-jax || exit 1
alive() { grep -qs grpo-jax "/proc/$(cat launch.pid 2>/dev/null || echo none)/cmdline"; }'
refuse_if_alive='if alive; then echo "error: a run is going on here; stop it first" >&2; exit 1; fi'

# The images bring Python 3.10; uv fetches the 3.11 that grpo-jax needs.
install_text() {
  echo 'mkdir -p grpo-jax'
  echo "$prelude"
  echo "$refuse_if_alive"
  echo 'set -e'
  if [[ $repo ]]; then
    echo "if [ -d .git ]; then git pull --ff-only; else git clone -- $(quote "$repo") .; fi"
  else
    echo 'tar -xzf ../grpo-jax.tar.gz'
  fi
  cat <<'EOF'
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user --upgrade uv
python3 -m uv venv --quiet --allow-existing --python 3.11 .venv
python3 -m uv pip install --quiet --python .venv --editable '.[tpu]'
EOF
}

# With several workers each passes the first one's address and its own number; the metadata lists workers in order,
# as names or as a:b:address triples. 8476 is the port that JAX itself uses on TPU VMs.
run_text() {
  echo "$prelude"
  echo "$refuse_if_alive"
  echo "set -- $(quote_all "$@")"
  cat <<'EOF'
[ -x .venv/bin/grpo-jax ] || { echo "error: grpo-jax is not installed here; install first" >&2; exit 1; }
attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
metadata() { curl -sf -H Metadata-Flavor:Google "$attributes/$1" || { echo "error: no $attributes/$1" >&2; exit 1; }; }
workers=$(metadata worker-network-endpoints) || exit 1
number=$(metadata agent-worker-number) || exit 1
count=$(printf '%s\n' "$workers" | tr , '\n' | wc -l)
first=${workers%%,*}
if [ "$count" -gt 1 ]; then
  set -- "$@" --coordinator "${first##*:}:8476" --num_processes "$((count))" --process_id "$number"
fi
EOF
  echo "setsid env$environment .venv/bin/grpo-jax \"\$@\" >>launch.log 2>&1 </dev/null &"
  # shellcheck disable=SC2016
  echo 'echo $! >launch.pid; echo "worker $number: started, pid $!"'
}

follow_text() {
  echo "$prelude"
  # shellcheck disable=SC2016
  echo '[ -s launch.pid ] || { echo "error: nothing has been started here" >&2; exit 1; }'
  # shellcheck disable=SC2016
  echo 'tail -n 200 -F --pid="$(cat launch.pid)" launch.log'
}

stop_text() {
  echo "$prelude"
  cat <<'EOF'
if ! alive; then echo "nothing is running here"; exit 0; fi
kill -TERM "$(cat launch.pid)"
fifths=0
while alive && [ "$fifths" -lt 3000 ]; do sleep 0.2; fifths=$((fifths + 1)); done
if alive; then echo "error: still running 600 s after SIGTERM" >&2; exit 1; fi
echo "saved and stopped"
EOF
}

# Patterns that start with ./ name top-level folders only: grpo_jax/runs is code, runs is not.
copy_checkout() {
  local root archive
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive=$root/.cache/grpo-jax.tar.gz
  do_or_print mkdir -p "$root/.cache"
  do_or_print tar -czf "$archive" -C "$root" --exclude ./.git --exclude ./.venv --exclude ./.cache --exclude ./runs \
    --exclude ./dist --exclude ./build --exclude '*_cache' --exclude __pycache__ --exclude .hypothesis .
  tpu scp "$archive" "$name:grpo-jax.tar.gz" --worker=all
}

install() {
  [[ $repo ]] || copy_checkout
  everywhere "$(install_text)"
}

# A worker's own disk is not shared with the others and goes with the VM.
note_output() {
  case " $* " in
    *gs://*) ;;
    *) echo "note: no gs:// path in the command: without --output_dir gs://... the run is lost with the VM," \
      "and a slice of several workers has no folder in common" >&2 ;;
  esac
}

run() {
  (($#)) || die "nothing to run: add for example '-- train gsm8k --output_dir gs://bucket/run'"
  note_output "$@"
  everywhere "$(run_text "$@")"
}

delete() {
  if [[ ! $yes && ! $dry_run ]]; then
    [[ -t 0 ]] || die "delete asks first and there is no terminal to ask on: add --yes"
    local answer
    read -r -p "Delete TPU VM '$name' and everything on its disks? Type its name: " answer
    [[ $answer == "$name" ]] || die "not deleted: '$answer' is not '$name'"
  fi
  tpu delete "$name" --quiet
}

verb='' name='' zone='' project='' type='' version='' repo='' environment='' spot='' yes='' dry_run=''

set_value() {
  case $1 in
    --name) name=$2 ;;
    --zone) zone=$2 ;;
    --project) project=$2 ;;
    --type) type=$2 ;;
    --version) version=$2 ;;
    --repo) repo=$2 ;;
    --env)
      [[ $2 =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "--env '$2': write NAME=VALUE"
      environment+=" $(quote "$2")"
      ;;
  esac
}

while (($#)); do
  case $1 in
    --) break ;;
    -h | --help) usage && exit 0 ;;
    --dry-run) dry_run=yes ;;
    --spot) spot=yes ;;
    --yes) yes=yes ;;
    --name=* | --zone=* | --project=* | --type=* | --version=* | --repo=* | --env=*) set_value "${1%%=*}" "${1#*=}" ;;
    --name | --zone | --project | --type | --version | --repo | --env)
      [[ $# -gt 1 && $2 != -* ]] || die "$1 needs a value"
      set_value "$1" "$2"
      shift
      ;;
    -*) die "unknown option '$1' (--help lists them)" ;;
    *)
      [[ ! $verb ]] || die "unexpected '$1': what grpo-jax should run goes after --"
      verb=$1
      ;;
  esac
  shift
done
if (($#)); then shift; fi # the --

case $verb in
  create | install | run | follow | stop | delete | up) ;;
  '') die "no verb: give create, install, run, follow, stop, delete or up (--help explains them)" ;;
  *) die "unknown verb '$verb': give create, install, run, follow, stop, delete or up" ;;
esac
[[ $name ]] || die "$verb needs --name"
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || die "--name '$name': lower-case letters, digits and hyphens, a letter first"
[[ $zone ]] || die "$verb needs --zone, for example --zone us-west4-a"
[[ $verb == run || $verb == up || $# == 0 ]] || die "$verb takes no command after --; run and up do"
[[ $dry_run ]] || command -v gcloud >/dev/null || die "no gcloud here: install the Google Cloud CLI first"

case $verb in
  follow) tpu ssh "$name" --worker=0 "--command=$(follow_text)" ;;
  stop) everywhere "$(stop_text)" ;;
  run) run "$@" ;;
  up)
    (($#)) || die "nothing to run: add for example '-- train gsm8k --output_dir gs://bucket/run'"
    create_if_missing
    install
    run "$@"
    ;;
  *) "$verb" ;; # create, install, delete
esac
