# farside for CPU or CUDA. PyTorch's wheels carry CUDA themselves, so that both start from the same image:
#   CUDA:  docker build -t farside .
#   CPU:   docker build -t farside --build-arg PIP_EXTRA_INDEX_URL=URL_OF_PYTORCHS_CPU_INDEX .
#   docker run --rm -it --gpus all --shm-size 8g -v "$PWD:/work" farside run experiment=demo
FROM python:3.12-slim

# a compiler for torch.compile; tini passes Ctrl-C and SIGTERM on, so that a job saves before it ends
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ tini \
    && rm -rf /var/lib/apt/lists/*

ARG PIP_EXTRA_INDEX_URL=""
WORKDIR /opt/farside
COPY pyproject.toml setup.py README.md LICENSE ./
COPY scripts scripts
COPY configs configs
COPY data data
COPY parallel parallel
COPY train train
COPY rl rl
COPY farside farside
COPY tests tests
RUN PIP_NO_CACHE_DIR=1 ./scripts/setup.sh

ENV PATH=/opt/farside/.venv/bin:$PATH
WORKDIR /work
ENTRYPOINT ["tini", "--", "farside"]
CMD ["--help"]
