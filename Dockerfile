# docker build -t ssegate . && docker run -p 8080:8080 -v "$PWD/ssegate.yaml:/etc/ssegate/ssegate.yaml:ro" ssegate

FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/ssegate
COPY pyproject.toml README.md ./
COPY ssegate ./ssegate
# `jwt`, for guards that read tokens, is always there. More: docker build --build-arg EXTRAS=http3 …
ARG EXTRAS=""
RUN /opt/ssegate/bin/pip install --no-cache-dir --disable-pip-version-check ".[jwt${EXTRAS:+,$EXTRAS}]"

FROM python:3.11-slim
# A number, so that Kubernetes can tell that it is not root.
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin ssegate \
 && install -d -o 10001 -m 700 /var/lib/ssegate
COPY --from=build /opt/ssegate /opt/ssegate
ENV PATH=/opt/ssegate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# `server.state_dir: /var/lib/ssegate` is its own; a volume there outlives the container.
USER 10001
EXPOSE 8080 8443 8443/udp
STOPSIGNAL SIGTERM
# It asks the admin listener: write `admin: {}` in the configuration, or start with --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["ssegate", "health"]
ENTRYPOINT ["ssegate"]
CMD ["serve"]
