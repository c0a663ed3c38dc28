# The README's steps: git, make and Python, then what `make repro` installs and runs.
#
#     docker build --tag opam .
#     docker run --rm opam                on the CPU
#     docker run --rm --gpus all opam     on a GPU
#
# The stage `serve` answers with a bundle; docs/deployment.md has its commands.
#
# One image serves both. On Linux, requirements.lock pins torch's build for CUDA 13 and CUDA's own
# libraries (the nvidia-* packages), so the base need not have them; a GPU asks for the driver and
# NVIDIA's container toolkit on the host. Where a CUDA base is wanted all the same, take one of
# Ubuntu 24.04 or newer, whose Python is new enough:
#
#     docker build --tag opam --build-arg BASE=nvidia/cuda:TAG .
ARG BASE=python:3.11-slim

FROM ${BASE} AS tools
# A CUDA base comes without Python.
RUN apt-get update && apt-get install --yes git make \
    && { command -v python3 || apt-get install --yes python3 python3-venv; }

FROM tools AS project
WORKDIR /opam
COPY . .
RUN make .venv/.installed

FROM project AS serve
RUN useradd --no-create-home opam
USER opam
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD [".venv/bin/python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT [".venv/bin/opam", "serve", "--bundle", "/bundle", "--host", "0.0.0.0"]

# The last stage is what is built where none is named.
FROM project
CMD ["make", "repro"]
