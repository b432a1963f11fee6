//! What the fuzz targets share: repairing checksums, using a container in every way, and matrices to compress.

pub mod checksums;
pub mod matrices;
pub mod walk;

/// Weights that one input may make a target decode. A container of a few bytes may state 2^15 weights for each of them.
pub const MAX_ELEMENTS: usize = 1 << 20;

/// Keeps the encoder on the fuzzer's thread: fuzzing runs one process a core, and a pool of threads makes coverage vary from run to run.
pub fn single_thread() {
    // Only the first call can succeed, and the later ones have nothing left to do.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global();
}
