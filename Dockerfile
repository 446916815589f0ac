# Build:     docker build -t faces .                             for the CPU
#            docker build -t faces-gpu --build-arg DEVICE=gpu .  for NVIDIA GPUs: run with --gpus all
# Train:     docker run -v faces-data:/app/data -v faces-runs:/app/runs faces train --data demo
# Draw:      mkdir -p faces
#            docker run -v "$PWD/faces:/app/faces" --user "$(id -u):$(id -g)" faces generate --out faces/first
# Evaluate:  mkdir -p evaluation
#            docker run -v faces-data:/app/data -v "$PWD/evaluation:/app/evaluation" --user "$(id -u):$(id -g)" \
#              faces evaluate --data demo --out evaluation/first
# Page:      docker run -p 8000:8000 faces page
#            docker run -v faces-runs:/app/runs -p 8000:8000 faces page --checkpoint runs/NAME
# The arguments are a command (train, generate, evaluate or page) and its flags. Create mounted folders first and pass
# --user, as above.

ARG BASE=python:3.11-slim
FROM ${BASE}
ARG DEVICE=cpu

ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app

COPY locks/${DEVICE}.txt locks/
RUN pip install --no-cache-dir --require-hashes -r locks/${DEVICE}.txt

# Any user (--user) can read the code and create files and folders next to it, such as faces-2, but not change it.
COPY . .
RUN useradd --no-create-home app \
 && mkdir -p data/prepared runs faces evaluation \
 && chmod -R a+rX . \
 && chmod 1777 . data data/prepared runs faces evaluation
USER app
VOLUME ["/app/data", "/app/runs"]
EXPOSE 8000

ENTRYPOINT ["sh", "docker/entrypoint.sh"]
CMD ["train"]
