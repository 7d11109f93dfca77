# The service with the bundled model; docs/deployment.md says how to build and to run it.
#
#   docker build --build-arg DEVICE=cpu -t world-model:0.2.0-cpu .     # or DEVICE=cuda
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# The compiler stays in this stage. Its version is that of the base's Debian release.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
ARG DEVICE=cpu
# Where pip looks beside its usual index: PyTorch's CPU wheels have one of their own.
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_NO_CACHE_DIR=1
ENV PIP_CONSTRAINT=/build/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
# Torch alone, before our files: it is most of the image, and changes least. === compares as text, so
# that the wheel for CPUs (+cpu) and the one for GPUs cannot pass for each other.
RUN python -m venv --without-pip /opt/world-model/venv \
    && version="$(sed -n 's/^torch==//p' constraints.txt)$(echo "+$DEVICE" | sed 's/+cuda//')" \
    && pip --python /opt/world-model/venv/bin/python install "torch===$version" \
    # What only those need who compile against torch.
    && cd /opt/world-model/venv/lib/python3.*/site-packages/torch && rm -rf include share/cmake test
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY models models
COPY training training
COPY client client
RUN cd /opt/world-model \
    && pip --python venv/bin/python install "/build[otel$(echo ",$DEVICE" | sed 's/,cpu//')]" \
    && venv/bin/world-model prepare --levels --cache-dir steps

FROM ${BASE}
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin world-model
# 0.0.0.0 in the container: who may reach it is decided where its port is published.
# Stopping takes 2 (drain delay) + 5 + 2 s at most: `docker stop` kills after 10.
ENV PATH=/opt/world-model/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    WORLD_MODEL_HOST=0.0.0.0 \
    WORLD_MODEL_PORT=8000 \
    WORLD_MODEL_CACHE_DIR=/opt/world-model/steps \
    WORLD_MODEL_LOG_FORMAT=json \
    WORLD_MODEL_SHUTDOWN_TIMEOUT_S=5
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
# -IS: the check needs no packages, and looking for them would be most of its work.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-IS", "-c", \
    "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"WORLD_MODEL_PORT\"]}/readyz', timeout=2)"]
ENTRYPOINT ["world-model"]
CMD ["serve"]
# Last and owned by root: the service cannot change its own code.
COPY --from=build /opt/world-model /opt/world-model
# The release, or what Compose names the image after; docs/versions.md.
ARG VERSION=0.2.0
LABEL org.opencontainers.image.title="World Model Service" \
    org.opencontainers.image.version=$VERSION
