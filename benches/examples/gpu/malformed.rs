//! Damage: whatever becomes of a container or an image, the GPU must find what the processor finds, and go on.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use half::f16;
use nwc_decode_core::{Container, DType, Limits};
use nwc_decode_cuda::cust::context::Context;
use nwc_decode_cuda::cust::memory::{CopyDestination, DeviceBuffer, DevicePointer};
use nwc_decode_cuda::cust::stream::{Stream, StreamFlags};
use nwc_decode_cuda::{Decoder, Error, Image, ImageOptions, ImageTensor};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::{sound_vectors, with_image};

/// Rows of an item: several items in most tensors of the vectors.
const ITEM_ROWS: usize = 64;
/// Containers that are made images of at once, on all cores: that takes longer than the GPU does.
const TOGETHER: usize = 256;
/// The most items of an image whose bytes are flipped, from its first to its last.
const MOST_ITEMS: usize = 32;
/// Larger images are decoded, but not damaged: each copy would take too long.
const MOST_IMAGE_BYTES: usize = 1 << 20;
/// What outputs are filled with before, as bytes: what is not decoded must stay so.
const FILL: u8 = 0xA5;
/// Outputs of several tensors begin at multiples of this many bytes.
const ALIGNMENT: usize = 256;

/// What became of the damaged copies.
#[derive(Debug, Default)]
struct Count {
    /// Copies.
    cases: usize,
    /// Not opened, or without an image.
    refused: usize,
    /// Some item has an error.
    found: usize,
    /// Everything decodes.
    decoded: usize,
}

impl Count {
    fn add(&mut self, outcome: &Outcome) {
        self.cases += 1;
        match outcome {
            Outcome::Refused => self.refused += 1,
            Outcome::Decoded(status) if status.iter().any(|&code| code != 0) => self.found += 1,
            Outcome::Decoded(_) => self.decoded += 1,
        }
    }

    fn json(&self) -> Value {
        json!({ "cases": self.cases, "refused": self.refused, "found": self.found, "decoded": self.decoded })
    }
}

enum Outcome {
    Refused,
    /// The status of every item, which is the processor's.
    Decoded(Vec<u32>),
}

/// An image, and what the processor finds in its tensors.
struct Case {
    image: Image,
    expected: Vec<Expected>,
}

/// What a tensor decodes to: the status of its items, and its weights, NaN where no item decodes them.
struct Expected {
    status: Vec<u32>,
    weights: Vec<f32>,
}

impl Case {
    fn new(image: Image) -> Self {
        let expected = |(number, tensor): (usize, &ImageTensor)| {
            let mut weights = vec![f32::NAN; tensor.elements()];
            let status =
                image.status_on_host(number, &mut weights).expect("the output is as long as the tensor");
            Expected { status, weights }
        };
        let expected = image.tensors().iter().enumerate().map(expected).collect();
        Self { image, expected }
    }
}

/// Decodes images on the GPU, one after the other.
struct Campaign<'c> {
    context: &'c Context,
    stream: Stream,
    decoder: Option<Decoder>,
    output: DeviceBuffer<u8>,
    /// As long as the output.
    fill: Vec<u8>,
    /// What is decoded next: the two types, which kernels write in different ways, take turns.
    dtype: DType,
}

/// Flips each byte of the vectors and of their images.
pub(crate) fn run(context: &Context, folder: &Path, most_bytes: usize, all_bits: usize) -> Result<Value> {
    let mut campaign = Campaign {
        context,
        stream: Stream::new(StreamFlags::NON_BLOCKING, None)?,
        decoder: None,
        output: DeviceBuffer::from_slice(&[FILL; ALIGNMENT])?,
        fill: vec![FILL; ALIGNMENT],
        dtype: DType::F32,
    };
    let (mut containers, mut images) = (Count::default(), Count::default());
    let (mut files, mut images_left_out) = (0, Vec::new());
    for vector in sound_vectors(folder, most_bytes)? {
        // Should a kernel not return, this says where.
        eprintln!("{}: {} bytes", vector.file, vector.bytes.len());
        files += 1;
        let masks = |place: usize| {
            let all = vector.bytes.len() <= all_bits;
            (0..8).filter(move |&bit| all || bit == place % 8).map(|bit| 1u8 << bit)
        };
        let cases: Vec<(usize, u8)> =
            (0..vector.bytes.len()).flat_map(|place| masks(place).map(move |mask| (place, mask))).collect();
        for cases in cases.chunks(TOGETHER) {
            let case =
                |&(place, mask): &(usize, u8)| damaged_image(&vector.bytes, place, mask).map(Case::new);
            let made: Vec<Option<Case>> = cases.par_iter().map(case).collect();
            for (&(place, mask), case) in cases.iter().zip(made) {
                let outcome = match case {
                    Some(case) => campaign
                        .run(case, true)
                        .with_context(|| format!("{}: byte {place} ^ {mask:#x}", vector.file))?,
                    None => Outcome::Refused,
                };
                containers.add(&outcome);
            }
        }
        let container = Container::open(&vector.bytes, &Limits::default())?;
        let image = Image::new(&container, ImageOptions { item_rows: ITEM_ROWS })?;
        if image.bytes().len() > MOST_IMAGE_BYTES {
            images_left_out.push(vector.file.clone());
            continue;
        }
        let items = (0..image.items()).step_by(image.items().div_ceil(MOST_ITEMS).max(1));
        let places =
            items.flat_map(|item| image.untrusted(item).into_iter().flatten().map(move |at| (item, at)));
        let cases: Vec<(usize, usize, u8)> =
            places.map(|(item, place)| (item, place, 1 << (place % 8))).collect();
        for cases in cases.chunks(TOGETHER) {
            let case = |&(_, place, mask): &(usize, usize, u8)| Case::new(image.with_flipped(place, mask));
            let made: Vec<Case> = cases.par_iter().map(case).collect();
            for (&(item, place, mask), case) in cases.iter().zip(made) {
                let name = || format!("{}: byte {place} of the image ^ {mask:#x}", vector.file);
                let outcome = campaign.run(case, false).with_context(name)?;
                if let Outcome::Decoded(status) = &outcome {
                    let mut others = status.iter().enumerate().filter(|(number, _)| *number != item);
                    ensure!(others.all(|(_, &code)| code == 0), "{}: {status:?}", name());
                }
                images.add(&outcome);
            }
        }
    }
    // A campaign in which nothing happens shows nothing.
    ensure!(containers.found > 0 && images.found > 0, "no damage was found");
    Ok(json!({
        "files": files,
        "containers": containers.json(),
        "images": images.json(),
        "images_too_large": images_left_out,
    }))
}

