//! A plugin for QEMU's user mode that counts the instructions a program executes and prints the number when it ends.
//!
//! Built by `cargo xtask record instructions` with rustc alone. The functions are QEMU's (plugin interface 1, QEMU 4.2 and later); the
//! emulator that loads the plugin has them.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::addr_of_mut;

/// The version of the interface, which QEMU looks for.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 1;

/// Instructions so far. Programs with one thread only are counted.
static mut COUNT: u64 = 0;

/// QEMU_PLUGIN_INLINE_ADD_U64
const ADD_U64: c_int = 0;

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: extern "C" fn(u64, *mut c_void));
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_register_vcpu_tb_exec_inline(block: *mut c_void, op: c_int, place: *mut c_void, value: u64);
    fn qemu_plugin_register_atexit_cb(id: u64, callback: extern "C" fn(u64, *mut c_void), data: *mut c_void);
}

extern "C" fn translated(_: u64, block: *mut c_void) {
    // SAFETY: QEMU gives a block that is valid during the call, and adds to the counter while the plugin is loaded.
    unsafe {
        let instructions = qemu_plugin_tb_n_insns(block) as u64;
        qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, addr_of_mut!(COUNT).cast(), instructions);
    }
}

extern "C" fn ended(_: u64, _: *mut c_void) {
    // SAFETY: the program has ended, nothing is added any more.
    eprintln!("instructions: {}", unsafe { *addr_of_mut!(COUNT) });
}

/// QEMU's way in.
#[unsafe(no_mangle)]
pub extern "C" fn qemu_plugin_install(id: u64, _: *const c_void, _: c_int, _: *mut *mut c_char) -> c_uint {
    // SAFETY: the identifier is the one that QEMU gave; no data is needed.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        qemu_plugin_register_atexit_cb(id, ended, std::ptr::null_mut());
    }
    0
}
