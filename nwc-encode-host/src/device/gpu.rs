//! The GPU, by nwc-decode-cuda.

use std::cell::OnceCell;
use std::collections::HashMap;

use nwc_decode_core::{Container, DType};
use nwc_decode_cuda::cust::context::{Context, ContextFlags};
use nwc_decode_cuda::cust::device::Device;
use nwc_decode_cuda::cust::error::CudaResult;
use nwc_decode_cuda::cust::event::{Event, EventFlags};
use nwc_decode_cuda::cust::memory::{CopyDestination, DeviceBuffer};
use nwc_decode_cuda::cust::stream::{Stream, StreamFlags};
use nwc_decode_cuda::cust::{CudaFlags, init};
use nwc_decode_cuda::{Decoder, ImageTensor, LatentMatrices, Residual};

use super::Speed;
use crate::latents::{Latents, no_numbers};
use crate::progress::Progress;
use crate::restore::{damaged, zeros};
use crate::tensors::{all_finite, to_f32};
use crate::{Error, Result};

/// A GPU with the coded tensors of a container.
#[derive(Debug)]
pub struct Gpu {
    name: String,
    stream: Stream,
    /// The network of its latents, once it was asked for.
    network: OnceCell<Option<Residual>>,
    /// Behind the stream, since it keeps the context, and fields are dropped in their order.
    decoder: Decoder,
    /// Numbers in the image by those in the directory.
    numbers: HashMap<usize, usize>,
}

impl Gpu {
    pub(super) fn open(container: &Container<'_>) -> Result<Self> {
        init(CudaFlags::empty()).to("start")?;
        let device = Device::get_device(0).to("find a GPU")?;
        let context = Context::new(device).to("use the GPU")?;
        // The processor has other work while the GPU decodes.
        context.set_flags(ContextFlags::SCHED_AUTO).to("use the GPU")?;
        let decoder = Decoder::new(&context, container).map_err(from_decoder)?;
        let numbers =
            decoder.image().tensors().iter().enumerate().map(|(number, tensor)| (tensor.index, number));
        Ok(Self {
            name: device.name().to("name the GPU")?,
            numbers: numbers.collect(),
            network: OnceCell::new(),
            stream: Stream::new(StreamFlags::NON_BLOCKING, None).to("make a stream")?,
            decoder,
        })
    }

    /// What the GPU is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Decodes a tensor, by its index in the directory, into the bytes of `dtype`, F32, F16 or BF16.
    ///
    /// # Errors
    /// What is wrong with the tensor, or what the driver says.
    pub fn decode(&self, index: usize, dtype: DType) -> Result<Vec<u8>> {
        let number = self.numbers.get(&index).ok_or_else(|| damaged(nwc_decode_core::Error::Index))?;
        let len = self.tensors()[*number].elements() * dtype.size();
        let mut bytes = zeros(len)?;
        if len == 0 {
            return Ok(bytes);
        }
        let output = DeviceBuffer::<u8>::zeroed(len).to("take memory on the GPU")?;
        let plan = self.decoder.plan(&[*number], dtype, &[output.as_device_ptr()]).map_err(from_decoder)?;
        // SAFETY: the output is as long as the tensor, and is used again when the work is done.
        unsafe { plan.decode(&self.stream) }.and_then(|()| plan.check(&self.stream)).map_err(from_decoder)?;
        output.copy_to(&mut bytes).to("copy weights from the GPU")?;
        Ok(bytes)
    }

