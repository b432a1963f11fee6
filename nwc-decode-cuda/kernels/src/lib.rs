//! The GPU kernels of the NWC decoder.
//!
//! Built for `nvptx64-nvidia-cuda` this is the PTX in `nwc-decode-cuda/ptx`; built for the host it is the layout of an [image](layout) and the code of a
//! [lane], the very same that threads of the GPU run.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(
        abi_ptx,
        asm_experimental_arch,
        core_intrinsics,
        gpu_intrinsics,
        gpu_launch_sized_workgroup_mem,
        stdarch_nvptx
    )
)]
#![cfg_attr(target_arch = "nvptx64", allow(internal_features))]

pub mod lane;
pub mod layout;
pub mod network;
mod num;

#[cfg(target_arch = "nvptx64")]
mod device;
