//! A program that is linked and never run needs a way in, nothing else.

fn main() {
    println!("cargo:rustc-link-arg-bins=--entry=_start");
}
