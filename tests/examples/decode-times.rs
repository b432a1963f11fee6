//! Decodes all coded tensors of a container a number of times, on one thread: for counting instructions under an emulator.
//!
//! ```text
//! decode-times FILE.nwc TIMES plain|best symbols|whole
//! ```

use half::f16;
use nwc_decode_core::{Checks, Coding};
use nwc_encode_host::restore::{ContainerFile, Decoder, TableMemory};
use nwc_encode_host::simd::Level;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, times, level, what] = args.as_slice() else {
        panic!("decode-times FILE.nwc TIMES plain|best symbols|whole")
    };
    let times: usize = times.parse().expect("a number of times");
    let level = if level == "plain" { Level::Plain } else { Level::best() };
    let file = ContainerFile::open(path.as_ref()).expect("the container can be read");
    let container = file.container().expect("the container is in order");
    let mut memory = TableMemory::default();
    let decoder = Decoder::with_level(&container, &mut memory, level).expect("its tables expand");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().expect("a thread");
    let mut weights = 0;
    for tensor in decoder.tensors().iter().filter(|tensor| tensor.coding() == Coding::Coded) {
        let restorer = decoder.coded(tensor).expect("it is coded");
        weights += tensor.elements();
        let mut out = vec![0; size_of::<f16>() * tensor.elements()];
        for _ in 0..times {
            let decoded = pool.install(|| match what.as_str() {
                "whole" => restorer.decode::<f16>(Checks::SkipChecksums, &mut out),
                _ => restorer.decode_symbols(),
            });
            decoded.expect("it decodes");
        }
    }
    println!("{level:?} {weights}");
}
