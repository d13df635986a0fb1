# The chores of this repository. `just` lists them.

_default:
    @just --list

# Everything that must hold before a merge, as the gate runs it.
ci:
    bash .ci/run

# All tests, doc tests and examples.
test *ARGS:
    cargo test --workspace {{ ARGS }}

# Formats the code.
fmt:
    cargo fmt --all

# Clippy with warnings denied.
lint:
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# The libraries' documentation, in target/doc.
doc *ARGS:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --lib --no-deps --all-features {{ ARGS }}

# Licences, duplicates and origin of dependencies (needs cargo-deny).
deny:
    cargo deny check bans licenses sources

# Serves PATH by a release build.
serve PATH=".":
    cargo run --release -- serve {{ PATH }}

# The server next to nginx, axum and a plain sendfile loop: medians and ratios.
compare *ARGS:
    cargo run --release -p compare -- serve {{ ARGS }}

# Mechanisms from memory to a socket next to write, tokio and iperf3.
compare-memory *ARGS:
    cargo run --release -p compare -- memory {{ ARGS }}

# A file to a socket next to the copies of tokio and std.
compare-copy *ARGS:
    cargo run --release -p compare -- copy {{ ARGS }}

# Overwrites buffers as soon as their completions allow it, and regions at any time, for SECONDS each; the
# receivers check every byte.
soak SECONDS="600":
    UNCOPIED_SOAK_SECONDS={{ SECONDS }} cargo test --release -p uncopied --all-features --test it -- buffer_reuse regions --show-output
