#!/usr/bin/env bash
# A run on a Google Cloud TPU slice, from creating it to deleting it. DRY=1 prints the commands only.
#
#   export PROJECT=my-project ZONE=us-east5-b NAME=smoljax TYPE=v6e-64
#   experiments/cloud/tpu.sh create   # a queued resource: it starts when there is room (SPOT=1: cheaper)
#   experiments/cloud/tpu.sh setup    # this commit and requirements.txt, on every host
#   experiments/cloud/tpu.sh run --config=configs/smollm3.py:size=3b --workdir=/mnt/runs/3b
#   experiments/cloud/tpu.sh logs     # of every host, as they come
#   experiments/cloud/tpu.sh delete
#
# The workdir must be one folder on all hosts, such as a Filestore share: with MOUNT=10.0.0.2:/share
# setup mounts it at /mnt/runs. `stop` asks the run to save and end. A run that ends for another
# reason than bad input is started again on its host (again.sh). One that was stopped or preempted
# goes on with the same `run`, on a slice of another size too. Whether it fits is told by
# python -m experiments.run --config=… --estimate --topology=$TYPE
#
# A few hosts with GPUs need no script; SLURM's srun starts one process each, and jax finds them:
#   srun --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 \
#     experiments/cloud/again.sh python -m experiments.run --config=… --workdir=/shared/3b --distributed
set -euo pipefail
cd "$(dirname "$0")/../.."
source experiments/cloud/commands.sh
: "${PROJECT:?set PROJECT, ZONE, NAME and TYPE first}" "${ZONE:?}" "${NAME:?}" "${TYPE:?}"
COMMIT=${COMMIT:-$(git rev-parse HEAD)}
REPOSITORY=${REPOSITORY:-$(git config --get remote.origin.url || true)}
case "$TYPE" in
  v5e-*) ACCELERATOR=v5litepod-${TYPE#*-} RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} ;;
  v6e-*) ACCELERATOR=$TYPE RUNTIME=${RUNTIME:-v2-alpha-tpuv6e} ;;
  v5p-*) ACCELERATOR=$TYPE RUNTIME=${RUNTIME:-v2-alpha-tpuv5} ;;
  *) ACCELERATOR=$TYPE RUNTIME=${RUNTIME:-tpu-ubuntu2204-base} ;;
esac

everywhere() {  # one line, without the indentation
  run gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker=all \
    --command="$(tr -s '\n ' ' ' <<< "$1" | sed 's/ $//')"
}

case "${1:-}" in
  create)
    run gcloud compute tpus queued-resources create "$NAME" --project="$PROJECT" --zone="$ZONE" \
      --node-id="$NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
      $(is "${SPOT:-}" && echo --spot)
    ;;
  setup)
    everywhere "set -e; test -d smoljax || git clone -q $REPOSITORY smoljax;
      cd smoljax; git fetch -q; git checkout -q $COMMIT; python3 -m venv .venv;
      .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'
        -f https://storage.googleapis.com/jax-releases/libtpu_releases.html;
      ${MOUNT:+sudo apt-get install -qy nfs-common; sudo mkdir -p /mnt/runs;
        mountpoint -q /mnt/runs || sudo mount -t nfs $MOUNT /mnt/runs;
        sudo chown \$(id -u) /mnt/runs; chmod 700 /mnt/runs}"
    ;;
  run)
    flags=$(printf ' %q' "${@:2}")
    # It outlives the connection. A host that has one running does not start another.
    everywhere "cd smoljax && (flock -n run.lock nohup experiments/cloud/again.sh .venv/bin/python
      -m experiments.run$flags --distributed >> run.log 2>&1 &)"
    ;;
  logs) everywhere "tail -n 100 -F smoljax/run.log" ;;
  stop) everywhere "pkill -TERM -f 'python -m experiments.ru[n]'" ;;
  delete)
    run gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" \
      --force --quiet
    ;;
  *) sed -n '2,19s/^# \?//p' "$0"; exit 2 ;;
esac
