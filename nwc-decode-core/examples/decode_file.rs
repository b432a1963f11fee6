//! Decodes a container with nothing but the decoder and a fixed amount of memory, tile by tile, as firmware would.
//!
//! ```text
//! cargo run -p nwc-decode-core --example decode_file -- model.nwc
//! ```

use std::error::Error;

use half::f16;
use nwc_decode_core::{Checks, Coding, Container, Limits, Scratch, Table, Tables};

/// Memory for tables: an 8-bit look-up needs a tenth of a direct one.
const LOOKUP_BITS: u32 = 8;
static BUNDLED: &[u8] = include_bytes!("../testdata/example.nwc");

fn main() -> Result<(), Box<dyn Error>> {
    let file = match std::env::args().nth(1) {
        Some(path) => std::fs::read(path)?,
        None => BUNDLED.to_vec(),
    };
    let container = Container::open(&file, &Limits::default())?;
    let mut words = [0u32; 4096];
    let mut tile_weights = vec![f16::ZERO; 1 << 20];

    for tensor in container.tensors() {
        let original = tensor.resolve(&container)?;
        match original.coding() {
            Coding::Raw => println!("{}: raw, {} bytes", tensor.name(), original.raw(Checks::All)?.len()),
            Coding::Coded => {
                let coded = original.coded()?;
                let codec = container.codec(coded.codec_index())?;
                let mut memory = [Table::EMPTY; 64];
                let scratch = Scratch { tables: &mut memory, words: &mut words };
                let tables = Tables::expand(&codec, LOOKUP_BITS, scratch)?;
                let mut sum = 0.0;
                for number in 0..coded.tiles() {
                    let tile = coded.tile(number)?;
                    let weights = tile_weights
                        .get_mut(..tile.elements())
                        .ok_or("the buffer is too small for a tile")?;
                    tile.decode(&tables, Checks::All, weights)?;
                    sum += weights.iter().map(|weight| f64::from(weight.to_f32())).sum::<f64>();
                }
                let mean = sum / tensor.elements() as f64;
                println!(
                    "{}: {:?}, {} tiles, mean weight {mean:.6}",
                    tensor.name(),
                    tensor.shape(),
                    coded.tiles()
                );
            }
            Coding::Alias(_) => unreachable!("resolved above"),
        }
    }
    Ok(())
}
