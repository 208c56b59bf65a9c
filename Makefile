# sts-tlsmap. `make run` needs Go and make, and nothing else.

GO      ?= go
BIN     := bin/sts-tlsmap
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
# The date of the commit, not of the build: the same sources make the same bytes.
DATE    ?= $(shell git log -1 --format=%cs 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)
# The race detector needs a C compiler; without one the tests run without it.
RACE    := $(shell command -v $${CC:-cc} >/dev/null 2>&1 && echo -race)
TOOL    := $(GO) run -modfile=tools/go.mod

.PHONY: build run demo test slow e2e nightly bench lint packages check-packages

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/sts-tlsmap

# The daemon on 127.0.0.1:8461, with its files under ./run. It is asked at once, for a name
# that sends no packet.
run: build run/sts-tlsmap.toml
	@$(BIN) -config run/sts-tlsmap.toml & daemon=$$!; \
	while kill -0 $$daemon 2>/dev/null; do \
		$(BIN) -config run/sts-tlsmap.toml -query localhost 2>/dev/null; \
		if [ $$? = 1 ] && sleep 0.3 && kill -0 $$daemon 2>/dev/null; then \
			printf '\n%s\n%s\n%s\n\n' "sts-tlsmap answers lookups at $$(sed -n 's/^listen *= *//p' run/sts-tlsmap.toml). Next, in another terminal:" \
				'    $(BIN) -config run/sts-tlsmap.toml -explain gmail.com' 'Ctrl-C ends it.'; \
			break; \
		fi; \
		sleep 0.1; \
	done; \
	wait $$daemon

run/sts-tlsmap.toml:
	mkdir -p run
	printf '%s\n' \
		'# Made by make run. What is not here has its default; see docs/configuration.md.' \
		'# Paths are relative to this folder.' \
		'listen  = ["inet:127.0.0.1:8461"]' \
		'control = "unix:control.sock"' \
		'' \
		'[cache]' \
		'path = "cache.db"' >$@

# Ten seconds that show what it does, without the internet.
demo: build
	$(GO) run ./test/demo

# Everything that needs neither root nor an MTA, in under three minutes.
test:
	$(GO) test $(RACE) ./...

# Floods in full size, damaged caches in every way, and tests of long times,
# without the race detector.
slow:
	$(GO) test -tags slow -timeout 30m ./internal/cache ./internal/keeper ./internal/tlsrpt/store ./test/clock ./test/damage

# Real MTAs in network namespaces, and the packages under a booted systemd; needs root. They mostly wait for each other:
# more packages at once than there are processors.
e2e:
	test/e2e/setup
	$(GO) test -tags e2e -count=1 -p 2 -timeout 30m ./test/e2e/... ./packaging/test
	$(GO) test -tags e2e -count=1 -v -timeout 10m ./test/pressure

# What takes too long for every change: 1,000 kills with -9 under writes, an
# upgrade from the last commit whose cache had a page reader of its own, half an
# hour under all attacks at once, an hour of a fleet of twenty relays, a day of ten million TLS sessions, a
# minute of each fuzz target (their seeds, with all findings, are part of make test), and Debian's source package.
nightly:
	test/e2e/setup
	test/fuzz 1m
	STS_TLSMAP_E2E_KILLS=1000 $(GO) test -tags e2e -count=1 -v -timeout 60m -run Kill ./test/e2e/durable
	STS_TLSMAP_E2E_UPGRADE_FROM=a392211 $(GO) test -tags e2e -count=1 -v -timeout 30m ./packaging/test
	STS_TLSMAP_SOAK=30m $(GO) test -tags e2e -count=1 -v -timeout 45m -run AllAttacks ./test/pressure
	STS_TLSMAP_E2E_RELAYS=20 STS_TLSMAP_E2E_FLEET_TIME=1h $(GO) test -tags e2e -count=1 -v -timeout 150m ./test/e2e/relays
	STS_TLSMAP_E2E_RELAYS=20 $(GO) test -tags e2e -count=1 -v -timeout 20m -run Fleet ./test/e2e/delivery
	STS_TLSMAP_BENCH_LARGE_DAY=1 $(GO) run ./test/bench -row 'day of sessions'
	packaging/check-source-package

# .deb, .rpm and a container image for amd64 and arm64, in dist/.
packages:
	packaging/build

# What Debian's lintian and rpmlint say of them, and whether they can be built
# twice, and the image in namespaces; needs root, lintian, rpm, rpmlint, mandoc and jq.
check-packages: packages
	packaging/lint
	packaging/check-reproducible
	packaging/image/test "$$(ls -t dist/*_image.tar | head -n 1)"

bench:
	$(GO) run ./test/bench

lint:
	@files=$$(gofmt -l cmd docs internal packaging test); test -z "$$files" || { echo "gofmt -w is needed for:"; echo "$$files"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags e2e ./test/e2e/... ./test/pressure ./packaging/...
	$(GO) vet -tags slow ./...
	GOOS=freebsd CGO_ENABLED=0 $(GO) vet ./cmd/... ./internal/...
	GOOS=openbsd CGO_ENABLED=0 $(GO) vet ./cmd/... ./internal/...
	$(TOOL) honnef.co/go/tools/cmd/staticcheck ./...
	@out=$$($(TOOL) golang.org/x/vuln/cmd/govulncheck ./... 2>&1) && { echo "$$out" | tail -n 1; exit 0; }; \
	case "$$out" in \
	*"fetching vulnerabilities"*) echo "notice: govulncheck's database is out of reach; nothing was checked" ;; \
	*) echo "$$out"; exit 1 ;; \
	esac
