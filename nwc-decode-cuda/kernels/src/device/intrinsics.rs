//! What PTX has and Rust has no name for. Addresses of shared memory are 32 bits wide.

use core::arch::asm;
use core::arch::nvptx::{_block_dim_x, _block_idx_x, _thread_idx_x};
use core::intrinsics::gpu::gpu_launch_sized_workgroup_mem;

/// Number of this thread in its block.
#[inline(always)]
pub(crate) fn thread() -> u32 {
    // SAFETY: reads a register.
    unsafe { _thread_idx_x() }
}

/// Threads of a block.
#[inline(always)]
pub(crate) fn threads() -> u32 {
    // SAFETY: reads a register.
    unsafe { _block_dim_x() }
}

/// Number of this block.
#[inline(always)]
pub(crate) fn block() -> u32 {
    // SAFETY: reads a register.
    unsafe { _block_idx_x() }
}

/// Number of this thread in its warp.
#[inline(always)]
pub(crate) fn lane() -> u32 {
    let lane: u32;
    // SAFETY: reads a register.
    unsafe { asm!("mov.u32 {}, %laneid;", out(reg32) lane, options(pure, nomem, nostack)) };
    lane
}

/// What shared memory is aligned to: that of rings, which find their places by masks.
#[repr(align(128))]
struct Aligned;

/// Address of the block's shared memory.
#[inline(always)]
pub(crate) fn shared_base() -> u32 {
    shared(gpu_launch_sized_workgroup_mem::<Aligned>().cast())
}

/// The address in shared memory that a pointer into it stands for.
#[inline(always)]
pub(crate) fn shared(generic: *const u8) -> u32 {
    let address: u64;
    // SAFETY: registers only.
    unsafe {
        asm!("cvta.to.shared.u64 {}, {};", out(reg64) address, in(reg64) generic, options(pure, nomem, nostack));
    }
    address as u32
}

/// Waits for all threads of the block; what they wrote is then seen by all.
#[inline(always)]
pub(crate) fn sync_block() {
    // SAFETY: every caller is reached by all threads of its block.
    unsafe { asm!("bar.sync 0;") }
}

/// Waits for all threads of the warp; what they wrote is then seen by all of it.
#[inline(always)]
pub(crate) fn sync_warp() {
    // SAFETY: every caller is reached by all threads of its warp.
    unsafe { asm!("bar.warp.sync 0xffffffff;") }
}

/// Lets the next kernel of the stream begin, if it was launched so that it may, where this one leaves room: it has a [`wait_for_previous`] to come.
#[inline(always)]
pub(crate) fn let_next_begin() {
    #[cfg(nwc_sm_90)]
    // SAFETY: touches nothing.
    unsafe {
        asm!("griddepcontrol.launch_dependents;", options(nostack))
    };
}

/// Waits until the kernels ahead in the stream have ended; what they wrote is then seen. Before that only what no kernel writes may be read.
#[inline(always)]
pub(crate) fn wait_for_previous() {
    #[cfg(nwc_sm_90)]
    // SAFETY: only waits.
    unsafe {
        asm!("griddepcontrol.wait;", options(nostack))
    };
}

/// Which of the warp's threads have `value`.
#[inline(always)]
pub(crate) fn ballot(value: bool) -> u32 {
    let mask: u32;
    // SAFETY: every caller is reached by all threads of its warp.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.ne.u32 p, {value}, 0; vote.sync.ballot.b32 {mask}, p, 0xffffffff; }}",
            value = in(reg32) u32::from(value), mask = out(reg32) mask, options(nomem, nostack)
        );
    }
    mask
}

/// The value of another thread of the warp.
#[inline(always)]
pub(crate) fn shuffle(value: u32, from: u32) -> u32 {
    let out: u32;
    // SAFETY: every caller is reached by all threads of its warp.
    unsafe {
        asm!("shfl.sync.idx.b32 {}, {}, {}, 31, 0xffffffff;", out(reg32) out, in(reg32) value, in(reg32) from,
            options(nomem, nostack));
    }
    out
}

/// Bytes of two words by number, four bits each.
#[inline(always)]
pub(crate) fn prmt(low: u32, high: u32, selector: u32) -> u32 {
    let out: u32;
    // SAFETY: registers only.
    unsafe {
        asm!("prmt.b32 {}, {}, {}, {};", out(reg32) out, in(reg32) low, in(reg32) high, in(reg32) selector,
            options(pure, nomem, nostack));
    }
    out
}

/// Loads a word of shared memory.
///
/// # Safety
/// The address is a multiple of 4 within the block's shared memory.
#[inline(always)]
pub(crate) unsafe fn load_shared(address: u32) -> u32 {
    let value: u32;
    // SAFETY: by the caller.
    unsafe {
        asm!("ld.shared.u32 {}, [{}];", out(reg32) value, in(reg32) address, options(readonly, nostack));
    }
    value
}

