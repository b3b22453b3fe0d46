# One image for every service: `python -m ingress`, `downloader`, `notifier`, `standalone` or `simulator`.
#
# Why Debian slim: every locked dependency has a wheel for it, so no compiler is needed, and building and running happen
# on the same interpreter. Alpine would save some 70 MB and give musl's allocator and resolver in return; a distroless
# image would do without a shell, but follows Debian's Python, which then differs from the one the wheels were chosen
# for. No command here needs a shell, and the root file system can be read-only: only /data is written.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN ["python", "-m", "venv", "/opt/wavekeep"]
# `--build-arg LOCK=quality` takes in what measures how files sound
ARG LOCK=run
COPY requirements/${LOCK}.txt lock.txt
RUN ["/opt/wavekeep/bin/python", "-m", "pip", "install", "--require-hashes", "--requirement", "lock.txt"]
COPY pyproject.toml README.md ./
COPY shared shared
COPY ingress ingress
COPY downloader downloader
COPY notifier notifier
COPY standalone standalone
COPY cli cli
COPY simulator simulator
RUN ["/opt/wavekeep/bin/python", "-m", "pip", "install", "--no-build-isolation", "--no-deps", "."]
RUN ["/opt/wavekeep/bin/python", "-m", "pip", "uninstall", "--yes", "hatchling", "editables", "pip"]

FROM ${PYTHON_IMAGE}
RUN ["groupadd", "--system", "--gid", "10001", "wavekeep"]
RUN ["useradd", "--system", "--uid", "10001", "--gid", "wavekeep", "--no-create-home", "--home-dir", "/data", "--shell", "/usr/sbin/nologin", "wavekeep"]
RUN ["install", "--directory", "--owner=wavekeep", "--group=wavekeep", "--mode=0750", "/data"]
COPY --from=build /opt/wavekeep /opt/wavekeep
# PYTHONSAFEPATH: modules come from the installation alone, never from the folder a process happens to start in.
ENV PATH=/opt/wavekeep/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    WAVEKEEP_DATA_DIR=/data \
    WAVEKEEP_INGRESS_HOST=0.0.0.0 \
    WAVEKEEP_OPS_HOST=0.0.0.0 \
    WAVEKEEP_SAMPLE_FILE=false
# by number, so that an orchestrator can see that it is not root
USER 10001:10001
WORKDIR /
VOLUME ["/data"]
# whichever service runs here: standalone 9100, ingress 9101, downloader 9102, notifier 9103, unless WAVEKEEP_OPS_PORT says
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "shared.health"]
CMD ["python", "-m", "standalone"]
