//! In place of the GPU, in a program that is not linked with the driver's library.

use nwc_decode_core::{Container, DType};

use super::Speed;
use crate::latents::Latents;
use crate::progress::Progress;
use crate::{Error, Result};

/// A GPU: there is none.
#[derive(Debug)]
pub enum Gpu {}

#[allow(missing_docs, clippy::missing_errors_doc)] // as the real one's, and never called
impl Gpu {
    pub(super) fn open(_container: &Container<'_>) -> Result<Self> {
        Err(Error::input("this nwc-encode was built without CUDA").remedy(
            "build it with `cargo build --release -p nwc-encode-host --features cuda`, or use --device cpu",
        ))
    }

    pub fn name(&self) -> &str {
        match *self {}
    }

    pub fn decode(&self, _index: usize, _dtype: DType) -> Result<Vec<u8>> {
        match *self {}
    }

    pub fn restore(
        &self,
        _latents: &Latents,
        _index: usize,
        _bytes: &[u8],
        _dtype: DType,
    ) -> Result<Vec<u8>> {
        match *self {}
    }

    pub fn speed(&self, _runs: usize, _progress: &dyn Progress) -> Result<Speed> {
        match *self {}
    }
}
