# syntax=docker/dockerfile:1
# The agent, the command line and the reference proxy, as one image.
#   docker build -t nodesentry .       where a registry can be reached
#   scripts/build-image                where none can: buildah, with BASE and NODE made from Debian's and npm's packages
ARG BASE=debian:12-slim
ARG NODE=node:24-bookworm-slim

FROM ${NODE} AS node

# --- what `make build` does -------------------------------------------------------------------------------------------
FROM ${BASE} AS build
WORKDIR /opt/nodesentry
COPY scripts/install-debian-packages scripts/
RUN scripts/install-debian-packages build
COPY --from=node /usr/local/bin/node /usr/local/bin/node
COPY --from=node /usr/local/lib/node_modules/npm /usr/local/lib/node_modules/npm
COPY package.json package-lock.json ./
# Both secrets are optional: npm settings and certificates of the machine, used here and left out of every layer.
RUN --mount=type=secret,id=npmrc,target=/root/.npmrc --mount=type=secret,id=ca,target=/run/secrets/ca.pem \
    if [ -s /run/secrets/ca.pem ]; then export NODE_EXTRA_CA_CERTS=/run/secrets/ca.pem npm_config_cafile=/run/secrets/ca.pem; fi; \
    node /usr/local/lib/node_modules/npm/bin/npm-cli.js ci --no-audit --no-fund --loglevel=error --cache=/tmp/npm \
    && rm -rf /tmp/npm
COPY CMakeLists.txt tsconfig.json tsconfig.build.json ./
COPY bpf bpf
COPY include include
COPY man man
COPY native native
RUN node node_modules/.bin/cmake-js compile --log-level warn
COPY src src
RUN node node_modules/.bin/tsc -p tsconfig.build.json --sourceMap false --declaration false
COPY LICENSE ./
COPY bin bin
COPY proto proto
# What runs, without what it was built with: no compilers' packages, types, source maps or binaries of other machines.
RUN node /usr/local/lib/node_modules/npm/bin/npm-cli.js prune --omit=dev --no-audit --no-fund --loglevel=error \
    && find node_modules -type f \( -name '*.map' -o -name '*.d.ts' -o -name '*.d.mts' -o -name '*.d.cts' \) -delete \
    && find node_modules/netlink/prebuilds -mindepth 1 -maxdepth 1 ! -name "linux-$(node -p process.arch)" -exec rm -r {} + \
    && find node_modules -type d -empty -delete \
    && mkdir -p /out/build \
    && cp -a LICENSE package.json bin dist include man proto node_modules /out/ \
    && cp -a build/Release build/bpf /out/build/ \
    && if [ -e build/cni/nodesentry-cni ]; then cp -a build/cni /out/build/; fi

# --- what is shipped --------------------------------------------------------------------------------------------------
FROM ${BASE}
# libbpf1 with libelf1 and zlib1g: the addon links them. nftables, ipvsadm: the agent calls nft, and ipvsadm where the
# kernel has IPVS. ca-certificates: the API server.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
       libbpf1 libelf1 zlib1g libstdc++6 nftables ipvsadm ca-certificates >/dev/null \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old \
       /var/log/apt /var/log/dpkg.log /var/log/alternatives.log
COPY --from=node /usr/local/bin/node /usr/local/bin/node
COPY --from=node /usr/local/LICENSE /usr/share/doc/nodejs/copyright
COPY --from=build /out /opt/nodesentry
RUN ln -s /opt/nodesentry/bin/nodesentry /usr/local/bin/nodesentry \
    && ln -s /opt/nodesentry/include/nodesentry.h /usr/local/include/nodesentry.h \
    && mkdir -p /usr/local/share/man/man7 \
    && ln -s /opt/nodesentry/man/nodesentry.7 /usr/local/share/man/man7/nodesentry.7 \
    && nodesentry --version

ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="NodeSentry" \
      org.opencontainers.image.description="Node-level traffic interception with pod identity, for every container runtime" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

# Root, without its powers: the manifest drops every capability but those in docs/capabilities.md, which also says why
# another user id would need more of them, not fewer. `nodesentry proxy` runs as anybody: give it a uid of its own.
USER 0:0
ENV NODE_ENV=production
STOPSIGNAL SIGTERM
ENTRYPOINT ["nodesentry"]
CMD ["agent"]
