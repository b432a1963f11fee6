//! Counts instructions with the `SysTick` timer, for an emulator that ties its clock to the instructions it runs.
//!
//! Under `qemu-system-arm -icount shift=0` one instruction takes one nanosecond of virtual time. The board's clock, which `SysTick`
//! counts, runs at 25 MHz: a tick is 40 instructions. Instructions that a condition turned off count as well, as on a Cortex-M, where
//! they take their cycle.

use core::arch::asm;
use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;

const INSTRUCTIONS_PER_TICK: u32 = 40;
const TICKS: u32 = 1 << 24;

/// A running counter. What is measured at a time must be shorter than 2^24 ticks.
pub struct Meter {
    timer: SYST,
}

impl Meter {
    pub fn start(mut timer: SYST) -> Self {
        timer.set_clock_source(SystClkSource::Core);
        timer.set_reload(TICKS - 1);
        timer.clear_current();
        timer.enable_counter();
        Self { timer }
    }

    /// The instructions that `work` takes, to the nearest tick, and what it gives.
    #[inline]
    pub fn count<T>(&mut self, work: impl FnOnce() -> T) -> (u32, T) {
        let _ = self.timer.has_wrapped(); // reading it clears it
        let before = SYST::get_current();
        let result = work();
        let after = SYST::get_current(); // counts down
        (before.wrapping_sub(after) % TICKS * INSTRUCTIONS_PER_TICK, result)
    }

    /// Counts a loop of two million instructions: what comes out is the scale of everything else.
    pub fn calibrate(&mut self) -> u32 {
        let (instructions, ()) = self.count(|| {
            // SAFETY: the two instructions change one register, which is declared, and the flags, which are by default.
            unsafe {
                asm!("2:", "subs {n}, #1", "bne 2b", n = inout(reg) 1_000_000 => _, options(nomem, nostack));
            }
        });
        instructions
    }
}
