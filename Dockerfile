# Two images from one build:
#   docker build -t pulsegate .                  the sidecar (the last stage, so the default)
#   docker build -t pulsegate-rig --target rig . the Active-Active stand-in's tool, for docker/compose.yaml
#
# Needs BuildKit or buildah ≥ 1.24, for the cache mounts.

FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The caches keep what was downloaded and compiled from one build to the next, so a change of src/ compiles only that.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --package pulsegate --package rig \
    && install -D --strip --target-directory=/out target/release/pulsegate target/release/rig

# The same Debian as the builder's, so the same glibc. Without a package manager's run: nothing to go out of date here
# but the base image itself.
FROM docker.io/library/debian:bookworm-slim AS base
# The authorities that rediss:// trusts unless a replica's `tls.ca` says otherwise.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# Numeric, so that Kubernetes' runAsNonRoot can tell.
ARG UID=65532
# For `admin.state_file` and unix sockets; a volume mounted there starts with this owner.
RUN install --directory --owner=${UID} --group=${UID} /var/lib/pulsegate /run/pulsegate
USER ${UID}:${UID}

FROM base AS rig
COPY --from=build /out/rig /usr/local/bin/rig
ENTRYPOINT ["/usr/local/bin/rig"]

FROM base AS pulsegate
COPY --from=build /out/pulsegate /usr/local/bin/pulsegate
# 6379 for applications. The admin server listens on the container's own loopback unless it is configured otherwise.
EXPOSE 6379
# Asks /readyz where PULSEGATE_ADMIN__BIND says, 127.0.0.1:9379 by default.
HEALTHCHECK --interval=5s --timeout=6s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/pulsegate", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/pulsegate"]
CMD ["run", "--config", "/etc/pulsegate/pulsegate.toml"]
