# The targets that people type. `make check` is what CI does.
.PHONY: check test fuzz bench soak demo

FUZZTIME ?= 30s

check:
	bash .ci/run

test:
	go test ./...

demo:
	go run ./examples/pipeline

# Every fuzz target in turn, FUZZTIME each. When the time runs out in the middle
# of an input, go test may fail with "context deadline exceeded" and no input to
# show for it; that is no finding.
fuzz:
	@set -e; log=$$(mktemp); trap 'rm -f $$log' EXIT; \
	for f in $$(grep -rl --include='*_test.go' '^func Fuzz' .); do \
	  for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$f); do \
	    echo "== $$(dirname $$f) $$t"; \
	    go test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x ./$$(dirname $$f) >$$log 2>&1 || \
	      { grep -q '^    context deadline exceeded$$' $$log && ! grep -q 'Failing input' $$log; } || \
	      { cat $$log; exit 1; }; \
	    tail -n 1 $$log; \
	  done; done

bench:
	go test -run '^$$' -bench . -benchmem ./...

# The full counts of the crash, power-cut and load tests.
soak:
	MAILSPINE_SOAK=1 go test -timeout 4h ./...
