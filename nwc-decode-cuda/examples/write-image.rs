//! Writes a container's image to a file, for programs that only have the device functions.
//!
//! ```text
//! cargo run -p nwc-decode-cuda --release --example write-image -- model.nwc model.nwci [--item-rows N]
//! ```
//!
//! Prints how large the image is and how long it took, then each tensor's number, shape [batch, out, in], bytes of tables, the CRC-32 of its weights as little-endian binary32, and name.

use std::error::Error;
use std::fs;
use std::time::Instant;

use nwc_decode_core::{Checks, Container, Crc32, Limits, Scratch, Table, Tables};
use nwc_decode_cuda::{Image, ImageOptions, ImageTensor};

const USAGE: &str = "usage: write-image FILE.nwc OUT.nwci [--item-rows N]";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (file, out, options) = match arguments[..] {
        [file, out] => (file, out, ImageOptions::default()),
        [file, out, "--item-rows", rows] => (file, out, ImageOptions { item_rows: rows.parse()? }),
        _ => return Err(USAGE.into()),
    };
    let bytes = fs::read(file)?;
    let container = Container::open(&bytes, &Limits::default())?;
    let started = Instant::now();
    let image = Image::new(&container, options)?;
    let seconds = started.elapsed().as_secs_f64();

    // Nobody finds half an image.
    let beside = format!("{out}.partial");
    fs::write(&beside, image.bytes())?;
    fs::rename(&beside, out)?;

    let weights: usize = image.tensors().iter().map(ImageTensor::elements).sum();
    let bits = image.bytes().len() as f64 * 8.0 / weights.max(1) as f64;
    println!("{weights} weights in {bits:.3} bits each, recoded in {seconds:.3} s");
    println!("number [batch, out, in] table-bytes crc-32 name");
    for (number, tensor) in image.tensors().iter().enumerate() {
        let crc = match crc_of_weights(&container, tensor.index) {
            Ok(crc) => format!("{crc:08x}"),
            Err(error) => format!("({error})"),
        };
        println!("{number} {:?} {} {crc} {}", tensor.shape, image.table_bytes(number), tensor.name);
    }
    Ok(())
}

/// By the decoder for hosts, which shares no loop with the one for devices.
fn crc_of_weights(container: &Container<'_>, index: usize) -> Result<u32, nwc_decode_core::Error> {
    let coded = container.tensor(index)?.coded()?;
    let codec = container.codec(coded.codec_index())?;
    let need = codec.required_scratch(codec.precision());
    let mut memory = vec![Table::default(); need.tables];
    let mut words = vec![0; need.words];
    let scratch = Scratch { tables: &mut memory, words: &mut words };
    let tables = Tables::expand(&codec, codec.precision(), scratch)?;
    let mut weights = vec![0f32; coded.shape().iter().product()];
    coded.decode(&tables, Checks::All, &mut weights)?;
    let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    Ok(Crc32::of(&bytes))
}
