//! The kernels as PTX, which the driver translates for the device.

/// For devices of compute capability 8.0 and above.
pub const SM_80: &str = include_str!("../ptx/nwc_decode_sm_80.ptx");
/// For devices of compute capability 9.0 and above.
pub const SM_90: &str = include_str!("../ptx/nwc_decode_sm_90.ptx");

/// The best for a device of this compute capability; `None` if there is none.
pub fn for_capability(major: i32, _minor: i32) -> Option<&'static str> {
    match major {
        ..8 => None,
        8 => Some(SM_80),
        _ => Some(SM_90),
    }
}
