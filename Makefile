# Every target installs what it needs and is safe to repeat.
#   make demo    three real pods (runc, gVisor, microVM) intercepted and named
#   make check   lint, types, unit tests and the programs against the kernel: before every commit
#   make test    everything that a change can break, in some twenty minutes; results in build/test-results.json
#                FILES="test/e2e/drift.test.ts …": those files alone
#                NODE=24: on the Node that the image has, not on this machine's; also with check, test-full, test-image, test-k8s
#   make test-long   the long ones at full size, the image, and the Kubernetes source against a real API server
#   make cluster   a Kubernetes of one node with the agent in it, to play with; make cluster-down
#   make image   the container image, as build/nodesentry-image.tar
#   make test-full   of test-long, the first part: NODESENTRY_TEST_SIZE=full
#   make test-image  of test-long, the second part: the image, and a handover from the release before this one
#   make test-k8s    of test-long, the third part: in a real cluster (compiles Kubernetes once: minutes)
#   make test-kernels    what depends on the kernel, on Linux 6.1, 6.12 and this machine's own (emulated: hours)
#   make bench   what interception costs, beside other ways to do it; QUICK=1: in two minutes
#   make bench-enrolment   how long a starting pod waits for us, at 10 and at 1,000 pods
#   make bench-start       how long the agent takes to be ready, with 10 and with 1,000 pods that are in place
#   make bench-identity    what asking who it is costs, by each door
#   make bench-resolves    whether 5,000 questions a second hold up pods that start
#   make bench-idle        what the agent costs while nothing happens: CPU and memory, with 10 and with 1,000 pods
#   make bench-loop        for how long the agent's event loop is held, with 1,000 pods and a full flow table
#   make bench-sharing     when pods are served, and what their proxies hold: one for all of an app, and one per pod
#   make bench-selection   what a first packet costs with 10 and with 10,000 CIDRs on the node
#   make bench-run-times   what a packet costs in the program, beside another build
#   make proto   after a change under proto/: compiles what gRPC clients are told; refuses what would break them
#   make chart-schema   after a change of src/config/schema.ts, by which the chart checks the configuration
#   make build | lint | format | clean
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: bench bench-enrolment bench-identity bench-idle bench-loop bench-resolves bench-run-times bench-selection bench-sharing bench-start build chart-schema check cluster cluster-down image demo test test-kernels test-long test-full test-image test-k8s lint format packages-build packages-lab packages-k8s go-tools envoy helm schemathesis native typescript proto clean

# Said on make's own command line only: npm leaves the path of its node in an environment variable of that name.
ifeq ($(origin NODE),command line)
NODE_FOLDER := $(shell scripts/install-node $(NODE))
$(if $(NODE_FOLDER),,$(error NODE=$(NODE) is not to be had))
export PATH := $(NODE_FOLDER)/bin:$(PATH)
endif

# A clone without history cannot build the release before this one; said aloud, below.
HAS_PREVIOUS := $(shell scripts/build-previous --check && echo yes)
# Tests that have a full size (test/lab/size.ts).
FULL := test/e2e/first-packet.test.ts test/e2e/first-inbound.test.ts test/e2e/ingress.test.ts test/e2e/inbound-traffic.test.ts test/e2e/churn.test.ts test/e2e/watchers.test.ts test/e2e/workers.test.ts test/unit/fuzz.test.ts test/e2e/identity-option.test.ts test/bpf/migration.test.ts \
	test/unit/native-leaks.test.ts
reports = --reporter=default --reporter=json --outputFile.json=build/$(1)-results.json

build: packages-build native typescript

packages-build:
	@scripts/install-debian-packages build

packages-lab:
	@scripts/install-debian-packages lab

go-tools:
	@scripts/install-go-tools

envoy:
	@scripts/install-envoy

helm: packages-lab
	@scripts/install-go-tools helm

schemathesis:
	@scripts/install-schemathesis

packages-k8s:
	@scripts/install-debian-packages k8s

# npm writes node_modules/.package-lock.json last: it is older than the lockfile exactly when an install is due.
node_modules/.package-lock.json: package.json package-lock.json
	@echo "npm: installing the locked dependencies"
	@npm ci --no-audit --no-fund --loglevel=error
	@touch $@

native: packages-build node_modules/.package-lock.json
	@echo "native: compiling addons, BPF objects and test programs"
	@npx --no-install cmake-js compile --log-level warn

typescript: node_modules/.package-lock.json
	@echo "typescript: compiling to dist/"
	@npx --no-install tsc -p tsconfig.build.json

image: packages-lab
	@scripts/build-image

demo: packages-lab build
	@npx --no-install tsx test/demo/demo.ts

# PROXY_MODE=iptables or ipvs: kube-proxy's.
cluster: packages-k8s go-tools build image
	@npx --no-install tsx test/cluster/main.ts up $(PROXY_MODE)

cluster-down:
	@npx --no-install tsx test/cluster/main.ts down

