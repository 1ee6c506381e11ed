# Targets for people: `make help` lists them. Everything runs from a fresh clone; what is missing on the machine is
# installed by the scripts, which do nothing where it is there.

GO       ?= go
PREFIX   ?= /usr/local
UNITDIR  ?= $(PREFIX)/lib/systemd/system
FUZZTIME ?= 20s
# What `go test` runs: all packages, or for example PKG=./internal/image/...
PKG      ?= ./...

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# Versions of packages begin with a digit: v1.2.3 is 1.2.3, and what has no tag is before all that have one.
PACKAGE_VERSION := $(if $(filter v%,$(VERSION)),$(patsubst v%,%,$(VERSION)),0.0.0~$(VERSION))

# Root's PATH lacks the sbin folders after a plain `su`; nginx, nft and iptables live there.
export PATH := $(PATH):/usr/sbin:/sbin
# The version comes from git describe, so Go needs not ask git as well (it fails in a clone of another owner).
export GOFLAGS := $(GOFLAGS) -buildvcs=false

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## build ./bin/stasis, one static binary that runs from a copy alone
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X stasis.Version=$(VERSION)" -o bin/stasis ./cmd/stasis

.PHONY: install
install: build ## install binary, man pages, completions and systemd units below PREFIX (/usr/local)
	install -D -m 755 bin/stasis "$(DESTDIR)$(PREFIX)/bin/stasis"
	install -d "$(DESTDIR)$(PREFIX)/share/man/man1" "$(DESTDIR)$(UNITDIR)"
	install -d "$(DESTDIR)$(PREFIX)/share/bash-completion/completions" "$(DESTDIR)$(PREFIX)/share/zsh/site-functions"
	STASIS_CONFIG=/dev/null bin/stasis man -q "$(DESTDIR)$(PREFIX)/share/man/man1"
	STASIS_CONFIG=/dev/null bin/stasis completion bash > "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/stasis"
	STASIS_CONFIG=/dev/null bin/stasis completion zsh > "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_stasis"
	sed 's|@PREFIX@|$(PREFIX)|' packaging/stasis.service > "$(DESTDIR)$(UNITDIR)/stasis.service"
	install -m 644 packaging/stasis.socket "$(DESTDIR)$(UNITDIR)/stasis.socket"

# Where packages are built, an absolute path.
OUT ?= $(CURDIR)/out

.PHONY: package
package: ## build out/stasis_VERSION.deb and .rpm
	rm -rf "$(OUT)/root" "$(OUT)/config.yaml"
	$(MAKE) install DESTDIR="$(OUT)/root" PREFIX=/usr UNITDIR=/usr/lib/systemd/system
	STASIS_CONFIG=/dev/null bin/stasis config init -q "$(OUT)/config.yaml"
	cd tools && OUT="$(OUT)" VERSION="$(PACKAGE_VERSION)" $(GO) tool nfpm package -f ../packaging/nfpm.yaml -p deb -t "$(OUT)"
	cd tools && OUT="$(OUT)" VERSION="$(PACKAGE_VERSION)" $(GO) tool nfpm package -f ../packaging/nfpm.yaml -p rpm -t "$(OUT)"

.PHONY: test-package
test-package: ## install, upgrade, remove and purge the .deb on a copy of this file system (as root)
	scripts/test-package

.PHONY: test-systemd
test-systemd: criu ## install the .deb in a Debian 12 with systemd, in QEMU, and reboot it (as root; IN=container is quicker)
	scripts/test-systemd $(IN)

.PHONY: demo
demo: criu build ## dump, kill and restore a working program, with figures beside plain CRIU's (as root)
	scripts/demo

.PHONY: criu
criu: ## install a CRIU that is new enough, where the system has none
	scripts/install-criu

.PHONY: deps
deps: ## install the programs that the tests dump and restore
	scripts/install-deps

.PHONY: test
test: criu deps generate-check ## install what is missing and run all tests (as root; PKG=./... by default)
	@# A benchmark is no test: in CI it shows its figures, and fails nothing.
	@[ -z "$$CI" ] || $(GO) run ./bench -small || echo "bench: it did not come to its end"
	@scripts/test $(PKG)

DURATION ?= 10m

.PHONY: soak
soak: criu deps ## random walks through chains of checkpoints for DURATION (10m), as root
	$(GO) test -count=1 -v -timeout 0 ./test/soak -duration $(DURATION) $(SOAKFLAGS)

.PHONY: test-kernels
test-kernels: criu ## run the trackers' tests and a chain on Debian's kernels, in QEMU (takes its time; KERNELS=soft-dirty for one)
	scripts/test-kernels $(KERNELS)

.PHONY: lint
lint: ## run golangci-lint, at the version pinned in scripts/install-deps
	@scripts/install-deps lint
	.cache/bin/golangci-lint run $(PKG)

.PHONY: bench
bench: criu deps build ## measure beside plain CRIU; table, JSON and picture (as root)
	$(GO) run ./bench $(BENCHFLAGS)

.PHONY: bench-small
bench-small: criu deps build ## the same at small size, in seconds: shows that it works, not how fast
	$(GO) run ./bench -small $(BENCHFLAGS)

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (20s) each
	@FUZZTIME=$(FUZZTIME) scripts/fuzz $(PKG)

.PHONY: generate
generate: ## rebuild the library that is preloaded into CRIU (needs gcc) and the code of the API
	scripts/generate

.PHONY: generate-check
generate-check: ## fail where a generated file is older than its source
	@scripts/generate --check

.PHONY: clean
clean: ## remove what the targets above have built
	rm -rf bin out .cache
