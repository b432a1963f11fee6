//! What only exists on the GPU.

use core::arch::{asm, nvptx::_thread_idx_x};
use core::intrinsics::gpu::gpu_launch_sized_workgroup_mem;
use nwc_decode_core::{Crc32, scale};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: `trap` takes nothing and does not return.
    unsafe { asm!("trap;", options(noreturn, nomem, nostack)) }
}

/// The sum of two numbers, wrapping.
#[unsafe(no_mangle)]
pub extern "C" fn nwc_probe_add(a: u32, b: u32) -> u32 {
    a.wrapping_add(b)
}

/// Writes something of each kind for each thread of one block.
///
/// # Safety
/// `out` must have one element for each of at most 32 threads, and the launch 4 bytes of shared memory for each.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn nwc_probe(out: *mut u32) {
    // SAFETY: reads a register.
    let thread = unsafe { _thread_idx_x() };
    let shared = gpu_launch_sized_workgroup_mem::<u32>();
    // SAFETY: the caller gives 4 bytes of shared memory for each thread.
    unsafe { shared.add(thread as usize).write(thread) };
    let (address, loaded): (u64, u32);
    // SAFETY: a generic address of shared memory made into one of shared memory, and what was just written there.
    unsafe {
        asm!("cvta.to.shared.u64 {}, {};", out(reg64) address, in(reg64) shared.add(thread as usize));
        asm!("ld.shared.u32 {}, [{}];", out(reg32) loaded, in(reg64) address);
    }
    let (a, b) = ([0x3C00_3C00u32 ^ loaded; 4], [0x3C00_3C00u32; 2]);
    let [mut d0, mut d1, mut d2, mut d3] = [0f32; 4];
    // SAFETY: registers only; all 32 lanes of the warp are here.
    unsafe {
        asm!(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{d0},{d1},{d2},{d3}}}, {{{a0},{a1},{a2},{a3}}}, {{{b0},{b1}}}, {{{d0},{d1},{d2},{d3}}};",
            d0 = inout(reg32) d0, d1 = inout(reg32) d1, d2 = inout(reg32) d2, d3 = inout(reg32) d3,
            a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
            b0 = in(reg32) b[0], b1 = in(reg32) b[1],
        );
    }
    let step = scale(thread.cast_signed()).unwrap_or(0.0).to_bits();
    let mut crc = Crc32::new();
    crc.update(&loaded.to_le_bytes());
    let sum = nwc_probe_add(step, crc.value() ^ (d0 + d1 + d2 + d3).to_bits());
    // SAFETY: the caller gives an element for each thread.
    unsafe { out.add(thread as usize).write(sum) };
}

/// A word of the block's shared memory.
///
/// # Safety
/// The launch must have given that much.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nwc_probe_shared(index: u32) -> u32 {
    // SAFETY: the caller's duty.
    unsafe { gpu_launch_sized_workgroup_mem::<u32>().add(index as usize).read() }
}
