//! Launching the kernels through `cust`, asynchronously on the caller's streams.

use std::sync::OnceLock;

use cust::context::{Context, CurrentContext};
use cust::device::{Device, DeviceAttribute};
use cust::function::Function;
use cust::memory::{CopyDestination, DeviceBuffer, DeviceCopy, DevicePointer};
use cust::module::{Module, ModuleJitOption};
use cust::stream::Stream;
use cust::sys;
use nwc_decode_core::{Container, DType};
use nwc_decode_kernels::layout::{
    AHEAD_BYTES, BlockRecord, DECODE_WARP_BYTES, LANES, TensorRecord, product_warp_bytes, synthesis,
};

use crate::early::{Config, Early, argument};
use crate::{Image, ImageOptions, ptx};

/// Registers of a thread for products, and warps of a block of which several share a multiprocessor, so that one begins while others work.
const PRODUCT: Shape = Shape { registers: 80, warps: 8 };
/// The same for what needs more registers: decoding, and products with transposed tensors.
const DECODE: Shape = Shape { registers: 96, warps: 10 };
/// The same for tensors with transforms.
const TRANSFORM: Shape = Shape { registers: 128, warps: 8 };
/// Warps of a block where all work is done by one block a multiprocessor: the tables are then copied once.
const ONE_WAVE_WARPS: usize = 16;
/// The most warps that a block may be asked to have.
const MOST_WARPS: usize = 20;
/// Blocks of [`PRODUCT`] that share a multiprocessor, as far as registers let.
const SHARING: usize = 3;
/// Bytes of shared memory that each block takes for itself.
const RESERVED: usize = 1 << 10;
/// The most columns of a batch.
pub const MOST_BATCH: usize = 16;

/// How a kernel is launched.
#[derive(Debug, Clone, Copy)]
struct Shape {
    registers: u32,
    warps: usize,
}

impl Shape {
    /// The most warps that a block can have.
    const fn most_warps(self) -> usize {
        const REGISTERS: u32 = 1 << 16;
        (REGISTERS / (self.registers * LANES as u32)) as usize
    }
}

