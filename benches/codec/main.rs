//! Decoding and encoding beside their peers, in one process.

mod decode;
mod encode;

criterion::criterion_main!(decode::benches, encode::benches);
