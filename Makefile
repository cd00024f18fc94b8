# `make` alone lists what there is to make.

# sudo's PATH often lacks Go's folder.
export PATH := $(PATH):/usr/local/go/bin
# A clone that belongs to somebody else than root must build too.
export GOFLAGS += -buildvcs=false

CC     := gcc
CFLAGS := -Wall -Wextra -Werror
TOOL   := go tool -modfile=tools/go.mod

# The version is the tag's, without one a development version of the commit.
VERSION ?= $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-/+/; s/-/./g' | grep . || echo 0.0.0~dev$$(git rev-list --count HEAD 2>/dev/null))
# Where programs go.
BIN    := bin

# Every program that is there: folders under cmd/ with Go in them.
PROGRAMS := $(notdir $(patsubst %/,%,$(sort $(dir $(wildcard cmd/*/*.go)))))
# Each Go package outside test/; what is in test/ needs the machine for itself.
UNIT_PACKAGES = $$(go list ./... | grep -v /farpage/test/)
C_SOURCES     = $(shell find shim handler -name '*.c')
SCRIPTS       = .ci/run $(shell grep -lr '^\#!/bin/\(ba\)\?sh' scripts packaging test 2>/dev/null)

.DEFAULT_GOAL := help

help: ## list the targets
	@echo "farpage: containers that keep more memory than they have local"
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 18

build: shim ## build everything into bin/
	@install -D -t $(BIN) shim/lib/libfarpage.so
	@for program in $(PROGRAMS); do \
		echo "build $(BIN)/$$program"; \
		CGO_ENABLED=0 go build -trimpath -ldflags '-X main.version=$(VERSION)' -o $(BIN)/$$program ./cmd/$$program || exit 1; \
	done

# Go embeds libfarpage.so, so it comes first.
shim:
	@scripts/ensure-packages.sh build
	@$(MAKE) --no-print-directory -C shim

test: test-packages build ## install what tests need, build, run all of them (as root)
	go vet ./...
	go test -race $(UNIT_PACKAGES)
	go test -race -count=1 -p 1 -timeout 55m ./test/...

test-packages:
	@scripts/ensure-packages.sh build test

lint: lint-packages shim ## check Go, C and scripts
	go vet ./...
	@unformatted=$$($(TOOL) gofumpt -l .); \
		if [ -n "$$unformatted" ]; then echo "gofumpt would change: $$unformatted"; exit 1; fi
	$(TOOL) golangci-lint run ./...
	@for source in $(C_SOURCES); do \
		echo "$(CC) $$source"; $(CC) $(CFLAGS) -ffreestanding -fsyntax-only $$source || exit 1; \
	done
	@guests=$$(mktemp -d) && { $(MAKE) --no-print-directory -s -C test/guest BUILD=$$guests; \
		status=$$?; rm -rf $$guests; exit $$status; }
	shellcheck $(SCRIPTS)

lint-packages:
	@scripts/ensure-packages.sh lint

demo: demo-packages build ## a redis container with three times its local budget (as root)
	@go build -o bin/farpage-demo ./test/demo
	@exec bin/farpage-demo --farpage bin

bench: test-packages build ## medians and ratios, all measured in one run (as root)
	@go build -o bin/farpage-bench ./test/bench
	@exec bin/farpage-bench --farpage bin

test-vm: vm-packages ## farpage in a Debian 13 that boots under qemu (as root)
	@go build -o bin/farpage-vm ./test/vm
	@exec bin/farpage-vm

test-crio: test-packages build ## farpage in a CRI-O, which is built first (as root)
	go test -race -count=1 -timeout 30m -tags crio -run CRIO ./test/engines

packages: ## a .deb and a .rpm, into dist/
	@rm -rf dist && mkdir -p dist/man dist/completions dist/units
	@$(MAKE) --no-print-directory build BIN=dist/bin VERSION='$(VERSION)'
	@dist/bin/farpage man dist/man
	@gzip -9n dist/man/*
	@dist/bin/farpage completion bash >dist/completions/farpage.bash
	@dist/bin/farpage completion zsh >dist/completions/_farpage
	@dist/bin/farpage completion fish >dist/completions/farpage.fish
	@for unit in oci/install/units/*; do \
		sed 's|@BIN@|/usr/bin|' $$unit >dist/units/$${unit##*/} || exit 1; done
	@for kind in deb rpm; do \
		VERSION='$(VERSION)' go tool -modfile=tools/package/go.mod nfpm package --config packaging/nfpm.yaml --packager $$kind --target dist || exit 1; done
	@ls dist/*.deb dist/*.rpm

# The image's name and the program that makes it (docker, podman or buildah).
IMAGE         ?= farpage:$(shell sed -n 's/^appVersion: "\(.*\)"/\1/p' packaging/helm/farpage/Chart.yaml)
IMAGE_BUILDER ?= docker

image: build ## the container image for Kubernetes, by docker (IMAGE_BUILDER=podman)
	$(IMAGE_BUILDER) build -f packaging/Containerfile -t $(IMAGE) $(BIN)

MANIFESTS ?= packaging/kubernetes/farpage.yaml

manifests: ## the plain manifests for Kubernetes, from the Helm chart
	@{ echo '# Made by `make manifests` from packaging/helm/farpage: change that, not this.' && \
		go tool -modfile=tools/helm/go.mod helm template farpage packaging/helm/farpage \
			--namespace farpage --set namespace.create=true; } >$(MANIFESTS).new
	@mv $(MANIFESTS).new $(MANIFESTS)

vm-packages:
	@scripts/ensure-packages.sh vm

demo-packages:
	@scripts/ensure-packages.sh demo

clean: ## remove what was built
	$(MAKE) --no-print-directory -C shim clean
	$(MAKE) --no-print-directory -s -C test/guest clean
	rm -rf bin dist

.PHONY: help build shim test test-vm test-crio vm-packages test-packages lint lint-packages demo demo-packages bench packages clean