/// What can go wrong on the way to the device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the driver says. By name: the driver's own words for it may be an error in turn.
    #[error("the CUDA driver failed to {what}: {source:?}")]
    Driver {
        /// What was to be done.
        what: &'static str,
        /// The driver's error.
        source: cust::error::CudaError,
    },
    /// The driver refused a call by a number.
    #[error("the CUDA driver failed to {what}: CUresult {code}")]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// The driver's number.
        code: u32,
    },
    /// What is wrong with the container, or a tile of it.
    #[error("{0}")]
    Container(#[from] nwc_decode_core::Error),
    /// A tile that cannot be decoded.
    #[error("tensor `{tensor}`: {source} (error {})", source.code())]
    Tile {
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        source: nwc_decode_core::Error,
    },
    /// A call that does not suit.
    #[error("{0}")]
    Usage(String),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Says what was to be done when the driver failed.
pub(crate) trait Doing<T> {
    fn to(self, what: &'static str) -> Result<T>;
}

impl<T> Doing<T> for cust::error::CudaResult<T> {
    fn to(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Driver { what, source })
    }
}

/// A container in the memory of a device.
#[derive(Debug)]
pub struct Decoder {
    /// The kernels, with the registers of [`PRODUCT`].
    for_products: Module,
    /// The kernels, with the registers of [`DECODE`].
    for_decoding: Module,
    /// The kernels for transforms, with the registers of [`TRANSFORM`], once they were needed.
    for_transforms: OnceLock<Module>,
    kernels: ptx::Kernels,
    early: Early,
    multiprocessors: usize,
    image: Image,
    on_device: DeviceBuffer<u8>,
    /// Shared memory that a block may have.
    most_shared: usize,
    /// That of a multiprocessor.
    shared_of_multiprocessor: usize,
    /// The most warps of a block, if it was said.
    warps: Option<usize>,
    /// Behind all that lies in it, since fields are dropped in their order.
    context: Context,
}

impl Decoder {
    /// Copies all coded tensors of a container to the context's device.
    ///
    /// # Errors
    /// What is wrong with the container, but for single tiles, or what the driver says.
    pub fn new(context: &Context, container: &Container<'_>) -> Result<Self> {
        Self::with_image(context, Image::new(container, ImageOptions::default())?)
    }

    /// As [`new`](Self::new), with an image made before.
    ///
    /// # Errors
    /// What the driver says.
    pub fn with_image(context: &Context, image: Image) -> Result<Self> {
        CurrentContext::set_current(context).to("enter the context")?;
        let device = CurrentContext::get_device().to("find the context's device")?;
        let attribute = |attribute| device.get_attribute(attribute).to("tell what the device is");
        let (major, minor) = (
            attribute(DeviceAttribute::ComputeCapabilityMajor)?,
            attribute(DeviceAttribute::ComputeCapabilityMinor)?,
        );
        let Some(kernels) = ptx::for_capability(major, minor) else {
            return Err(Error::Usage(format!(
                "the device has compute capability {major}.{minor}; the kernels need 8.0 at least"
            )));
        };
        let (for_products, for_decoding) = (load(kernels.plain, PRODUCT)?, load(kernels.plain, DECODE)?);
        let multiprocessors = attribute(DeviceAttribute::MultiprocessorCount)? as usize;
        let most_shared = most_shared(&device)?;
        let shared_of_multiprocessor = attribute(DeviceAttribute::MaxSharedMemoryPerMultiprocessor)? as usize;
        let on_device = upload(&image)?;
        Ok(Self {
            context: context.clone(),
            for_products,
            for_decoding,
            for_transforms: OnceLock::new(),
            kernels,
            early: Early::of_driver(major),
            multiprocessors,
            image,
            on_device,
            most_shared,
            shared_of_multiprocessor,
            warps: None,
        })
    }

    /// With at most so many warps, 1 to 20, in a block of threads; fewer if shared memory has no place for more. The weights do not depend on it.
    #[must_use]
    pub fn with_warps(self, warps: usize) -> Self {
        Self { warps: Some(warps.clamp(1, MOST_WARPS)), ..self }
    }

    /// Copies another image to the device in place of this one: the kernels, which take long to load, stay.
    ///
    /// # Errors
    /// What the driver says; the decoder then has the image that it had.
    pub fn replace_image(&mut self, image: Image) -> Result<()> {
        CurrentContext::set_current(&self.context).to("enter the context")?;
        self.on_device = upload(&image)?;
        self.image = image;
        Ok(())
    }

    /// The image: what tensors there are.
    pub const fn image(&self) -> &Image {
        &self.image
    }

    /// Shared memory that a block may have.
    pub(crate) const fn most_shared(&self) -> usize {
        self.most_shared
    }

    /// Bytes of the image in the memory of the device.
    pub fn device_bytes(&self) -> usize {
        self.on_device.len()
    }

    /// Prepares decoding some tensors, by their numbers in the image, to `outputs`: row-major [batch, out, in] each, of type `dtype`.
    ///
    /// # Errors
    /// [`Error::Usage`] if a number or the type does not suit, or what the driver says.
    pub fn plan(&self, tensors: &[usize], dtype: DType, outputs: &[DevicePointer<u8>]) -> Result<Plan<'_>> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::Usage(format!("weights can be decoded to F32, F16 or BF16, not to {dtype}")));
        }
        if tensors.len() != outputs.len() {
            return Err(Error::Usage(format!("{} outputs for {} tensors", outputs.len(), tensors.len())));
        }
        tensors.iter().try_for_each(|&tensor| self.must_have(tensor))?;
        let most = tensors.iter().map(|&tensor| self.image.record(tensor).synthesis).max();
        let (module, shape, kernel) = match most {
            Some(synthesis::LAYER) => (self.for_transforms()?, TRANSFORM, "nwc_decode_layer"),
            Some(synthesis::LAYERS) => (self.for_transforms()?, TRANSFORM, "nwc_decode_layers"),
            Some(synthesis::HADAMARD | synthesis::LINEAR) => {
                (self.for_transforms()?, TRANSFORM, "nwc_decode_linear")
            }
            _ => (&self.for_decoding, DECODE, "nwc_decode"),
        };
        let launch = self.launch(module, shape, kernel, tensors, DECODE_WARP_BYTES)?;
        let list = self.image.blocks(tensors, launch.warps);
        let blocks = DeviceBuffer::from_slice(bytemuck::cast_slice::<BlockRecord, u32>(&list))
            .to("copy a list to the device")?;
        let outputs: Vec<u64> = outputs.iter().map(DevicePointer::as_raw).collect();
        let outputs = DeviceBuffer::from_slice(&outputs).to("copy addresses to the device")?;
        arrive()?;
        Ok(Plan { launch, dtype, grid: list.len() as u32, blocks, outputs })
    }

    /// Prepares y = W x with a tensor, by its number in the image, for up to [`MOST_BATCH`] rows of x.
    ///
    /// # Errors
    /// [`Error::Usage`] if the tensor is no single matrix or `batch` is too large, or what the driver says.
    pub fn product(&self, tensor: usize, batch: usize) -> Result<Product<'_>> {
        if !(1..=MOST_BATCH).contains(&batch) {
            return Err(Error::Usage(format!("a batch has 1 to {MOST_BATCH} rows, not {batch}")));
        }
        self.must_have(tensor)?;
        let record = *self.image.record(tensor);
        let matrices = record.batch;
        if matrices != 1 {
            return Err(Error::Usage(format!("the tensor is {matrices} matrices; products take one")));
        }
        let (name, kept) = match (batch, record.transposed != 0, record.synthesis) {
            (_, false, synthesis::LINEAR) => ("nwc_gemm_16_linear", 16),
            (_, true, synthesis::LINEAR) => ("nwc_gemm_16_transposed_linear", 16),
            (_, false, synthesis::LAYER | synthesis::LAYERS) => ("nwc_gemm_16_layers", 16),
            (_, true, synthesis::LAYER | synthesis::LAYERS) => ("nwc_gemm_16_transposed_layers", 16),
            (1, false, _) => ("nwc_gemm_1", 1),
            (1, true, _) => ("nwc_gemm_1_transposed", 1),
            (..=8, false, _) => ("nwc_gemm_8", 8),
            (..=8, true, _) => ("nwc_gemm_8_transposed", 8),
            (_, false, _) => ("nwc_gemm_16", 16),
            (_, true, _) => ("nwc_gemm_16_transposed", 16),
        };
        let several = record.transposed == 0 && !self.is_one_wave(&[tensor]);
        let (module, shape) = if record.synthesis >= synthesis::LINEAR {
            (self.for_transforms()?, TRANSFORM)
        } else if several {
            (&self.for_products, PRODUCT)
        } else {
            (&self.for_decoding, DECODE)
        };
        let sharing = if several { SHARING } else { 1 };
        let together = self.chunks_together(tensor, shape, kept, sharing);
        let launch = self.launch(module, shape, name, &[tensor], product_warp_bytes(kept, together))?;
        Ok(Product { launch, record, together: together as u32, batch })
    }

    /// The kernels for transforms, which few containers need.
    pub(crate) fn for_transforms(&self) -> Result<&Module> {
        if let Some(module) = self.for_transforms.get() {
            return Ok(module);
        }
        CurrentContext::set_current(&self.context).to("enter the context")?;
        let module = load(self.kernels.transforms, TRANSFORM)?;
        Ok(self.for_transforms.get_or_init(|| module))
    }

    /// Whether all items of some tensors are at work at once with one block a multiprocessor.
    fn is_one_wave(&self, tensors: &[usize]) -> bool {
        let items: usize = tensors.iter().map(|&tensor| self.image.items_of(tensor).len()).sum();
        items <= ONE_WAVE_WARPS * self.multiprocessors
    }

    /// The most warps of a block.
    fn most_warps(&self, tensors: &[usize], shape: Shape) -> usize {
        let usual = if self.is_one_wave(tensors) { ONE_WAVE_WARPS } else { shape.warps };
        self.warps.unwrap_or(usual).min(shape.most_warps())
    }

    /// The most chunks whose sums have room in shared memory, if `sharing` blocks are to share a multiprocessor, or as many as can.
    fn chunks_together(&self, tensor: usize, shape: Shape, kept: usize, sharing: usize) -> usize {
        let (tables, warps) = (self.image.table_bytes(tensor), self.most_warps(&[tensor], shape));
        let blocks = |together| {
            let bytes = tables + warps * (AHEAD_BYTES + product_warp_bytes(kept, together));
            (self.shared_of_multiprocessor / (bytes + RESERVED)).min(sharing)
        };
        let most = blocks(1).max(1);
        [16, 8, 4, 2].into_iter().find(|&together| blocks(together) >= most).unwrap_or(1)
    }

    fn must_have(&self, tensor: usize) -> Result<()> {
        if tensor < self.image.tensors().len() {
            Ok(())
        } else {
            Err(Error::Usage(format!("there is no tensor {tensor}")))
        }
    }

    /// A kernel of a module with at most so many warps a block, unless all work is one wave or it was said otherwise.
    fn launch<'d>(
        &'d self,
        module: &'d Module,
        shape: Shape,
        kernel: &'static str,
        tensors: &[usize],
        shared_per_warp: usize,
    ) -> Result<Launch<'d>> {
        CurrentContext::set_current(&self.context).to("enter the context")?;
        let most_warps = self.most_warps(tensors, shape);
        let tables = tensors.iter().map(|&tensor| self.image.table_bytes(tensor)).max().unwrap_or(0);
        let per_warp = AHEAD_BYTES + shared_per_warp;
        let warps = (self.most_shared.saturating_sub(tables) / per_warp).min(most_warps);
        if warps == 0 {
            return Err(Error::Usage(format!(
                "tables of {tables} bytes do not fit the device's shared memory"
            )));
        }
        let function = module.get_function(kernel).to("find a kernel")?;
        let shared = tables + warps * per_warp;
        // All launches of a kernel share this: it must not fall again.
        allow_shared(&function, self.most_shared)?;
        let launch = Launch {
            decoder: self,
            function,
            tensors: tensors.to_vec(),
            warps,
            shared: shared as u32,
            status: DeviceBuffer::zeroed(self.image.items().max(1)).to("take memory on the device")?,
        };
        arrive()?;
        Ok(launch)
    }
}

