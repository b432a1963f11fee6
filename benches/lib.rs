//! Only benchmarks: see `codec.rs`, and `results/` for what was recorded.
