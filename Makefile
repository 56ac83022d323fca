# Thin names over scripts/: what people and CI call.
.PHONY: run ui test test-slow check bench setup
run:       ; @scripts/run
ui:        ; @scripts/ui
test:      ; @scripts/test
test-slow: ; @scripts/test -m slow
check:     ; @scripts/check
bench:     ; @scripts/bench
setup:     ; @scripts/setup dev