/// Kernels with the registers of a shape.
fn load(ptx: &str, shape: Shape) -> Result<Module> {
    Module::from_ptx(ptx, &[ModuleJitOption::MaxRegisters(shape.registers)]).to("load the kernels")
}

fn upload(image: &Image) -> Result<DeviceBuffer<u8>> {
    let on_device = DeviceBuffer::from_slice(image.bytes()).to("copy the image to the device")?;
    arrive()?;
    Ok(on_device)
}

/// Waits for what was copied to the device or set there: the driver's calls may return before that, and the caller's stream need not wait for it.
pub(crate) fn arrive() -> Result<()> {
    // SAFETY: null is the default stream, on which such calls work.
    let result = unsafe { sys::cuStreamSynchronize(std::ptr::null_mut()) };
    done(result, "finish copying to the device")
}

fn most_shared(device: &Device) -> Result<usize> {
    // Not among cust's attributes: CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN.
    let mut bytes = 0;
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    // SAFETY: writes one integer.
    let result = unsafe { sys::cuDeviceGetAttribute(&raw mut bytes, attribute, device.as_raw()) };
    done(result, "tell how much shared memory there is")?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

pub(crate) fn allow_shared(function: &Function<'_>, bytes: usize) -> Result<()> {
    let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: sets a number of a function that lives.
    let result = unsafe { sys::cuFuncSetAttribute(function.to_raw(), attribute, bytes as i32) };
    done(result, "reserve shared memory")
}

/// The outcome of a call that cust has no name for.
pub(crate) fn done(result: sys::CUresult, what: &'static str) -> Result<()> {
    if result == sys::CUresult::CUDA_SUCCESS {
        Ok(())
    } else {
        Err(Error::Refused { what, code: result as u32 })
    }
}

/// A kernel, with the items that it is to decode.
struct Launch<'d> {
    decoder: &'d Decoder,
    function: Function<'d>,
    tensors: Vec<usize>,
    /// Of a block.
    warps: usize,
    shared: u32,
    status: DeviceBuffer<u32>,
}

