//! Where weights are decoded: by the processor, or by a GPU.

use clap::ValueEnum;
use nwc_decode_core::Container;

use crate::Result;

#[cfg(feature = "cuda")]
mod gpu;
#[cfg(not(feature = "cuda"))]
mod no_gpu;

#[cfg(feature = "cuda")]
pub use gpu::Gpu;
#[cfg(not(feature = "cuda"))]
pub use no_gpu::Gpu;

/// What decodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The processor
    #[default]
    Cpu,
    /// The first NVIDIA GPU; needs a build with the feature `cuda`, or `train-cuda` to train
    Cuda,
}

impl Device {
    /// The GPU with all coded tensors of a container in its memory; `None` for the processor.
    ///
    /// # Errors
    /// If the program was built without the feature `cuda`, what is wrong with the container, or what the driver says.
    pub fn open(self, container: &Container<'_>) -> Result<Option<Gpu>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda => Gpu::open(container).map(Some),
        }
    }
}

/// How fast a GPU decodes.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    /// Coded weights of all tensors.
    pub weights: usize,
    /// Median time of decoding them all to F16, from the first kernel's start to the last one's end.
    pub seconds: f64,
}
