//! CRC-32 as in IEEE 802.3 (§1.4).

use crate::num;

/// A running CRC-32. A byte at a time with a 1 KB table: small enough for firmware. Hosts with faster code can check the
/// bytes of [`Tile::stream`](crate::Tile::stream) themselves and pass [`Checks::SkipChecksums`](crate::Checks::SkipChecksums).
#[derive(Debug, Clone, Copy)]
pub struct Crc32(u32);

const TABLE: [u32; 256] = table();

#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)] // evaluated by the compiler
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0u32;
    while i < 256 {
        let mut crc = i;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[num::index(i)] = crc;
        i += 1;
    }
    table
}

impl Crc32 {
    /// The checksum of no bytes.
    pub const fn new() -> Self {
        Self(!0)
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |crc, byte| {
            let low = num::low_u8(crc) ^ byte;
            // The table has an entry for every byte.
            (crc >> 8) ^ TABLE.get(usize::from(low)).copied().unwrap_or(0)
        });
    }

    /// The checksum of all bytes so far.
    pub const fn value(self) -> u32 {
        !self.0
    }

    /// Whether this is the checksum that a file states.
    ///
    /// In builds with `--cfg nwc_no_checksums` it always is: a fuzzer cannot guess checksums, and what lies behind them would stay untried. Not
    /// a feature, which any crate of a build would switch on for all of it.
    pub(crate) const fn is(self, stated: u32) -> bool {
        cfg!(nwc_no_checksums) || self.value() == stated
    }

    /// Whether bytes have the checksum that a file states.
    pub(crate) fn fits(bytes: &[u8], stated: u32) -> bool {
        let mut crc = Self::new();
        crc.update(bytes);
        crc.is(stated)
    }

    /// The checksum of one slice.
    pub fn of(bytes: &[u8]) -> u32 {
        let mut crc = Self::new();
        crc.update(bytes);
        crc.value()
    }
}

impl Default for Crc32 {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_the_standard() {
        assert_eq!(Crc32::of(b"123456789"), 0xCBF4_3926);
        assert_eq!(Crc32::of(b""), 0);
    }
}
