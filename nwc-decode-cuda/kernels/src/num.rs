//! Conversions that the compiler must see through.

/// The low byte, as a signed number.
#[inline(always)]
pub const fn low_i8(word: u32) -> i8 {
    word as i8
}

/// The low 16 bits, as a signed number.
#[inline(always)]
pub const fn sign_extend_16(word: u32) -> i32 {
    word as u16 as i16 as i32
}

/// Byte `number` of four, in the low bits; what the others hold does not matter. `number` is below 4.
#[inline(always)]
pub fn byte_of(bytes: u32, number: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::device::intrinsics::prmt(bytes, bytes, number);
    #[cfg(not(target_arch = "nvptx64"))]
    return bytes >> (8 * number);
}

/// Bits of `one` where the mask has ones, of `other` elsewhere.
#[inline(always)]
pub fn select(mask: u32, one: u32, other: u32) -> u32 {
    // The compiler takes this apart, and the assembler does not put it together again.
    #[cfg(target_arch = "nvptx64")]
    return crate::device::intrinsics::lop3::<0xCA>(mask, one, other);
    #[cfg(not(target_arch = "nvptx64"))]
    return (one & mask) | (other & !mask);
}

/// `(a ^ b) & mask`.
#[inline(always)]
pub fn xor_and(a: u32, b: u32, mask: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::device::intrinsics::lop3::<0x28>(a, b, mask);
    #[cfg(not(target_arch = "nvptx64"))]
    return (a ^ b) & mask;
}
