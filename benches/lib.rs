//! Holds the benchmarks; see `cargo bench -p netfilterqueue-benches`.
