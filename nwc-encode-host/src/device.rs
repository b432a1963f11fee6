//! What decodes weights and trains: the processor, or a GPU.

#[cfg(any(feature = "train", feature = "models"))]
use burn::backend::{Autodiff, Flex};
#[cfg(any(feature = "train", feature = "models"))]
use burn::tensor::backend::AutodiffBackend;
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

/// What decodes, or trains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The processor
    #[default]
    Cpu,
    /// The first NVIDIA GPU; needs a build with the feature `cuda` to decode, or `burn-cuda` to train and to fine-tune
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

    /// Computes something with burn.
    ///
    /// # Errors
    /// If the program was built without the feature `burn-cuda`, no GPU can be used, or what the computation says.
    #[cfg(any(feature = "train", feature = "models"))]
    pub(crate) fn compute<C: Compute>(self, what: C) -> Result<C::Output> {
        match self {
            Self::Cpu => what.on::<Autodiff<Flex>>(&burn::tensor::Device::<Flex>::default()),
            #[cfg(feature = "burn-cuda")]
            Self::Cuda => what.on::<Autodiff<burn::backend::Cuda>>(&burn_gpu()?),
            #[cfg(not(feature = "burn-cuda"))]
            Self::Cuda => Err(crate::Error::input("this nwc-encode was built without training on GPUs").remedy(
                "build it with `CUDARC_CUDA_VERSION=13000 cargo build --release -p nwc-encode-host --features full,burn-cuda`, or use --device cpu",
            )),
        }
    }
}

/// Nothing to compute: whether anything could be.
#[cfg(feature = "models")]
pub(crate) struct Nothing;

#[cfg(feature = "models")]
impl Compute for Nothing {
    type Output = ();

    fn on<A: AutodiffBackend>(self, _: &A::Device) -> Result<()> {
        Ok(())
    }
}

/// What is computed with burn, on whatever device.
#[cfg(any(feature = "train", feature = "models"))]
pub(crate) trait Compute {
    /// What comes out.
    type Output;

    /// Computes it.
    fn on<A: AutodiffBackend>(self, device: &A::Device) -> Result<Self::Output>;
}

/// The first GPU, once something has been done on it.
#[cfg(feature = "burn-cuda")]
fn burn_gpu() -> Result<burn::tensor::Device<burn::backend::Cuda>> {
    use std::panic;

    use burn::backend::Cuda;
    use burn::tensor::{Device, Tensor};

    // Without a driver or a GPU the backend panics, and its words are for its developers.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let tried = panic::catch_unwind(|| {
        Tensor::<Cuda, 1>::zeros([1], &Device::<Cuda>::default()).try_into_data().is_ok()
    });
    panic::set_hook(hook);
    if tried.is_ok_and(|done| done) {
        Ok(Device::<Cuda>::default())
    } else {
        Err(crate::Error::input("no NVIDIA GPU can be used")
            .remedy("see whether nvidia-smi lists one and that its driver is of CUDA 13.0 or later, or use --device cpu"))
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
