# The project's verbs; each is a script of its own.
.PHONY: run test test-python docs build bench format check fuzz install-test
run:          ; scripts/run "Once upon a time"
test:         ; scripts/test
test-python:  ; scripts/test-python
docs:         ; scripts/docs
build:        ; scripts/build release
bench:        ; scripts/build bench && build/bench/bin/ops_bench
format:       ; scripts/format
check:        ; scripts/format --check && scripts/check-layers
fuzz:         ; scripts/fuzz
install-test: ; scripts/test-install