# QUICK=1: two minutes. How to read it: docs/benchmarks/README.md
bench: packages-lab go-tools envoy build
	@npx --no-install tsx test/bench/datapath/main.ts

bench-enrolment: packages-lab build
	@npx --no-install tsx test/bench/enrolment.ts

bench-start: packages-lab build
	@npx --no-install tsx test/bench/start.ts

bench-idle: packages-lab build
	@npx --no-install tsx test/bench/idle.ts

bench-loop: packages-lab build
	@npx --no-install tsx test/bench/loop.ts

bench-identity: packages-lab build
	@npx --no-install tsx test/bench/identity.ts

bench-resolves: packages-lab build
	@npx --no-install tsx test/bench/resolves.ts

bench-sharing: packages-lab build
	@npx --no-install tsx test/bench/sharing.ts

bench-selection: build
	@npx --no-install tsx test/bench/selection.ts

bench-run-times: build
	@npx --no-install tsx test/bench/run-times.ts

# With FILES a target runs those files and no others, each in the project that it belongs to.
test: packages-lab go-tools envoy schemathesis build
	@echo "test: against the real kernel, runtimes and proxies"
	@npx --no-install vitest run $(or $(FILES),--project unit --project kernel --project alone) $(call reports,test)

check: lint packages-lab build
	@npx --no-install vitest run test/unit test/bpf --reporter=default --silent

test-long: test-full test-image test-k8s

test-full: packages-lab go-tools envoy build
	@echo "test-full: the long tests at full size"
	@NODESENTRY_TEST_SIZE=full npx --no-install vitest run $(or $(FILES),$(FULL)) $(call reports,test-full)

test-image: packages-lab go-tools envoy build
	@echo "test-image: the image, and a handover from the release before this one"
	$(if $(HAS_PREVIOUS),,@echo "test-image: WITHOUT test/long: the release before this one is not in this clone")
	@npx --no-install vitest run $(or $(FILES),test/image/image.test.ts $(if $(HAS_PREVIOUS),test/long)) $(call reports,test-image)

# KERNELS="6.1": that one alone; FILES as for test.
test-kernels: packages-lab go-tools envoy build
	@echo "test-kernels: on Linux 6.1 and 6.12, emulated, and on this machine's own"
	@npx --no-install tsx test/vm/run.ts $(foreach kernel,$(KERNELS),--kernel $(kernel)) $(FILES)

test-k8s: packages-k8s go-tools build image
	@scripts/build-kubernetes kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl >/dev/null
	@echo "test-k8s: in a real cluster"
	@npx --no-install vitest run --config test/k8s/vitest.config.ts $(FILES) $(call reports,test-k8s)

# The compiled files are both what reflection hands out and what a change is compared with: they only ever grow.
DESCRIPTORS := proto/descriptors.binpb
compile_protos = npx --no-install buf build --as-file-descriptor-set --exclude-source-info -o $(1)

proto: node_modules/.package-lock.json
	@npx --no-install buf breaking --against $(DESCRIPTORS)
	@$(call compile_protos,$(DESCRIPTORS))

CHART := deploy/chart
print_chart_schema = set -o pipefail; npx --no-install tsx scripts/chart-schema.ts | npx --no-install biome format --stdin-file-path=values.schema.json

chart-schema: node_modules/.package-lock.json
	@$(print_chart_schema) >$(CHART)/values.schema.json.new
	@mv $(CHART)/values.schema.json.new $(CHART)/values.schema.json

lint: packages-build helm node_modules/.package-lock.json
	@echo "lint: biome, tsc, buf, clang-format, helm"
	@npx --no-install biome ci --colors=off .
	@npx --no-install tsc --noEmit -p tsconfig.json
	@npx --no-install buf lint
	@npx --no-install buf format --diff --exit-code --path proto/nodesentry
	@npx --no-install buf breaking --against $(DESCRIPTORS)
	@$(call compile_protos,-#format=binpb) | cmp - $(DESCRIPTORS) || { echo "lint: proto/ has changed: run make proto" >&2; exit 1; }
	@git ls-files 'bpf/*.[ch]' 'native/*.[ch]' 'native/*.cc' 'native/*.hh' 'native/*.cpp' 'native/*.hpp' 'test/*.c' 'test/*.cc' | xargs -r clang-format --dry-run --Werror
	@$(print_chart_schema) | cmp - $(CHART)/values.schema.json || { echo "lint: src/config/schema.ts has changed: run make chart-schema" >&2; exit 1; }
	@.cache/bin/helm lint --strict --quiet $(CHART)
	@.cache/bin/helm template nodesentry $(CHART) >/dev/null

format: packages-build node_modules/.package-lock.json
	@npx --no-install biome check --write .
	@npx --no-install buf format --write --path proto/nodesentry
	@git ls-files 'bpf/*.[ch]' 'native/*.[ch]' 'native/*.cc' 'native/*.hh' 'native/*.cpp' 'native/*.hpp' 'test/*.c' 'test/*.cc' | xargs -r clang-format -i

clean:
	rm -rf build dist node_modules .cache
