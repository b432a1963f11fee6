//! `decompress`: a container back into a folder.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use nwc_decode_core::{Checks, Coding, DType, Tensor};
use serde::Deserialize;
use serde_json::json;

use super::Outcome;
use super::compress::SOURCE_MANIFEST;
use crate::device::{Device, Gpu};
use crate::latents::{LatentTensor, Latents, coded_weights};
use crate::model::{FolderWriter, check_file_name};
use crate::progress::Progress;
use crate::restore::{ContainerFile, Decoder, TableMemory, check_content, damaged, inflate};
use crate::tensors::{from_f32, to_f32};
use crate::{Error, Result};

/// Write the model's folder back: safetensors and the files that came with them.
#[derive(Debug, Args)]
pub struct DecompressArgs {
    /// The container
    pub file: PathBuf,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Write floating-point tensors as this type, not as the original's
    #[arg(long)]
    pub dtype: Option<FloatType>,
    /// What decodes: the weights are the same
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub device: Device,
    /// Replace the folder if it exists
    #[arg(long)]
    pub force: bool,
}

/// Types that weights can be written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum FloatType {
    F16,
    Bf16,
    F32,
}

impl FloatType {
    fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::F32 => DType::F32,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Manifest {
    files: Vec<ManifestFile>,
}

#[derive(Debug, Deserialize)]
struct ManifestFile {
    name: String,
    metadata: Option<BTreeMap<String, String>>,
    tensors: Vec<usize>,
}

/// Runs the command.
///
/// # Errors
/// A damaged container, or the operating system's.
pub fn run(args: &DecompressArgs, progress: &dyn Progress) -> Result<Outcome> {
    let started = Instant::now();
    let file = ContainerFile::open(&args.file)?;
    let container = file.container()?;
    let mut writer = FolderWriter::create(&args.output, args.force)?;
    refuse_input_inside(args)?;
    let in_file = |error: Error| error.file(&args.file);

    let mut manifest = None;
    for attachment in container.attachments().map_err(damaged).map_err(in_file)? {
        let content = inflate(&attachment).map_err(in_file)?;
        if attachment.name == SOURCE_MANIFEST {
            manifest = Some(content);
        } else if !attachment.name.starts_with("nwc:") {
            check_file_name(attachment.name).map_err(in_file)?;
            writer.add_file(attachment.name, &content)?;
        }
    }
    let latents = Latents::read(&container).map_err(in_file)?;
    let latents = latents.as_ref();
    let gpu = args.device.open(&container).map_err(in_file)?;
    let mut memory = TableMemory::default();
    let decoder = Decoder::new(&container, &mut memory).map_err(in_file)?;
    let tensors = decoder.tensors();
    let manifest = read_manifest(manifest.as_deref(), tensors.len()).map_err(in_file)?;
    let weights = coded_weights(&container, latents);
    progress.begin("decoding", tensors.iter().map(|tensor| tensor.elements() as u64).sum());

    for part in &manifest.files {
        let layout: Vec<(String, DType, Vec<usize>)> = part
            .tensors
            .iter()
            .map(|&index| {
                if let Some(LatentTensor { name, dtype, shape, .. }) = latents.and_then(|all| all.get(index))
                {
                    return (name.clone(), output_dtype(*dtype, args.dtype), shape.clone());
                }
                let tensor = &tensors[index];
                let shape = tensor.shape().iter().map(|&dim| dim as usize).collect();
                (tensor.name().to_string(), output_dtype(tensor.dtype(), args.dtype), shape)
            })
            .collect();
        let borrowed: Vec<(&str, DType, &[usize])> =
            layout.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.as_slice())).collect();
        writer.begin_file(&part.name, part.metadata.as_ref(), &borrowed)?;
        let mut write = |index: usize, bytes: Result<Vec<u8>>| {
            progress.check()?;
            let tensor = &tensors[index];
            let bytes = bytes.map_err(|error| error.tensor(tensor.name().to_string())).map_err(in_file)?;
            writer.write_tensor(&bytes)?;
            progress.advance(tensor.elements() as u64);
            Ok(())
        };
        match &gpu {
            Some(gpu) => part.tensors.iter().try_for_each(|&index| {
                let decode = |wanted| decode_on_gpu(&decoder, gpu, index, wanted);
                let restore =
                    |latents: &Latents, bytes: &[u8], dtype| gpu.restore(latents, index, bytes, dtype);
                write(index, weights_of(latents, index, args.dtype, decode, restore))
            }),
            None => decoder.in_batches(
                part.tensors.iter().copied(),
                |index, tensor| {
                    let decode = |wanted| {
                        decode(&decoder, tensor, wanted, |coded, dtype| {
                            decoder.decode_as(coded, dtype, Checks::All)
                        })
                    };
                    let restore =
                        |latents: &Latents, bytes: &[u8], dtype| latents.restore(index, bytes, dtype);
                    weights_of(latents, index, args.dtype, decode, restore)
                },
                write,
            ),
        }?;
        writer.end_file()?;
    }
    progress.check()?;
    writer.commit()?;

    let seconds = started.elapsed().as_secs_f64();
    let rate = weights as f64 / seconds;
    let json = json!({ "tensors": tensors.len(), "seconds": seconds, "weights_per_second": rate });
    let text = format!(
        "{}: {} tensors, {weights} coded weights, {seconds:.2} s ({:.1} million weights a second)\n",
        args.output.display(),
        tensors.len(),
        rate / 1e6
    );
    Ok(Outcome::new(json, text))
}

