//! Decodes NWC containers on NVIDIA GPUs.
//!
//! A container becomes an [`Image`], which lies in the memory of the device as it is; kernels decode its tensors to memory, or multiply with them
//! without ever writing a weight. The kernels are Rust, in the crate `nwc-decode-kernels`, and shipped as [PTX](ptx).

mod image;
pub mod oracle;
mod trace;

pub use image::{Image, ImageOptions, ImageTensor};
pub use nwc_decode_kernels::layout;
