//! Bodies of the fuzz targets, apart from the fuzzer: `fuzz/` feeds them with new inputs, a test of this workspace with the
//! inputs that are kept.

use std::path::{Path, PathBuf};

use arbitrary::{Arbitrary, Unstructured};

pub mod checksums;
pub mod differential;
pub mod matrices;
pub mod mutate;
pub mod safetensors;
pub mod tile;
pub mod walk;

/// Weights that one input may make a target decode into memory. A container of a few bytes may state 2^15 weights for each of
/// them.
pub const MAX_ELEMENTS: usize = 1 << 20;

/// What a target does with an input: it panics if something does not hold that must.
pub type Body = fn(&[u8]);

/// Every target: its name, which is also that of its folder in the corpus, and what it does.
pub const TARGETS: [(&str, Body); 6] = [
    ("open", walk::walk),
    ("open_fixed", |file| walk::walk(&repaired(file))),
    ("tile", |input| take::<tile::Job>(input).iter().for_each(tile::Job::run)),
    ("differential", |file| differential::differential(&repaired(file))),
    ("roundtrip", |input| take::<matrices::Job>(input).iter().for_each(matrices::Job::run)),
    ("safetensors_input", safetensors::open),
];

/// The folder with the inputs of all targets.
pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

/// A container with right checksums.
pub fn repaired(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    checksums::repair(&mut file);
    file
}

/// A job from a fuzzer's bytes, if they are enough for one: as `libfuzzer_sys` makes it.
fn take<'a, T: Arbitrary<'a>>(input: &'a [u8]) -> Option<T> {
    if input.len() < T::size_hint(0).0 {
        return None;
    }
    T::arbitrary_take_rest(Unstructured::new(input)).ok()
}

/// Keeps the encoder on the fuzzer's thread: fuzzing runs one process a core, and a pool of threads makes coverage vary from run
/// to run.
pub fn single_thread() {
    // Only the first call can succeed, and the later ones have nothing left to do.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global();
}
