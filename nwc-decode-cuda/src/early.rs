//! Launching kernels that begin before the one ahead of them in their stream has ended.
//!
//! A kernel's first microseconds go to copies of tables and records, which depend on nothing; they are hidden if it may begin where the one before leaves room, and
//! waits for its end only then (CUDA's programmatic dependent launch). `cust` and its bindings are older than that, so that the driver is asked for the call by its name.

use std::ffi::{c_int, c_uint, c_void};
use std::mem::{offset_of, transmute};
use std::ptr;

use cust::function::Function;
use cust::stream::Stream;
use cust::sys;

use crate::launcher::{Result, done};

/// `cuLaunchKernelEx`.
type LaunchKernelEx = unsafe extern "C" fn(
    *const LaunchConfig,
    sys::CUfunction,
    *mut *mut c_void,
    *mut *mut c_void,
) -> sys::CUresult;

/// `CUlaunchConfig`.
#[repr(C)]
struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: sys::CUstream,
    attributes: *const LaunchAttribute,
    attribute_count: c_uint,
}

/// `CUlaunchAttribute`: its value is a union of 64 bytes, at a multiple of 8.
#[repr(C, align(8))]
struct LaunchAttribute {
    id: c_uint,
    padding: c_uint,
    value: [c_int; 16],
}

const _: () = assert!(size_of::<LaunchConfig>() == 56 && offset_of!(LaunchConfig, attributes) == 40);
const _: () = assert!(size_of::<LaunchAttribute>() == 72);

/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
const PROGRAMMATIC_STREAM_SERIALIZATION: c_uint = 6;
/// The first version that has the call.
const CUDA: c_int = 11_080;

/// How many threads are launched, along one dimension, and the bytes of shared memory of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    pub(crate) grid: u32,
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

/// An argument of a kernel.
pub(crate) fn argument<T>(value: &T) -> *mut c_void {
    ptr::from_ref(value).cast_mut().cast()
}

/// Launches kernels early where driver and device can.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Early(Option<LaunchKernelEx>);

impl Early {
    /// For devices of this major compute capability: from 9 on there is something to gain.
    pub(crate) fn of_driver(major: i32) -> Self {
        let mut address = ptr::null_mut();
        let name = c"cuLaunchKernelEx";
        // SAFETY: the name ends; writes one address.
        let result = unsafe { sys::cuGetProcAddress(name.as_ptr(), &raw mut address, CUDA, 0) };
        if major < 9 || result != sys::CUresult::CUDA_SUCCESS || address.is_null() {
            return Self(None);
        }
        // SAFETY: the driver has found the call, which has this type.
        Self(Some(unsafe { transmute::<*mut c_void, LaunchKernelEx>(address) }))
    }

    /// Launches a kernel, early if possible.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// The arguments are the kernel's. The kernel waits for those ahead of it before it reads or writes what they might write or read.
    pub(crate) unsafe fn launch(
        self,
        function: &Function<'_>,
        Config { grid, threads, shared }: Config,
        stream: &Stream,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let (function, stream, arguments) = (function.to_raw(), stream.as_inner(), arguments.as_mut_ptr());
        let none = ptr::null_mut();
        // SAFETY: by the caller; the attribute lives until the call has returned.
        let result = unsafe {
            if let Some(launch) = self.0 {
                let mut value = [0; 16];
                value[0] = 1;
                let attribute = LaunchAttribute { id: PROGRAMMATIC_STREAM_SERIALIZATION, padding: 0, value };
                let config = LaunchConfig {
                    grid: [grid, 1, 1],
                    block: [threads, 1, 1],
                    shared_bytes: shared,
                    stream,
                    attributes: &raw const attribute,
                    attribute_count: 1,
                };
                launch(&raw const config, function, arguments, none)
            } else {
                sys::cuLaunchKernel(function, grid, 1, 1, threads, 1, 1, shared, stream, arguments, none)
            }
        };
        done(result, "launch a kernel")
    }
}