/// The image of a container with some bits of a byte flipped, if there is one.
fn damaged_image(container: &[u8], place: usize, mask: u8) -> Option<Image> {
    let mut damaged = container.to_vec();
    damaged[place] ^= mask;
    let container = Container::open(&damaged, &Limits::default()).ok()?;
    Image::new(&container, ImageOptions { item_rows: ITEM_ROWS }).ok()
}

impl Campaign<'_> {
    /// Decodes all tensors to F32 or F16 on the GPU, and compares status and bytes with the processor's. `all`: those of tensors with damaged items too. What a lane
    /// reads beyond its last word is anything, as long as it is in the warp's own memory, and always found out in the end.
    fn run(&mut self, Case { image, expected: on_host }: Case, all: bool) -> Result<Outcome> {
        let dtype = self.dtype;
        self.dtype = if dtype == DType::F32 { DType::F16 } else { DType::F32 };
        let bytes = if dtype == DType::F32 { size_of::<f32>() } else { size_of::<f16>() };
        let mut offsets = Vec::new();
        let mut end = 0usize;
        for tensor in image.tensors() {
            offsets.push(end);
            end = (end + tensor.elements() * bytes).next_multiple_of(ALIGNMENT);
        }
        if self.fill.len() < end {
            self.fill.resize(end, FILL);
            self.output = DeviceBuffer::from_slice(&self.fill)?;
        }
        let decoder = with_image(self.context, self.decoder.take(), image)?;
        let decoder = self.decoder.insert(decoder);
        let tensors: Vec<usize> = (0..offsets.len()).collect();
        if tensors.is_empty() {
            return Ok(Outcome::Decoded(Vec::new()));
        }
        let start = self.output.as_device_ptr().as_raw();
        let pointers: Vec<_> = offsets.iter().map(|&at| DevicePointer::from_raw(start + at as u64)).collect();
        // All that is allocated, so that a weight beside its tensor shows too.
        self.output.copy_from(&self.fill)?;
        let plan = match decoder.plan(&tensors, dtype, &pointers) {
            Err(Error::Usage(_)) => return Ok(Outcome::Refused),
            plan => plan?,
        };
        // SAFETY: the outputs are parts of a buffer, as long as their tensors, and the work is done before anything else is.
        unsafe { plan.decode(&self.stream)? };
        let status = plan.status(&self.stream)?;
        let mut found = vec![0; self.output.len()];
        self.output.copy_to(&mut found)?;

        let mut expected = self.fill.clone();
        let image = decoder.image();
        for (number, (tensor, &at)) in image.tensors().iter().zip(&offsets).enumerate() {
            let Expected { status: expected_status, weights } = &on_host[number];
            let status = &status[image.items_of(number)];
            ensure!(status == expected_status, "{}: status {status:?}, not {expected_status:?}", tensor.name);
            let place = at..at + bytes * tensor.elements();
            if !all && status.iter().any(|code| *code != 0) {
                expected[place.clone()].copy_from_slice(&found[place]);
                continue;
            }
            for (to, &weight) in expected[place].chunks_exact_mut(bytes).zip(weights) {
                // What no item decodes stays as it was.
                if weight.is_nan() {
                } else if dtype == DType::F32 {
                    to.copy_from_slice(&weight.to_le_bytes());
                } else {
                    let most = f16::MAX.to_f32();
                    to.copy_from_slice(&f16::from_f32(weight.clamp(-most, most)).to_le_bytes());
                }
            }
        }
        let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        ensure!(
            differs.is_none(),
            "byte {} of the weights differs from the processor's",
            differs.unwrap_or(0)
        );
        Ok(Outcome::Decoded(status))
    }
}