/// With --force the old folder goes; the container must not go with it.
fn refuse_input_inside(args: &DecompressArgs) -> Result<()> {
    let (Ok(input), Ok(output)) = (args.file.canonicalize(), args.output.canonicalize()) else {
        return Ok(());
    };
    if args.force && input.starts_with(&output) {
        return Err(Error::input("lies in the folder that would be replaced")
            .file(&args.file)
            .remedy("choose another folder, or move the container out of it"));
    }
    Ok(())
}

/// What a tensor of this type is written as.
fn output_dtype(dtype: DType, wanted: Option<FloatType>) -> DType {
    match wanted {
        Some(wanted) if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) => wanted.dtype(),
        _ => dtype,
    }
}

/// The bytes to write of a tensor. `decode` gives what the container holds, as a type if one is wanted; `restore` makes weights of latents.
fn weights_of(
    latents: Option<&Latents>,
    index: usize,
    wanted: Option<FloatType>,
    decode: impl Fn(Option<FloatType>) -> Result<Vec<u8>>,
    restore: impl Fn(&Latents, &[u8], DType) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let Some((latents, tensor)) = latents.and_then(|all| Some((all, all.get(index)?))) else {
        return decode(wanted);
    };
    restore(latents, &decode(None)?, output_dtype(tensor.dtype, wanted))
}

fn decode_on_gpu(
    decoder: &Decoder<'_>,
    gpu: &Gpu,
    index: usize,
    wanted: Option<FloatType>,
) -> Result<Vec<u8>> {
    let tensor = &decoder.tensors()[index];
    let original = if let Coding::Alias(target) = tensor.coding() { target } else { index };
    decode(decoder, tensor, wanted, |_, dtype| gpu.decode(original, dtype))
}

/// The bytes to write of a tensor, checked. `coded` decodes one that is coded.
fn decode<'a>(
    decoder: &Decoder<'a>,
    tensor: &Tensor<'a>,
    wanted: Option<FloatType>,
    coded: impl Fn(&Tensor<'a>, DType) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let dtype = output_dtype(tensor.dtype(), wanted);
    let original = decoder.resolve(tensor)?;
    if original.coding() == Coding::Coded {
        let bytes = coded(&original, dtype)?;
        if dtype == tensor.dtype() {
            check_content(&original, &bytes)?;
        }
        return Ok(bytes);
    }
    if dtype == tensor.dtype() {
        return decoder.decode(tensor, Checks::All);
    }
    // Raw tensors may hold anything, infinity and NaN too, so they are rounded by the ordinary rules.
    Ok(from_f32(dtype, &to_f32(tensor.dtype(), &decoder.decode(tensor, Checks::All)?)))
}

/// The files to write. Without a manifest all tensors go to one file.
fn read_manifest(bytes: Option<&[u8]>, tensors: usize) -> Result<Manifest> {
    let Some(bytes) = bytes else {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let file = ManifestFile {
            name: "model.safetensors".to_owned(),
            metadata: Some(metadata),
            tensors: (0..tensors).collect(),
        };
        return Ok(Manifest { files: vec![file] });
    };
    let bad = |problem: String| Error::input(problem).remedy("compress the model again");
    let manifest: Manifest = serde_json::from_slice(bytes)
        .map_err(|error| bad(format!("its list of files cannot be read: {error}")).source(error))?;
    let mut seen = HashSet::new();
    for file in &manifest.files {
        check_file_name(&file.name)?;
        if let Some(index) = file.tensors.iter().find(|&&index| index >= tensors || !seen.insert(index)) {
            return Err(bad(format!("its list of files names tensor {index} twice, or there is none")));
        }
    }
    if seen.len() == tensors {
        Ok(manifest)
    } else {
        Err(bad("its list of files leaves out tensors".to_owned()))
    }
}
