//! The kernels as PTX, which the driver translates for the device.

/// Kernels for one generation of devices.
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    /// For tensors without a transform.
    pub plain: &'static str,
    /// For all, those with transforms among them.
    pub transforms: &'static str,
}

/// For devices of compute capability 8.0 and above.
pub const SM_80: Kernels = Kernels {
    plain: include_str!("../ptx/nwc_decode_sm_80.ptx"),
    transforms: include_str!("../ptx/nwc_transforms_sm_80.ptx"),
};
/// For devices of compute capability 9.0 and above.
pub const SM_90: Kernels = Kernels {
    plain: include_str!("../ptx/nwc_decode_sm_90.ptx"),
    transforms: include_str!("../ptx/nwc_transforms_sm_90.ptx"),
};

/// The best for a device of this compute capability; `None` if there is none.
pub fn for_capability(major: i32, _minor: i32) -> Option<Kernels> {
    match major {
        ..8 => None,
        8 => Some(SM_80),
        _ => Some(SM_90),
    }
}