    /// Weights of a tensor of the directory, as bytes of `dtype`, from its latents as F32: as [`Latents::restore`], but that the network computes in binary16. Networks that the GPU does not
    /// take, the processor does.
    ///
    /// # Errors
    /// Latents of which the network makes NaN, or what the driver says.
    ///
    /// # Panics
    /// If that tensor has no latents, or another number of them.
    pub fn restore(&self, latents: &Latents, index: usize, bytes: &[u8], dtype: DType) -> Result<Vec<u8>> {
        let tensor = latents.get(index).expect("a tensor with latents");
        let Some(network) = self.network(latents)? else { return latents.restore(index, bytes, dtype) };
        let shape @ [batch, out, input] = tensor.matrices();
        assert_eq!(bytes.len(), batch * out.next_multiple_of(16) * input * size_of::<f32>());
        let mut weights = zeros(tensor.elements() * dtype.size())?;
        let on_device = "take memory on the GPU";
        let values = DeviceBuffer::from_slice(&to_f32(DType::F32, bytes)).to(on_device)?;
        let levels = DeviceBuffer::from_slice(tensor.levels()).to(on_device)?;
        let deviations = DeviceBuffer::from_slice(&tensor.deviations()).to(on_device)?;
        let output = DeviceBuffer::<u8>::zeroed(weights.len()).to(on_device)?;
        let tensor = LatentMatrices {
            shape,
            latents: values.as_device_ptr(),
            levels: levels.as_device_ptr(),
            deviations: deviations.as_device_ptr(),
        };
        // SAFETY: all have the lengths that the tensor says, its levels were checked, and they live until the stream has come past this.
        unsafe { network.restore(&self.decoder, &self.stream, &tensor, dtype, output.as_device_ptr()) }
            .map_err(from_decoder)?;
        self.stream.synchronize().to("restore weights")?;
        output.copy_to(&mut weights).to("copy weights from the GPU")?;
        if all_finite(dtype, &weights) { Ok(weights) } else { Err(no_numbers()) }
    }

    /// The network of the container's latents, copied once; `None` if it is none for a GPU.
    fn network(&self, latents: &Latents) -> Result<Option<&Residual>> {
        if self.network.get().is_none() {
            let network = match self.decoder.residual(&latents.synthesis().for_gpu()) {
                Err(nwc_decode_cuda::Error::Usage(_)) => None,
                network => Some(network.map_err(from_decoder)?),
            };
            let _ = self.network.set(network);
        }
        Ok(self.network.get().and_then(Option::as_ref))
    }

    /// Decodes all tensors to F16 in the GPU's memory, `runs` times after a first one that does not count. The GPU takes the time.
    ///
    /// # Errors
    /// What is wrong with a tensor, or what the driver says: there must be memory for all weights.
    pub fn speed(&self, runs: usize, progress: &dyn Progress) -> Result<Speed> {
        let all: Vec<usize> = (0..self.tensors().len()).collect();
        let outputs = self
            .tensors()
            .iter()
            .map(|tensor| DeviceBuffer::<u8>::zeroed((2 * tensor.elements()).max(1)))
            .collect::<CudaResult<Vec<_>>>()
            .to("take memory for all weights on the GPU")?;
        let pointers: Vec<_> = outputs.iter().map(|output| output.as_device_ptr()).collect();
        let plan = self.decoder.plan(&all, DType::F16, &pointers).map_err(from_decoder)?;
        let mut times = Vec::new();
        for run in 0..=runs.max(1) {
            progress.check()?;
            let event = || Event::new(EventFlags::DEFAULT).to("make an event");
            let (start, end) = (event()?, event()?);
            start.record(&self.stream).to("record an event")?;
            // SAFETY: the outputs are as long as their tensors, and live until the work is done.
            unsafe { plan.decode(&self.stream) }.map_err(from_decoder)?;
            end.record(&self.stream).to("record an event")?;
            plan.check(&self.stream).map_err(from_decoder)?;
            if run > 0 {
                times.push(end.elapsed_time_f32(&start).to("tell the time")?);
                progress.advance(1);
            }
        }
        times.sort_by(f32::total_cmp);
        let weights = self.tensors().iter().map(ImageTensor::elements).sum();
        Ok(Speed { weights, seconds: f64::from(times[times.len() / 2]) / 1e3 })
    }

    fn tensors(&self) -> &[ImageTensor] {
        self.decoder.image().tensors()
    }
}

/// What mostly helps if the driver fails.
const REMEDY: &str = "see what `nvidia-smi` says of the driver and of free memory, or use --device cpu";

/// Says what was to be done when the driver failed.
trait Doing<T> {
    fn to(self, what: &str) -> Result<T>;
}

impl<T> Doing<T> for CudaResult<T> {
    fn to(self, what: &str) -> Result<T> {
        self.map_err(|error| {
            Error::input(format!("the CUDA driver failed to {what}: {error:?}")).remedy(REMEDY).source(error)
        })
    }
}

fn from_decoder(error: nwc_decode_cuda::Error) -> Error {
    match error {
        nwc_decode_cuda::Error::Container(source) => damaged(source),
        nwc_decode_cuda::Error::Tile { tensor, source } => damaged(source).tensor(tensor),
        other => Error::input(other.to_string()).remedy(REMEDY).source(other),
    }
}