/// Stores four words to shared memory.
///
/// # Safety
/// The address is a multiple of 16 within the block's shared memory.
#[inline(always)]
pub(crate) unsafe fn store_shared_4(address: u32, [a, b, c, d]: [u32; 4]) {
    // SAFETY: by the caller.
    unsafe {
        asm!("st.shared.v4.u32 [{}], {{{}, {}, {}, {}}};", in(reg32) address, in(reg32) a, in(reg32) b, in(reg32) c,
            in(reg32) d, options(nostack));
    }
}

/// Stores two floats to shared memory.
///
/// # Safety
/// The address is a multiple of 8 within the block's shared memory.
#[inline(always)]
pub(crate) unsafe fn store_shared_2(address: u32, [a, b]: [f32; 2]) {
    // SAFETY: by the caller.
    unsafe {
        asm!("st.shared.v2.f32 [{}], {{{}, {}}};", in(reg32) address, in(reg32) a, in(reg32) b, options(nostack));
    }
}

/// Stores a float to shared memory.
///
/// # Safety
/// The address is a multiple of 4 within the block's shared memory.
#[inline(always)]
pub(crate) unsafe fn store_shared_f32(address: u32, value: f32) {
    // SAFETY: by the caller.
    unsafe {
        asm!("st.shared.f32 [{}], {};", in(reg32) address, in(reg32) value, options(nostack));
    }
}

/// Loads two floats from shared memory.
///
/// # Safety
/// The address is a multiple of 8 within the block's shared memory.
#[inline(always)]
pub(crate) unsafe fn load_shared_2(address: u32) -> [f32; 2] {
    let (a, b): (f32, f32);
    // SAFETY: by the caller.
    unsafe {
        asm!("ld.shared.v2.f32 {{{}, {}}}, [{}];", out(reg32) a, out(reg32) b, in(reg32) address,
            options(readonly, nostack));
    }
    [a, b]
}

/// Loads four floats from shared memory.
///
/// # Safety
/// The address is a multiple of 16 within the block's shared memory.
#[inline(always)]
pub(crate) unsafe fn load_shared_4(address: u32) -> [f32; 4] {
    let (a, b, c, d): (f32, f32, f32, f32);
    // SAFETY: by the caller.
    unsafe {
        asm!("ld.shared.v4.f32 {{{}, {}, {}, {}}}, [{}];", out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d,
            in(reg32) address, options(readonly, nostack));
    }
    [a, b, c, d]
}

/// Begins to copy 16 bytes from global to shared memory, around the level-1 cache.
///
/// # Safety
/// Both addresses are multiples of 16, within shared memory and within global memory.
#[inline(always)]
pub(crate) unsafe fn copy_async(shared: u32, global: *const u8) {
    // SAFETY: by the caller.
    unsafe {
        asm!("cp.async.cg.shared.global [{}], [{}], 16;", in(reg32) shared, in(reg64) global, options(nostack));
    }
}

/// The same for 8 bytes, at multiples of 8.
///
/// # Safety
/// Both addresses are such, within shared memory and within global memory.
#[inline(always)]
pub(crate) unsafe fn copy_group_async(shared: u32, global: *const u8) {
    // SAFETY: by the caller.
    unsafe {
        asm!("cp.async.ca.shared.global [{}], [{}], 8;", in(reg32) shared, in(reg64) global, options(nostack));
    }
}

/// The same for 4 bytes, at multiples of 4.
///
/// # Safety
/// Both addresses are such, within shared memory and within global memory.
#[inline(always)]
pub(crate) unsafe fn copy_word_async(shared: u32, global: *const u8) {
    // SAFETY: by the caller.
    unsafe {
        asm!("cp.async.ca.shared.global [{}], [{}], 4;", in(reg32) shared, in(reg64) global, options(nostack));
    }
}

/// The value, of which the compiler is to know nothing: what is computed from it is computed where it is needed, and not kept in registers.
#[inline(always)]
pub(crate) fn here(mut value: u32) -> u32 {
    // SAFETY: does nothing.
    unsafe { asm!("/* {} */", inout(reg32) value, options(nomem, nostack)) };
    value
}

/// Ends a group of this thread's copies, and waits until at most `PENDING` groups are under way.
#[inline(always)]
pub(crate) fn commit_and_wait<const PENDING: u32>() {
    // SAFETY: only waits.
    unsafe {
        asm!("cp.async.commit_group;", options(nostack));
        asm!("cp.async.wait_group {};", const PENDING, options(nostack));
    }
}

