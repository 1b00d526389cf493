# wallex as a container: built from the lock file, run by a user who is not root.
#
#   docker build -t wallex .
#   docker run --rm wallex --help
#   docker run --env WALLEX_DATABASE_URL=postgres://… --env WALLEX_LISTEN=0.0.0.0:3000 --publish 127.0.0.1:3000:3000 wallex

FROM rust:1.95-slim-bookworm AS build
# They build librdkafka, the Kafka client; its TLS is OpenSSL's.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libssl-dev make pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
# The caches outlive the layer, so a second build compiles only what has changed.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --release --locked --bin wallex \
    && install -D target/release/wallex /out/wallex

FROM debian:bookworm-slim
# OpenSSL, and the certificates by which PostgreSQL and Kafka are known over TLS.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --home-dir /var/lib/wallex --create-home --shell /usr/sbin/nologin wallex
COPY --from=build /out/wallex /usr/local/bin/wallex
USER wallex
# The image has no PostgreSQL of its own: say where one is with WALLEX_DATABASE_URL. And as anywhere it listens on loopback
# unless told otherwise, which is the container's own: WALLEX_LISTEN=0.0.0.0:3000 lets a published port reach it.
ENV WALLEX_DATA_DIR=/var/lib/wallex
VOLUME /var/lib/wallex
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=6 \
    CMD wallex status || exit 1
ENTRYPOINT ["wallex"]
CMD ["serve"]
