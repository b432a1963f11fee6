//! Moves of bits that the compiler must see through.

/// Byte `number` of four. `number` is below 4.
#[inline(always)]
pub fn byte(word: u32, number: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::device::intrinsics::prmt(word, 0, 0x4440 | number);
    #[cfg(not(target_arch = "nvptx64"))]
    return word >> (8 * number) & 0xFF;
}

/// Byte `NUMBER` of four as a signed number.
#[inline(always)]
pub fn signed_byte<const NUMBER: u32>(word: u32) -> i32 {
    // A selector with its bit 3 set gives a byte's sign, eight times.
    #[cfg(target_arch = "nvptx64")]
    return crate::device::intrinsics::prmt(word, 0, 0x8880 | 0x1111 * NUMBER).cast_signed();
    #[cfg(not(target_arch = "nvptx64"))]
    return i32::from((word >> (8 * NUMBER)) as i8);
}

/// A word shifted up by 1 to 31 bits, with the highest bits of the word before behind it.
#[inline(always)]
pub fn delayed(word: u32, before: u32, bits: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    return crate::device::intrinsics::funnel_shift(before, word, bits);
    #[cfg(not(target_arch = "nvptx64"))]
    return word << bits | before >> (32 - bits);
}
