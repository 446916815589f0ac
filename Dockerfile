# Build:  docker build -t faces .                           for the CPU
#         docker build -t faces --build-arg DEVICE=gpu .    for NVIDIA GPUs: then run with --gpus all
# Train:  docker run -v faces-data:/app/data -v faces-runs:/app/runs faces train --data demo
# Draw:   mkdir -p faces
#         docker run -v faces-runs:/app/runs -v "$PWD/faces:/app/faces" --user "$(id -u):$(id -g)" \
#           faces generate --out faces/first
# After the image's name come the command, train, generate or evaluate, and its arguments. Folders of your own
# in place of the named volumes: make them first, and give --user as above.

ARG BASE=python:3.11-slim
FROM ${BASE}
ARG DEVICE=cpu

ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app

COPY locks/${DEVICE}.txt locks/
RUN pip install --no-cache-dir --require-hashes -r locks/${DEVICE}.txt

# Any user may run it (--user), so everyone may read the code and write to the three folders.
COPY . .
RUN useradd --no-create-home app \
 && mkdir -p data runs faces \
 && chmod -R a+rX . \
 && chmod 1777 data runs faces
USER app
VOLUME ["/app/data", "/app/runs"]

# exec: python gets Docker's signals itself, so `docker stop` reaches train.py.
ENTRYPOINT ["sh", "-c", "exec python \"$0.py\" \"$@\""]
CMD ["train"]
