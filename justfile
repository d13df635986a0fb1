# Shortcuts for common tasks in this repository. `just` lists them.

_default:
    @just --list

# Runs the gate: every check that must pass before a merge.
ci:
    bash .ci/run

# Runs all tests, including doc tests, and builds the examples.
test *ARGS:
    cargo test --workspace {{ ARGS }}

# Runs the tests that need real kernels, in virtual machines (needs root and QEMU).
lab *ARGS:
    lab/test {{ ARGS }}

# Mutates the code that the soundness rests on (needs cargo-mutants and cargo-nextest).
mutants *ARGS:
    cargo mutants --package uncopied {{ ARGS }}

# Runs the tests of `serve` that take minutes: many connections, slow readers, signals under load.
endurance:
    cargo test --release -p uncopied-cli --test it -- endurance --ignored --show-output --test-threads 1

# Fuzzes TARGET, `head` or `connection` (needs nightly Rust and cargo-fuzz).
fuzz TARGET="connection" *ARGS:
    cargo +nightly fuzz run {{ TARGET }} {{ ARGS }}

# Formats the code.
fmt:
    cargo fmt --all

# Runs clippy with warnings denied.
lint:
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# Builds the documentation of the libraries, in target/doc.
doc *ARGS:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --lib --no-deps --all-features {{ ARGS }}

# Checks the licences, duplicates and origin of dependencies (needs cargo-deny).
deny:
    cargo deny check bans licenses sources

# Serves PATH with a release build.
serve PATH=".":
    cargo run --release -- serve {{ PATH }}

# Compares the server with nginx, axum and a plain sendfile loop.
compare *ARGS:
    cargo run --release -p compare -- serve {{ ARGS }}

# Compares our sender of memory with plain write, tokio and iperf3.
compare-memory *ARGS:
    cargo run --release -p compare -- memory {{ ARGS }}

# Compares our way to send a file with the copy functions of tokio and std.
compare-copy *ARGS:
    cargo run --release -p compare -- copy {{ ARGS }}

# Compares our receiver with plain recv and io_uring's multishot recv.
compare-receive *ARGS:
    cargo run --release -p compare -- receive {{ ARGS }}

# Compares `uncopied get` with curl, wget, aria2 and a plain loop.
compare-get *ARGS:
    cargo run --release -p compare -- get {{ ARGS }}

# Compares `uncopied relay` with HAProxy, nginx, tokio and a plain loop (needs root).
compare-relay *ARGS:
    cargo run --release -p compare -- relay {{ ARGS }}

# They have the place and the names that docs/bench.md expects.
#
# Takes pictures of a REPORT of `uncopied bench --report REPORT` (needs chromium and pngquant).
bench-pictures REPORT="target/bench.html": (bench-picture REPORT "light" "1") (bench-picture REPORT "dark" "0")

[private]
bench-picture REPORT SCHEME NUMBER:
    mkdir -p docs/images
    chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir=target/chromium --window-size=1440,1800 --blink-settings=preferredColorScheme={{ NUMBER }} --screenshot=docs/images/bench-{{ SCHEME }}.png "file://$(realpath {{ REPORT }})"
    pngquant --force --ext .png 64 docs/images/bench-{{ SCHEME }}.png

# The tests overwrite buffers as soon as the completions allow it, and regions at any time, while
# the receivers check every byte.
#
# Runs these tests, and those of relays under chaos, for SECONDS each.
soak SECONDS="600":
    UNCOPIED_SOAK_SECONDS={{ SECONDS }} cargo test --release -p uncopied --all-features --test it -- buffer_reuse regions relays::chaos --show-output
    UNCOPIED_SOAK_SECONDS={{ SECONDS }} cargo test --release -p uncopied-cli --test it -- relay::chaos --show-output
