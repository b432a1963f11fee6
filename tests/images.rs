//! Images for GPUs decode to what the ledger says, by the code of the GPU's threads.

use std::io::{Read as _, Seek as _};

use nwc_decode_core::{Container, Crc32, DType, Limits};
use nwc_decode_cuda::{Image, ImageOptions};
use nwc_encode_host::compress::{Settings, Target, compress, quantiser};
use nwc_encode_host::progress::Silent;
use nwc_encode_host::synthetic::Source;
use nwc_encode_host::tensors::OwnedTensors;
use nwc_tests::ledger::{Ledger, read_vector};

/// Rows of an item: as few as can be, and so many that most tiles are one.
const ITEM_ROWS: [usize; 2] = [16, 4096];

#[test]
fn images_of_all_vectors_decode_to_the_same_weights() {
    let mut tensors = 0;
    for vector in
        Ledger::read().vectors.iter().filter(|vector| vector.error.is_none() && vector.call.is_none())
    {
        let bytes = read_vector(&vector.file);
        let container = Container::open(&bytes, &Limits::default()).expect(&vector.file);
        for item_rows in ITEM_ROWS {
            let image = Image::new(&container, ImageOptions { item_rows }).expect(&vector.file);
            for (number, tensor) in image.tensors().iter().enumerate() {
                let mut weights = vec![0f32; tensor.elements()];
                image.decode_on_host(number, &mut weights).expect(&vector.file);
                let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
                let crc = format!("{:08x}", Crc32::of(&bytes));
                let line =
                    vector.tensors.iter().find(|line| line.name == tensor.name).expect("it is in the ledger");
                assert_eq!(
                    crc,
                    line.crc[DType::F32.name()],
                    "{}: {}, {item_rows} rows",
                    vector.file,
                    tensor.name
                );
                tensors += 1;
            }
        }
    }
    assert!(tensors > 100, "{tensors}");
}

/// The kernels know the encoder's trellises by their polynomials; one that they did not know would cost a plane more, and be decoded all the same.
#[test]
fn images_know_the_encoders_trellises() {
    let mut tensors = OwnedTensors::default();
    tensors.push_f32("weight".to_owned(), &[64, 64], &Source::Gaussian.matrix(64, 64, 1));
    for order in 3..=8u32 {
        let name = format!("trellis{}", 1 << order);
        let settings = Settings {
            quantiser: quantiser(&name).expect("it is known"),
            ..Settings::new(Target::Bits(4.0))
        };
        let mut file = tempfile::tempfile().expect("there is room for a file");
        compress(&tensors, Vec::new(), &settings, &Silent, &mut file).expect("it can be compressed");
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("the file can be read");
        let container = Container::open(&bytes, &Limits::default()).expect("it is legal");
        let image = Image::new(&container, ImageOptions::default()).expect("it is good");
        assert_eq!(image.record(0).trellis, order, "{name}");
    }
}

#[test]
fn a_damaged_tile_is_an_error_and_the_others_decode() {
    let mut seen = std::collections::BTreeSet::new();
    for vector in Ledger::read().vectors.iter().filter(|vector| vector.error.is_some()) {
        let bytes = read_vector(&vector.file);
        let Ok(container) = Container::open(&bytes, &Limits::default()) else { continue };
        let Ok(image) = Image::new(&container, ImageOptions::default()) else { continue };
        let mut found = false;
        for (number, tensor) in image.tensors().iter().enumerate() {
            let mut weights = vec![0f32; tensor.elements()];
            if let Err(error) = image.decode_on_host(number, &mut weights) {
                assert_eq!(Some(error.code()), vector.error, "{}", vector.file);
                seen.insert(error.code());
                found = true;
            }
        }
        // Codes 15 to 20 are of tiles; a raw tensor is none.
        let is_tile = (Some(15)..=Some(20)).contains(&vector.error) && vector.file != "bad-15-raw.nwc";
        assert!(found || !is_tile, "{}: nothing was found", vector.file);
    }
    // What only shows once a tile is looked at: geometry, checksum, lane state, overrun, trailing words, final state, scale.
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [11, 15, 16, 17, 18, 19, 20]);
}

#[test]
fn damage_to_words_and_lanes_stays_in_its_item() {
    let (mut found, mut unnoticed) = (0, 0);
    for vector in Ledger::read().vectors.iter().filter(|vector| vector.small && vector.error.is_none()) {
        let bytes = read_vector(&vector.file);
        let container = Container::open(&bytes, &Limits::default()).expect(&vector.file);
        let image = Image::new(&container, ImageOptions { item_rows: 16 }).expect(&vector.file);
        for tensor in 0..image.tensors().len() {
            let mut sound = vec![0f32; image.tensors()[tensor].elements()];
            assert!(
                image
                    .status_on_host(tensor, &mut sound)
                    .expect("it has the size")
                    .iter()
                    .all(|&code| code == 0)
            );
            let first = image.items_of(tensor).start;
            for item in image.items_of(tensor) {
                for place in image.untrusted(item).into_iter().flatten() {
                    let damaged = image.with_flipped(place, 1 << (place % 8));
                    let mut weights = vec![0f32; sound.len()];
                    let status = damaged.status_on_host(tensor, &mut weights).expect("it has the size");
                    let others = |(number, &code): (usize, &u32)| number + first == item || code == 0;
                    assert!(
                        status.iter().enumerate().all(others),
                        "{}: byte {place}: {status:?}",
                        vector.file
                    );
                    let changed =
                        weights.iter().zip(&sound).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                    assert!(changed <= 16 * 32, "{}: byte {place}: {changed} weights", vector.file);
                    *if status[item - first] == 0 { &mut unnoticed } else { &mut found } += 1;
                }
            }
        }
    }
    // Unnoticed is what changes planes, lanes beside the matrix, or neither the number of words nor the end of a tile.
    assert!(found > 500 && unnoticed > 500, "{found} found, {unnoticed} not");
}