/// Four signed bytes times 2^-`unit_bits` in binary32.
#[inline(always)]
pub(crate) fn bytes_to_f32(bytes: u32, unit_bits: u32) -> [f32; 4] {
    // 2^23 and a byte is a number of binary32 with that byte at its end; with a smaller exponent the byte is worth less.
    let base = 0x4B00_0000 - (unit_bits << 23);
    let biased = bytes ^ 0x8080_8080;
    let zero = f32::from_bits(base | 0x80);
    [0x7650, 0x7651, 0x7652, 0x7653].map(|selector| f32::from_bits(prmt(biased, base, selector)) - zero)
}

/// Four signed bytes in binary16, the first two in the first word.
#[inline(always)]
pub(crate) fn bytes_to_f16(bytes: u32) -> [u32; 2] {
    // 1024 and a byte is a number of binary16 with that byte at its end.
    let biased = bytes ^ 0x8080_8080;
    [prmt(biased, 0x6464_6464, 0x4140), prmt(biased, 0x6464_6464, 0x4342)].map(|pair| {
        let out: u32;
        // SAFETY: registers only.
        unsafe {
            asm!("sub.rn.f16x2 {}, {}, {};", out(reg32) out, in(reg32) pair, in(reg32) 0x6480_6480u32,
                options(pure, nomem, nostack));
        }
        out
    })
}

/// One over the square root, to 22 bits.
#[inline(always)]
pub(crate) fn reciprocal_root(value: f32) -> f32 {
    let out: f32;
    // SAFETY: registers only.
    unsafe {
        asm!("rsqrt.approx.f32 {}, {};", out(reg32) out, in(reg32) value, options(pure, nomem, nostack))
    };
    out
}

/// The largest finite number of binary16.
pub(crate) const MOST_F16: f32 = 65504.0;
/// The largest finite number of bfloat16.
pub(crate) const MOST_BF16: f32 = f32::from_bits(0x7F7F_0000);

/// Two floats rounded to binary16.
#[inline(always)]
pub(crate) fn pack_f16(low: f32, high: f32) -> u32 {
    let out: u32;
    // SAFETY: registers only.
    unsafe {
        asm!("cvt.rn.f16x2.f32 {}, {}, {};", out(reg32) out, in(reg32) high, in(reg32) low,
            options(pure, nomem, nostack));
    }
    out
}

/// Two floats rounded to bfloat16.
#[inline(always)]
pub(crate) fn pack_bf16(low: f32, high: f32) -> u32 {
    let out: u32;
    // SAFETY: registers only.
    unsafe {
        asm!("cvt.rn.bf16x2.f32 {}, {}, {};", out(reg32) out, in(reg32) high, in(reg32) low,
            options(pure, nomem, nostack));
    }
    out
}

/// A binary16 number as a float.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let out: f32;
    // SAFETY: registers only.
    unsafe {
        asm!("cvt.f32.f16 {}, {};", out(reg32) out, in(reg16) bits, options(pure, nomem, nostack));
    }
    out
}

/// Four 8x8 matrices of 16-bit numbers from shared memory, into the registers of the warp's threads. `TRANSPOSED`: each of them the other way.
///
/// # Safety
/// Each thread's address is a row of 16 bytes at a multiple of 16.
#[inline(always)]
pub(crate) unsafe fn load_matrices<const TRANSPOSED: bool>(address: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: by the caller.
    unsafe {
        if TRANSPOSED {
            asm!("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{{}, {}, {}, {}}}, [{}];", out(reg32) a, out(reg32) b,
                out(reg32) c, out(reg32) d, in(reg32) address, options(nostack));
        } else {
            asm!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{}, {}, {}, {}}}, [{}];", out(reg32) a, out(reg32) b,
                out(reg32) c, out(reg32) d, in(reg32) address, options(nostack));
        }
    }
    [a, b, c, d]
}

/// d += A B on the tensor cores: A of [16, 16], B of [16, 8], binary16; d of [16, 8] in binary32.
#[inline(always)]
pub(crate) fn multiply_add(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
    let [d0, d1, d2, d3] = d;
    // SAFETY: registers only; every caller is reached by all threads of its warp.
    unsafe {
        asm!(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{d0}, {d1}, {d2}, {d3}}}, {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{d0}, {d1}, {d2}, {d3}}};",
            d0 = inout(reg32) *d0, d1 = inout(reg32) *d1, d2 = inout(reg32) *d2, d3 = inout(reg32) *d3,
            a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
            b0 = in(reg32) b[0], b1 = in(reg32) b[1], options(nomem, nostack)
        );
    }
}

