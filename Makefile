# usagekit needs Go 1.26. `make` lists what there is to do.

GO         ?= go
GOFILES     = $(shell git ls-files -co --exclude-standard '*.go')
MODULES     = . internal/routers internal/pools internal/bench internal/browser
RACING      = . internal/routers # pools runs the same cases again
RACED       = ./...
chromium    = command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null
staticcheck = $(GO) tool -modfile="$(CURDIR)/internal/tools/go.mod" staticcheck

# each runs a command in modules, in all of them whatever fails, and closes with what
# did: of go test, the packages and their tests.
each = (log="$$(mktemp -d)" || exit 1; trap 'rm -rf "$$log"' EXIT; \
	for m in $(1); do \
		echo "$(2): $$m"; \
		{ (cd $$m && $(2)) 2>&1 || echo "FAILED in $$m: $(2)" >>"$$log/failed"; } | tee "$$log/output"; \
		awk '$(failures)' "$$log/output" >>"$$log/failed"; \
	done; \
	cat "$$log/failed"; [ ! -s "$$log/failed" ])
define failures
/^[ \t]*--- FAIL: / { if (index($$3, test[n] "/") != 1) n++; test[n] = $$3 } \
/^\trunning tests:/ { running = 1; next } \
running && /^\t\t/ { test[++n] = $$1 " (running)"; next } \
{ running = 0 } \
/^FAIL\t/ { print "  " $$2 ($$3 ~ /^\[/ ? " " $$3 " " $$4 : ""); for (i = 1; i <= n; i++) print "    " test[i] } \
/^(ok|FAIL)\t/ { n = 0 }
endef

.DEFAULT_GOAL := help
.PHONY: help run test race faults bench scale fill prune lint fuzz vendor-check postgresql chromium wrk

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## serve the example with demo traffic on SQLite (ADDR, DB and ARGS change that)
	@$(GO) run ./example -addr '$(or $(ADDR),127.0.0.1:8080)' -db '$(or $(DB),usage.db)' -demo $(ARGS)

test: postgresql chromium ## all tests, on SQLite, on a private PostgreSQL, and of the page in Chromium
	@export USAGEKIT_PG=require; if $(chromium); then export USAGEKIT_CHROMIUM=require; fi; $(call each,$(MODULES),$(GO) test -timeout=30m -shuffle=on ./...)

race: postgresql ## all tests under the race detector
	@export USAGEKIT_PG=require; $(call each,$(RACING),$(GO) test -race -timeout=30m -shuffle=on $(RACED))

faults: postgresql ## the fault matrix, with real processes: up to 30 minutes
	@USAGEKIT_PG=require USAGEKIT_FAULTS=full $(GO) test -timeout 40m -v -count=1 -parallel 6 ./internal/faults

bench: wrk ## counting beside Prometheus, OpenTelemetry and others, and a server under load: 10 minutes (ARGS: flags of the first)
	@cd internal/bench && $(GO) run . $(ARGS) && $(GO) run ./server

scale: postgresql ## up to 1,000 instances on a private PostgreSQL, beside shared counter rows (ARGS: flags)
	@cd internal/bench && $(GO) run ./scale $(ARGS)

fill: postgresql ## reading 13 months of usage, 1 M users (ARGS: flags)
	@cd internal/bench && $(GO) run ./fill $(ARGS)

prune: postgresql ## removing 10 M rows while others write, and a million random names (ARGS: flags)
	@cd internal/bench && $(GO) run ./prune $(ARGS)

lint: ## gofmt, vet, staticcheck, go mod tidy
	@status=0; \
	unformatted="$$(gofmt -l $(GOFILES))"; [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; status=1; }; \
	$(call each,$(MODULES),$(GO) vet ./...) || status=1; \
	$(call each,$(MODULES),$(staticcheck) ./...) || status=1; \
	$(call each,$(MODULES),$(GO) mod tidy -diff) || status=1; \
	exit $$status

fuzz: ## each fuzz target for 30 s
	$(GO) test -run '^$$' -fuzz FuzzSplit -fuzztime 30s ./internal/naming
	$(GO) test -run '^$$' -fuzz FuzzClean -fuzztime 30s ./internal/naming
	$(GO) test -run '^$$' -fuzz FuzzDecode -fuzztime 30s ./internal/counter
	$(GO) test -run '^$$' -fuzz FuzzRead -fuzztime 30s ./internal/counter
	$(GO) test -run '^$$' -fuzz FuzzParameters -fuzztime 30s -fuzzminimizetime 10x ./dashboard

vendor-check: ## what is vendored is what npm has, byte for byte
	@if ! command -v npm >/dev/null; then echo "make vendor-check needs npm, to fetch the packages: sudo apt-get install npm, or brew install node" >&2; exit 1; fi; \
	set -e; dir="$$(mktemp -d)"; trap 'rm -rf "$$dir"' EXIT; \
	for to in dashboard/uplot internal/browser/testdata/axe internal/browser/testdata/openapi; do \
		package="$$(head -n 1 "$$to/VERSION")"; \
		mkdir -p "$$dir/$$to"; \
		(cd "$$dir/$$to"; npm pack --silent "$$package" >/dev/null; tar -xzf ./*.tgz); \
		for file in "$$to"/*; do \
			name="$${file##*/}"; \
			if [ "$$name" = VERSION ]; then continue; fi; \
			released="$$(find "$$dir/$$to/package/$$name" "$$dir/$$to/package/dist/$$name" "$$dir/$$to/package/schemas/v3.1/$$name" 2>/dev/null | head -n 1)"; \
			cmp "$$file" "$$released"; \
			echo "$$file is that of $$package"; \
		done; \
	done

# The tests start a PostgreSQL and a PgBouncer of their own, and need the programs.
postgresql:
	@missing=; \
	for f in $$(command -v initdb) /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb /opt/homebrew/opt/postgresql*/bin/initdb /usr/local/opt/postgresql*/bin/initdb none; do \
		if [ -x "$$f" ]; then break; fi; \
		if [ "$$f" = none ]; then missing=postgresql; fi; \
	done; \
	if [ ! -x "$$(command -v pgbouncer || echo /usr/sbin/pgbouncer)" ]; then missing="$$missing pgbouncer"; fi; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	else \
		echo "The tests need PostgreSQL's server programs (15 or later) and PgBouncer:" >&2; \
		echo "  Debian, Ubuntu: sudo apt-get install postgresql pgbouncer    macOS: brew install postgresql@17 pgbouncer" >&2; exit 1; \
	fi

# The tests of the page need a browser. Where none can be installed they are skipped.
chromium:
	@if $(chromium); then exit 0; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium && exit 0; \
	fi; \
	echo "The page is not tried in a browser: that needs Chromium." >&2; \
	echo "  Debian: sudo apt-get install chromium    macOS: brew install --cask google-chrome, and google-chrome on PATH" >&2

wrk:
	@if command -v wrk >/dev/null; then exit 0; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -q && apt-get install -q -y --no-install-recommends wrk; \
	else \
		echo "make bench needs wrk: sudo apt-get install wrk, or brew install wrk" >&2; exit 1; \
	fi
