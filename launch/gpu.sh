#!/usr/bin/env bash
# Train on one machine with one to eight NVIDIA GPUs:
#   launch/gpu.sh --gpus 0,1,2,3 train gsm8k --output_dir runs/gsm8k
#
# One process drives all the GPUs; JAX needs no launcher on one machine. The last step replaces this shell with
# grpo-jax, so that SIGTERM reaches it: it saves and exits, and the same command resumes. Ctrl-C ends it unsaved.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/gpu.sh [options] train [RECIPE] [--field value ...]

Checks the driver, makes .venv and installs grpo-jax[cuda13] into it when that is missing, then runs grpo-jax.

options:
  --gpus LIST    which GPUs, numbered as in nvidia-smi: 0 or 0,1,2,3; default: all
  --cuda 12|13   default: 13 when the driver is 580 or newer, 12 from 525
  --python EXE   Python 3.11 or newer for the new .venv; default: python3
  --dry-run      print every command, ready to be pasted, and run none
  -h, --help     this text
EOF
}

die() {
  echo "error: $*" >&2
  exit 2
}

do_or_print() {
  if [[ $dry_run ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}

set_value() {
  case $1 in
    --gpus) gpus=$2 ;;
    --cuda) cuda=$2 ;;
    --python) python=$2 ;;
  esac
}

gpus='' cuda='' python=python3 dry_run=''
while (($#)); do
  case $1 in
    --) shift && break ;;
    -h | --help) usage && exit 0 ;;
    --dry-run) dry_run=yes ;;
    --gpus=* | --cuda=* | --python=*) set_value "${1%%=*}" "${1#*=}" ;;
    --gpus | --cuda | --python)
      [[ $# -gt 1 && $2 != -* ]] || die "$1 needs a value"
      set_value "$1" "$2"
      shift
      ;;
    -*) die "unknown option '$1' (--help lists them; options of grpo-jax go after train)" ;;
    *) break ;;
  esac
  shift
done
(($#)) || die "nothing to run: add for example 'train gsm8k'"
[[ -z $gpus || $gpus =~ ^[0-9]+(,[0-9]+)*$ ]] || die "--gpus '$gpus': write numbers such as 0 or 0,1,2,3"
[[ $cuda =~ ^(12|13)?$ ]] || die "--cuda '$cuda': write 12 or 13"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

# Sets `found` (GPUs here) and, unless given, `cuda`. The driver limits are those of JAX's installation page.
check_driver() {
  local drivers major
  command -v nvidia-smi >/dev/null || die "no nvidia-smi here: install NVIDIA's driver, 580 or newer for CUDA 13"
  drivers=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader) || die "nvidia-smi found no GPU: $drivers"
  found=$(wc -l <<<"$drivers")
  major=${drivers%%.*}
  [[ $major =~ ^[0-9]+$ ]] || die "nvidia-smi gave no driver version but '${drivers%%$'\n'*}'"
  if [[ $cuda ]]; then
    return
  elif ((major >= 580)); then
    cuda=13
  elif ((major >= 525)); then
    cuda=12
  else
    die "driver ${drivers%%$'\n'*} is too old: CUDA 13 needs 580, CUDA 12 needs 525"
  fi
}

check_gpus() {
  local gpu
  for gpu in ${gpus//,/ }; do
    ((10#$gpu < found)) || die "--gpus $gpus: there is no GPU $gpu, only 0 to $((found - 1))"
  done
}

is_installed() {
  [[ -x $venv/bin/python ]] && "$venv/bin/python" - "jax_cuda${cuda}_plugin" <<'EOF'
import importlib.util, sys
sys.exit(not all(importlib.util.find_spec(name) for name in ("grpo_jax", sys.argv[1])))
EOF
}

make_venv() {
  if [[ ! $dry_run && ! -x $venv/bin/python ]]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "--python $python: 3.11 or newer is needed"
  fi
  [[ ! $dry_run && -x $venv/bin/python ]] || do_or_print "$python" -m venv "$venv"
  do_or_print "$venv/bin/python" -m pip install --editable "${root}[cuda$cuda]"
}

# Every setting with its reason; README.md has the sources. What is set in the environment already wins.
choose_settings() {
  # CUDA's own order is fastest first; nvidia-smi's is by bus. Without this --gpus 0 may be another card.
  settings=(CUDA_DEVICE_ORDER=PCI_BUS_ID)
  [[ -z $gpus ]] || settings+=("CUDA_VISIBLE_DEVICES=$gpus")
  # JAX takes 75 % of the memory by default; what NCCL, cuBLAS and the CUDA context need fits in 10 %.
  [[ ${XLA_CLIENT_MEM_FRACTION:-}${XLA_PYTHON_CLIENT_MEM_FRACTION:-} ]] || settings+=(XLA_CLIENT_MEM_FRACTION=0.9)
  # Off by default. Gathers the next layer's weights while this one computes; one GPU has nothing to gather.
  local chosen=${gpus:-${CUDA_VISIBLE_DEVICES:-}}
  if [[ $chosen == *,* || (-z $chosen && $found -gt 1) ]]; then
    settings+=("XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}")
  fi
}

if [[ $dry_run ]]; then
  found=8 # not asked: a dry run starts nothing
  [[ $cuda ]] || echo "# cuda13 when the driver is 580 or newer, cuda12 from 525"
  cuda=${cuda:-13}
  make_venv
else
  check_driver
  check_gpus
  is_installed || make_venv
fi
choose_settings
command=(env "${settings[@]}" "$venv/bin/grpo-jax" "$@")
if [[ $dry_run ]]; then do_or_print "${command[@]}"; else exec "${command[@]}"; fi
