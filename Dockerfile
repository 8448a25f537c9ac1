# The package and its commands, in a container.
#
#   docker build -t diffusion_lab .                                             CPU
#   docker build -t diffusion_lab --build-arg BASE=pytorch/pytorch:2.10.0-cuda12.8-cudnn9-runtime .      GPU, or a newer tag
#   docker run --rm -v "$PWD/logs:/work/logs" diffusion_lab                     the default training: digits, minutes
#   docker run --rm -v "$PWD/logs:/work/logs" --gpus all --ipc=host diffusion_lab train model=edm data=cifar10 data.download=true
ARG BASE=python:3.13-slim
FROM ${BASE}

# Where torch comes from, unless the base image has it: the CPU's wheels are a tenth of the GPU's.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY conf conf
COPY diffusion_lab diffusion_lab
# Some base images have a Python that belongs to the system.
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" .

RUN useradd --create-home --uid 10001 lab && mkdir -p /work/logs && chown -R lab /work
USER 10001
WORKDIR /work
ENTRYPOINT ["diffusion-lab"]
CMD ["train"]
