# usagekit needs Go 1.26. `make` lists what there is to do.

GO         ?= go
GOFILES     = $(shell git ls-files -co --exclude-standard '*.go')
MODULES     = . internal/routers
each        = for m in $(MODULES); do echo "$(1): $$m"; (cd $$m && $(1)) || exit 1; done
staticcheck = $(GO) tool -modfile="$(CURDIR)/internal/tools/go.mod" staticcheck

.DEFAULT_GOAL := help
.PHONY: help run test race lint fuzz postgresql

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## serve the example with demo traffic on SQLite (ADDR, DB and ARGS change that)
	@$(GO) run ./example -addr '$(or $(ADDR),127.0.0.1:8080)' -db '$(or $(DB),usage.db)' -demo $(ARGS)

test: postgresql ## all tests, on SQLite and on a private PostgreSQL
	@export USAGEKIT_PG=require; $(call each,$(GO) test -parallel=4 -shuffle=on ./...)

race: postgresql ## all tests under the race detector
	@export USAGEKIT_PG=require; $(call each,$(GO) test -race -parallel=4 -shuffle=on ./...)

lint: ## gofmt, vet, staticcheck, go mod tidy
	@unformatted="$$(gofmt -l $(GOFILES))"; [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	@$(call each,$(GO) vet ./...)
	@$(call each,$(staticcheck) ./...)
	@$(call each,$(GO) mod tidy -diff)

fuzz: ## each fuzz target for 30 s
	$(GO) test -run '^$$' -fuzz FuzzSplit -fuzztime 30s ./internal/counter
	$(GO) test -run '^$$' -fuzz FuzzClean -fuzztime 30s ./internal/counter
	$(GO) test -run '^$$' -fuzz FuzzDecode -fuzztime 30s ./internal/counter

# The tests start a PostgreSQL of their own and need its programs for that.
postgresql:
	@if command -v initdb >/dev/null; then exit 0; fi; \
	for f in /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb /opt/homebrew/opt/postgresql*/bin/initdb /usr/local/opt/postgresql*/bin/initdb; do \
		if [ -x "$$f" ]; then exit 0; fi; \
	done; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends postgresql; \
	else \
		echo "The tests need PostgreSQL's server programs (15 or later):" >&2; \
		echo "  Debian, Ubuntu: sudo apt-get install postgresql    macOS: brew install postgresql@17" >&2; exit 1; \
	fi
