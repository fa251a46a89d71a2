#!/usr/bin/env bash
# The web and PDF pipelines on Google Cloud Dataflow, in three steps. DRY=1 prints the commands only.
#
#   export PROJECT=my-project REGION=us-central1 BUCKET=gs://my-bucket
#   experiments/cloud/dataflow.sh image    # once per version of the code
#   experiments/cloud/dataflow.sh web --name=web --languages=en,fr \
#     --input=https://data.commoncrawl.org/crawl-data/CC-MAIN-2024-22/warc.paths.gz
#   experiments/cloud/dataflow.sh pdf --name=pdf --input='gs://my-bucket/papers/*.pdf'
#   experiments/cloud/dataflow.sh tokenize --name=tokens --input=gs://my-bucket/corpora/pdf/1.0.0 \
#     --tokenizer=gs://my-bucket/tokenizer.model
#
# The machine that submits needs gcloud and: pip install -r requirements.txt "apache-beam[gcp]==2.77.0"
# Workers run a container with this code and all it imports (models included), so that they install
# nothing at start. Corpora appear in $BUCKET/corpora. MACHINE, WORKERS and SHARDS can be set too.
set -euo pipefail
cd "$(dirname "$0")/../.."
source experiments/cloud/commands.sh
: "${PROJECT:?set PROJECT, REGION and BUCKET first}" "${REGION:?}" "${BUCKET:?}"
MACHINE=${MACHINE:-n2-standard-8} WORKERS=${WORKERS:-100} SHARDS=${SHARDS:-1024}
IMAGE=${IMAGE:-$REGION-docker.pkg.dev/$PROJECT/smoljax/data-beam:$(git rev-parse --short HEAD)}
PYTHON=${PYTHON:-python}

# What data_beam imports: requirements.txt without what only training and reports need.
requirements() {
  grep -vE '^(#|$|(jax|flax|optax|orbax-checkpoint|grain|gguf|tensorboardX|reportlab|markdown-it-py|ml-collections)\b)' requirements.txt
}

dockerfile() {
  cat <<END
FROM apache/beam_python3.11_sdk:2.77.0
RUN apt-get update && apt-get install -y --no-install-recommends tesseract-ocr \\
  tesseract-ocr-fra tesseract-ocr-deu tesseract-ocr-spa tesseract-ocr-ita tesseract-ocr-por \\
  libgomp1 && rm -rf /var/lib/apt/lists/*
COPY requirements.txt /tmp/
RUN pip install --no-cache-dir -r /tmp/requirements.txt
COPY data_beam /app/data_beam
ENV PYTHONPATH=/app
END
}

case "${1:-}" in
  requirements) requirements ;;
  image)
    context=$(mktemp -d)
    trap 'rm -rf "$context"' EXIT
    requirements > "$context/requirements.txt"
    dockerfile > "$context/Dockerfile"
    cp -r data_beam "$context/"
    is "${DRY:-}" && cat "$context/Dockerfile"
    run gcloud builds submit "$context" --project="$PROJECT" --tag="$IMAGE"
    ;;
  web | pdf | tokenize)
    job=$1
    [ "$job" = tokenize ] && job=tokenize_corpus
    # One process a core, one thread each: Python holds the interpreter. Extraction has its own child.
    run "$PYTHON" -m "data_beam.$job" --output="$BUCKET/corpora" --num_shards="$SHARDS" "${@:2}" \
      --runner=DataflowRunner --project="$PROJECT" --region="$REGION" \
      --temp_location="$BUCKET/tmp" --staging_location="$BUCKET/staging" \
      --job_name="data-beam-$1-$(date +%Y%m%d-%H%M%S)" \
      --worker_machine_type="$MACHINE" --max_num_workers="$WORKERS" \
      --sdk_container_image="$IMAGE" --sdk_location=container \
      --number_of_worker_harness_threads=1
    ;;
  *) sed -n '2,15s/^# \?//p' "$0"; exit 2 ;;
esac