impl Launch<'_> {
    /// Threads of a block.
    fn threads(&self) -> u32 {
        (self.warps * LANES) as u32
    }

    fn check(&self, stream: &Stream) -> Result<()> {
        let status = self.status(stream)?;
        for &tensor in &self.tensors {
            let image = &self.decoder.image;
            let codes = &status[image.items_of(tensor)];
            if let Some(source) = codes.iter().find_map(|&code| crate::oracle::error_of(code)) {
                return Err(Error::Tile { tensor: image.tensors()[tensor].name.clone(), source });
            }
        }
        Ok(())
    }

    fn status(&self, stream: &Stream) -> Result<Vec<u32>> {
        stream.synchronize().to("finish the work")?;
        let mut status = vec![0; self.status.len()];
        self.status.copy_to(&mut status).to("copy the status from the device")?;
        Ok(status)
    }
}

/// Tensors that can be decoded, again and again.
pub struct Plan<'d> {
    launch: Launch<'d>,
    dtype: DType,
    grid: u32,
    blocks: DeviceBuffer<u32>,
    outputs: DeviceBuffer<u64>,
}

impl Plan<'_> {
    /// Decodes, asynchronously on a stream.
    ///
    /// # Errors
    /// What the driver says. What is wrong with tiles, [`check`](Self::check) tells.
    ///
    /// # Safety
    /// The outputs are memory of the decoder's device, each as long as its tensor, at a multiple of the type's size, and nobody else uses them until the stream
    /// has come past this. The plan lives as long. The stream is of the decoder's context.
    pub unsafe fn decode(&self, stream: &Stream) -> Result<()> {
        let Launch { decoder, function, shared, status, .. } = &self.launch;
        let Self { grid, blocks, outputs, .. } = self;
        let (threads, dtype) = (self.launch.threads(), u32::from(self.dtype.code()));
        if *grid == 0 {
            return Ok(()); // no weights, and the driver refuses an empty grid
        }
        // SAFETY: by the caller; the arguments are the kernel's.
        unsafe {
            cust::launch!(function<<<*grid, threads, *shared, stream>>>(
                decoder.on_device.as_device_ptr(),
                blocks.as_device_ptr(),
                outputs.as_device_ptr(),
                dtype,
                status.as_device_ptr()
            ))
        }
        .to("launch a kernel")
    }

    /// Waits for the stream, and looks what became of every item.
    ///
    /// # Errors
    /// [`Error::Tile`] for the first damaged tile: all others are decoded.
    pub fn check(&self, stream: &Stream) -> Result<()> {
        self.launch.check(stream)
    }

    /// Waits for the stream. Error codes by the image's items, 0 for those that are good.
    ///
    /// # Errors
    /// What the driver says.
    pub fn status(&self, stream: &Stream) -> Result<Vec<u32>> {
        self.launch.status(stream)
    }
}

