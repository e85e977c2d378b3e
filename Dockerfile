# One image for every process of billing-sync. docker-compose.yml sets the command.
FROM python:3.13-slim AS build
RUN python -m venv /venv
WORKDIR /app
COPY requirements.lock ./
RUN /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY core/catalog/plans.toml ./plans.toml
COPY core ./core
COPY providers ./providers
COPY tasks ./tasks
COPY api ./api
COPY worker ./worker
COPY sandbox ./sandbox
COPY migrations ./migrations
# Editable, as in a checkout. To use another plan catalog, mount it as /app/plans.toml.
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --editable .

FROM python:3.13-slim
# pg_dump for `billing-sync backup`; it must not be older than the server of docker-compose.yml.
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-client && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --create-home billing && install -d -o billing /data
COPY --from=build /venv /venv
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 DATA_DIR=/data
USER billing
CMD ["billing-sync", "--help"]
