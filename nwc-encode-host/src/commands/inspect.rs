//! `inspect`: what is in a container, without decoding weights.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use nwc_decode_core::{Chunk, Codec, Container, FORMAT_VERSION, Quantiser, SectionKind, TileDecoder};
use serde_json::{Value, json};

use super::{Outcome, human_bytes, split_lines};
use crate::Result;
use crate::container::Split;
use crate::latents::{LatentTensor, Latents, coded_weights};
use crate::residual::Residual;
use crate::restore::{ContainerFile, coding_name, damaged};

/// Say what is in a container.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The container
    pub file: PathBuf,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// Say how much memory a decoder needs
    #[arg(long)]
    pub memory: bool,
}

/// Bytes of the structs that hold a decoder's state: the tile decoder and its chunk of weights.
const STATE_BYTES: usize = size_of::<TileDecoder<'_>>() + size_of::<Chunk>();

/// Runs the command.
///
/// # Errors
/// A damaged container, or the operating system's.
pub fn run(args: &InspectArgs) -> Result<Outcome> {
    let file = ContainerFile::open(&args.file)?;
    let container = file.container()?;
    let split = Split::of(&container).map_err(|error| damaged(error).file(&args.file))?;
    let codecs: Vec<Codec<'_>> =
        (0..container.codec_count()).filter_map(|index| container.codec(index).ok()).collect();
    let latents = Latents::read(&container).map_err(|error| error.file(&args.file))?;
    let latents = latents.as_ref();
    let weights = coded_weights(&container, latents);
    let bits_per_weight = split.counted() as f64 * 8.0 / weights.max(1) as f64;
    let scratch =
        |lookup_bits| codecs.iter().map(|c| c.required_scratch(lookup_bits).total_bytes()).max().unwrap_or(0);
    let scratch_bytes = scratch(u32::MAX);
    let seek_points = container.seek_points().map_err(|error| damaged(error).file(&args.file))?.count();
    let json = json!({
        "version": FORMAT_VERSION,
        "weights": weights,
        "bytes": split.bytes(),
        "bits_per_weight": bits_per_weight,
        "split": split,
        "codec": codecs.iter().map(codec_json).collect::<Vec<_>>(),
        "required": { "scratch_bytes": scratch_bytes, "state_bytes": STATE_BYTES },
        "seek_points": seek_points,
        "float_synthesis": latents.map(|latents| synthesis_json(latents.synthesis())),
        "tensors": container
            .tensors()
            .enumerate()
            .map(|(index, tensor)| tensor_json(&tensor, latents.and_then(|latents| latents.get(index))))
            .collect::<Vec<_>>(),
    });

    let mut text = format!(
        "{}: container format {FORMAT_VERSION}, {}, {} tensors, {weights} coded weights at {bits_per_weight:.4} bits\n{}",
        args.file.display(),
        human_bytes(split.bytes()),
        container.len(),
        split_lines(&split)
    );
    for codec in &codecs {
        let _ = writeln!(
            text,
            "codec: {}, {}, {} classes, {} tables a class, precision {} bits",
            codec.synthesis().name(),
            quantiser_name(codec),
            codec.classes(),
            codec.unions(),
            codec.precision()
        );
    }
    if let Some(latents) = latents {
        let synthesis = latents.synthesis();
        let _ = writeln!(
            text,
            "weights are made of latents by a network in floating point, of width {} and {} blocks, {} multiply-adds a weight: by hosts and their GPUs only. \
             Latents are the same on every device; that weights are is not promised",
            synthesis.width(),
            synthesis.blocks(),
            synthesis.multiply_adds_per_weight()
        );
    }
    if seek_points > 0 {
        let _ = writeln!(
            text,
            "{seek_points} seek points, {}",
            human_bytes(container.section_bytes(SectionKind::Seek) as u64)
        );
    }
    if args.memory {
        memory_text(&mut text, &container, &scratch);
    }
    if args.tensors {
        for tensor in container.tensors() {
            let shape = tensor.shape().iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            let bits = tensor.stored_bytes() as f64 * 8.0 / tensor.elements().max(1) as f64;
            let _ = writeln!(
                text,
                "{:<6} {:<5} {bits:>8.3} bits  {} [{shape}]",
                coding_name(tensor.coding()),
                tensor.dtype().name(),
                tensor.name()
            );
        }
    }
    Ok(Outcome::new(json, text))
}

fn memory_text(text: &mut String, container: &Container<'_>, scratch: &dyn Fn(u32) -> usize) {
    let tile = container
        .tensors()
        .filter_map(|tensor| tensor.coded().ok())
        .flat_map(|coded| (0..coded.tiles().min(1)).filter_map(move |number| coded.tile(number).ok()))
        .map(|tile| tile.elements())
        .max();
    let _ = writeln!(text, "memory of a decoder, besides its input and output:");
    let _ = writeln!(text, "  state            {STATE_BYTES:>10} bytes");
    for (label, bits) in [("tables, fastest", u32::MAX), ("tables, 8 bits", 8), ("tables, 4 bits", 4)] {
        let _ = writeln!(text, "  {label:<17}{:>10} bytes", scratch(bits));
    }
    let _ = writeln!(text, "  largest tile     {:>10} weights", tile.unwrap_or(0));
}

fn quantiser_name(codec: &Codec<'_>) -> String {
    match codec.quantiser() {
        Quantiser::Trellis { next } => format!("trellis{}", next.len() / 2),
        _ => "scalar".to_owned(),
    }
}

fn codec_json(codec: &Codec<'_>) -> Value {
    json!({
        "synthesis": codec.synthesis().name(),
        "quantizer": quantiser_name(codec),
        "classes": codec.classes(),
        "unions": codec.unions(),
        "precision": codec.precision(),
        "bytes": codec.stored_bytes(),
    })
}

fn synthesis_json(synthesis: &Residual) -> Value {
    json!({
        "width": synthesis.width(),
        "blocks": synthesis.blocks(),
        "levels": synthesis.levels(),
        "multiply_adds_per_weight": synthesis.multiply_adds_per_weight(),
    })
}

fn tensor_json(tensor: &nwc_decode_core::Tensor<'_>, restored: Option<&LatentTensor>) -> Value {
    let mut json = json!({
        "name": tensor.name().to_string(),
        "dtype": tensor.dtype().name(),
        "shape": tensor.shape(),
        "coding": coding_name(tensor.coding()),
        "bytes": tensor.stored_bytes(),
        "bits_per_weight": tensor.stored_bytes() as f64 * 8.0 / tensor.elements().max(1) as f64,
    });
    if let Ok(coded) = tensor.coded() {
        json["tiles"] = json!(coded.tiles());
        json["transposed"] = json!(coded.is_transposed());
    }
    if let Some(LatentTensor { name, dtype, shape, .. }) = restored {
        json["restored"] = json!({ "name": name, "dtype": dtype.name(), "shape": shape });
    }
    json
}