/// A record as an argument of a kernel.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Argument(TensorRecord);

// SAFETY: plain words without pointers.
unsafe impl DeviceCopy for Argument {}

/// A matrix that can be multiplied with, again and again.
pub struct Product<'d> {
    launch: Launch<'d>,
    record: TensorRecord,
    /// Chunks whose sums a block adds up at a time.
    together: u32,
    batch: usize,
}

impl Product<'_> {
    /// [out, in].
    pub const fn shape(&self) -> [usize; 2] {
        [self.record.out as usize, self.record.input as usize]
    }

    /// Adds x W^T to `y`, asynchronously on a stream: `x` [batch, in] as F16, `y` [batch, out] as F32. In which order an element's terms are added is not
    /// fixed. From compute capability 9.0 on the kernel may begin before the one ahead of it in the stream has ended; it waits for its end before it reads `x` or writes.
    ///
    /// # Errors
    /// What the driver says. What is wrong with tiles, [`check`](Self::check) tells.
    ///
    /// # Safety
    /// `x` and `y` are memory of the decoder's device of those lengths, and nobody else uses `y`, or writes `x`, until the stream has come past this. The
    /// product lives as long. The stream is of the decoder's context.
    pub unsafe fn add(&self, stream: &Stream, x: DevicePointer<u16>, y: DevicePointer<f32>) -> Result<()> {
        let Launch { decoder, function, warps, shared, status, .. } = &self.launch;
        let (tensor, wide) = (self.record, *warps as u32);
        let (grid, threads, tensor) = (tensor.blocks(wide), self.launch.threads(), Argument(tensor));
        if grid == 0 {
            return Ok(());
        }
        let (image, status) = (decoder.on_device.as_device_ptr(), status.as_device_ptr());
        let (together, batch) = (self.together, self.batch as u32);
        let config = Config { grid, threads, shared: *shared };
        // SAFETY: by the caller; the arguments are the kernel's, which waits before it reads x and before it writes.
        unsafe {
            decoder.early.launch(
                function,
                config,
                stream,
                &mut [
                    argument(&image),
                    argument(&tensor),
                    argument(&wide),
                    argument(&together),
                    argument(&x),
                    argument(&batch),
                    argument(&y),
                    argument(&status),
                ],
            )
        }
    }

    /// As [`Plan::check`].
    ///
    /// # Errors
    /// As there.
    pub fn check(&self, stream: &Stream) -> Result<()> {
        self.launch.check(stream)
    }
}
