# Thin names over scripts/: what people and CI call.
.PHONY: run test test-slow check bench setup
run:       ; @scripts/run
test:      ; @scripts/test
test-slow: ; @scripts/test -m slow
check:     ; @scripts/check
bench:     ; @scripts/bench
setup:     ; @scripts/setup dev
