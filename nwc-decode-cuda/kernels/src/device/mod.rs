//! What only exists on the GPU.

mod block;
mod decode;
mod functions;
mod gemm;
pub(crate) mod intrinsics;
mod item;
mod network;
mod residual;
mod ring;
mod view;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: `trap` takes nothing and does not return.
    unsafe { core::arch::asm!("trap;", options(noreturn, nomem, nostack)) }
}
