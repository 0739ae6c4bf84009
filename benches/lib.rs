//! What the benchmarks share; see `cargo bench -p netfilterqueue-benches`.

pub mod messages;