/// Products of matrices of bytes, and their sum with one of integers, [16, 8], which is kept for other products.
macro_rules! products_of_bytes {
    ($($(#[$doc:meta])* $name:ident: $form:literal, [$($a:literal $a_at:literal),*], [$($b:literal $b_at:literal),*];)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name(
            [c0, c1, c2, c3]: [i32; 4],
            a: [u32; { [$($a_at),*].len() }],
            b: [u32; { [$($b_at),*].len() }],
        ) -> [i32; 4] {
            let (d0, d1, d2, d3): (i32, i32, i32, i32);
            // SAFETY: registers only; every caller is reached by all threads of its warp.
            unsafe {
                asm!(
                    concat!("mma.sync.aligned.", $form, " {{{}, {}, {}, {}}}, {{", $($a,)* "}}, {{", $($b,)* "}}, {{{}, {}, {}, {}}};"),
                    out(reg32) d0, out(reg32) d1, out(reg32) d2, out(reg32) d3,
                    $(in(reg32) a[$a_at],)* $(in(reg32) b[$b_at],)*
                    in(reg32) c0, in(reg32) c1, in(reg32) c2, in(reg32) c3, options(nomem, nostack)
                );
            }
            [d0, d1, d2, d3]
        }
    )*};
}

products_of_bytes! {
    /// [16, 16] and [16, 8], signed.
    multiply_add_bytes_16: "m16n8k16.row.col.s32.s8.s8.s32", ["{}" 0, ", {}" 1], ["{}" 0];
    /// [16, 32] and [32, 8], the first without signs.
    multiply_add_rows: "m16n8k32.row.col.s32.u8.s8.s32", ["{}" 0, ", {}" 1, ", {}" 2, ", {}" 3], ["{}" 0, ", {}" 1];
    /// [16, 32] and [32, 8], the second without signs.
    multiply_add_columns: "m16n8k32.row.col.s32.s8.u8.s32", ["{}" 0, ", {}" 1, ", {}" 2, ", {}" 3], ["{}" 0, ", {}" 1];
}

/// Two numbers limited to 0 .. 255, as the lower bytes of a word whose upper half is the lower half of `above`; the first is the lowest.
#[inline(always)]
pub(crate) fn pack_bytes(above: u32, [low, high]: [i32; 2]) -> u32 {
    let out: u32;
    // SAFETY: registers only.
    unsafe {
        asm!("cvt.pack.sat.u8.s32.b32 {}, {}, {}, {};", out(reg32) out, in(reg32) high, in(reg32) low, in(reg32) above,
            options(pure, nomem, nostack));
    }
    out
}

/// Adds to a float that others add to at the same time.
///
/// # Safety
/// The address is a float in global memory.
#[inline(always)]
pub(crate) unsafe fn add_global(address: *mut f32, value: f32) {
    // SAFETY: by the caller.
    unsafe {
        asm!("red.global.add.f32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack));
    }
}

/// Stores four words.
///
/// # Safety
/// They have their place there, at a multiple of 16 bytes of global memory.
#[inline(always)]
pub(crate) unsafe fn store_global_4(out: *mut u8, [a, b, c, d]: [u32; 4]) {
    // SAFETY: by the caller.
    unsafe {
        asm!("st.global.v4.u32 [{}], {{{}, {}, {}, {}}};", in(reg64) out, in(reg32) a, in(reg32) b, in(reg32) c,
            in(reg32) d, options(nostack));
    }
}

/// The high word of two words, of which `low` comes first, shifted up by up to 31 bits.
#[inline(always)]
pub(crate) fn funnel_shift(low: u32, high: u32, bits: u32) -> u32 {
    let out: u32;
    // SAFETY: registers only.
    unsafe {
        asm!("shf.l.wrap.b32 {}, {}, {}, {};", out(reg32) out, in(reg32) low, in(reg32) high, in(reg32) bits,
            options(pure, nomem, nostack));
    }
    out
}

/// A bit for each thread of the warp whose number is lower than this one's.
#[inline(always)]
pub(crate) fn lanes_below() -> u32 {
    let mask: u32;
    // SAFETY: reads a register.
    unsafe { asm!("mov.u32 {}, %lanemask_lt;", out(reg32) mask, options(pure, nomem, nostack)) };
    mask
}

/// Stores a word.
///
/// # Safety
/// It has its place there, in global memory.
#[inline(always)]
pub(crate) unsafe fn store_global(out: *mut u8, value: u32) {
    // SAFETY: by the caller.
    unsafe { asm!("st.global.u32 [{}], {};", in(reg64) out, in(reg32) value, options(nostack)) }
}

/// Stores a half word.
///
/// # Safety
/// It has its place there, in global memory.
#[inline(always)]
pub(crate) unsafe fn store_global_16(out: *mut u8, value: u16) {
    // SAFETY: by the caller.
    unsafe { asm!("st.global.u16 [{}], {};", in(reg64) out, in(reg16) value, options(nostack)) }
}
