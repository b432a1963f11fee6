//! Measures the stack by painting it.

use core::arch::asm;
use core::ptr;

unsafe extern "C" {
    /// Where the stack begins, from the runtime's linker script; it grows down from here.
    static _stack_start: u32;
}

const PAINT: u32 = 0xC0DE_57AC;
/// How much is painted below the stack pointer. A deeper stack would be reported as this deep.
const PAINTED_WORDS: usize = 16 * 1024;

/// Paints the free stack, does `work`, and gives the bytes from the stack's beginning to the lowest word that it touched, and its result.
#[inline(never)]
pub fn peak<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let top: *mut u32;
    // SAFETY: reads the stack pointer, nothing else.
    unsafe { asm!("mov {}, sp", out(reg) top, options(nomem, nostack, preserves_flags)) };
    let bottom = top.wrapping_sub(PAINTED_WORDS);
    for word in 0..PAINTED_WORDS {
        // SAFETY: below the stack pointer of this function, which calls nothing here; no interrupt is enabled. The statics are at the other
        // end of the board's 4 MB.
        unsafe { ptr::write_volatile(bottom.wrapping_add(word), PAINT) };
    }
    let result = call(work);
    // SAFETY: as above; what `work` left there is words like any others.
    let untouched = (0..PAINTED_WORDS)
        .take_while(|&word| unsafe { ptr::read_volatile(bottom.wrapping_add(word)) } == PAINT)
        .count();
    ((&raw const _stack_start).addr() - bottom.addr() - untouched * size_of::<u32>(), result)
}

/// Keeps the frame of what is measured below the painter's.
#[inline(never)]
fn call<T>(work: impl FnOnce() -> T) -> T {
    work()
}
