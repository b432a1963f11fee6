//! Decodes NWC containers on NVIDIA GPUs.
//!
//! A container becomes an [`Image`], which lies in the memory of the device as it is; kernels decode its tensors to memory, or multiply with them
//! without ever writing a weight. The kernels are Rust, in the crate `nwc-decode-kernels`, and shipped as [PTX](ptx).

/// The example of the README compiles.
#[cfg(all(doctest, feature = "host"))]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;

#[cfg(feature = "host")]
mod early;
mod image;
mod indices;
#[cfg(feature = "host")]
mod launcher;
mod network;
mod oracle;
pub mod ptx;
mod quads;
mod recode;
#[cfg(feature = "host")]
mod residual;

#[cfg(feature = "host")]
pub use cust;
pub use image::{Image, ImageOptions, ImageTensor};
#[cfg(feature = "host")]
pub use launcher::{Decoder, Error, MOST_BATCH, Plan, Product};
pub use nwc_decode_kernels::layout;
#[cfg(feature = "host")]
pub use residual::{LatentMatrices, Linear, Residual, ResidualBlock, ResidualParameters};
