//! Compresses the weights of neural networks into NWC containers, and restores them.
//!
//! The program `nwc-encode` is a thin layer over this library: [`model`] reads Hugging Face folders and safetensors files,
//! [`compress`] turns them into a container, [`restore`] decodes one, [`commands`] is what the program does.
//! With the feature `models`, `forward` runs models, `calibrate` sees what goes into their layers, `evaluate` how good they are.
//!
//! ```
//! use nwc_encode_host::compress::{Settings, Target, compress};
//! use nwc_encode_host::progress::Silent;
//! use nwc_encode_host::synthetic::Source;
//! use nwc_encode_host::tensors::OwnedTensors;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut model = OwnedTensors::default();
//! model.push_f32("layer.weight", &[256, 256], &Source::Gaussian.matrix(256, 256, 1));
//!
//! let mut file = tempfile::tempfile()?;
//! let report = compress(&model, Vec::new(), &Settings::new(Target::Bits(4.0)), &Silent, &mut file)?;
//! assert!((3.99..=4.0).contains(&report.bits_per_weight()));
//! assert!(report.nmse < 0.007);
//! # Ok(())
//! # }
//! ```

#[cfg(any(feature = "train", feature = "models"))]
mod adam;
pub mod atomic;
#[cfg(feature = "models")]
pub mod calibrate;
pub mod chunks;
pub mod codec_file;
pub mod coding;
pub mod commands;
pub mod compress;
pub mod container;
pub mod device;
pub mod error;
#[cfg(feature = "models")]
pub mod evaluate;
#[cfg(feature = "models")]
pub mod finetune;
#[cfg(feature = "models")]
pub mod forward;
pub mod importance;
pub mod latents;
pub mod model;
#[cfg(any(feature = "train", feature = "models"))]
pub mod parameters;
pub mod progress;
pub mod residual;
pub mod restore;
#[cfg(feature = "models")]
pub mod samples;
pub mod seek;
pub mod simd;
#[cfg(feature = "models")]
pub mod subject;
pub mod synthetic;
pub mod tensors;
#[cfg(feature = "train")]
pub mod train;

pub use error::{Error, ErrorKind, Result};
