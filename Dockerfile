# Training on NVIDIA GPUs. CUDA and cuDNN come with jax's wheels; the host needs a driver of CUDA 13 and
# the NVIDIA container toolkit.
#
#   docker build -t smoljax .
#   docker run --gpus all --shm-size=8g -v "$PWD/runs:/runs" smoljax \
#     experiments.run --config=configs/smollm3.py:size=135m --workdir=/runs/135m
FROM python:3.12-slim-trixie
RUN apt-get update && apt-get install -y --no-install-recommends \
    libgomp1 tesseract-ocr && rm -rf /var/lib/apt/lists/*
WORKDIR /smoljax
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt "jax[cuda13]"
COPY . .
# Files of a run belong to who started the container: docker run --user "$(id -u):$(id -g)".
ENV PYTHONUNBUFFERED=1 HOME=/tmp
ENTRYPOINT ["python", "-m"]
CMD ["experiments.run", "--help"]
