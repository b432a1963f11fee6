//! Checked reading of bytes and bits (§1).

/// Reads little-endian fields from the front of a slice. Every method is `None` when the bytes run out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A varint (§1.2).
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7F).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return (byte != 0 || shift == 0).then_some(value);
            }
        }
        None // a tenth byte could only hold bits from 2^63 up
    }

    /// A varint that must fit a usize.
    pub(crate) fn varint_usize(&mut self) -> Option<usize> {
        usize::try_from(self.varint()?).ok()
    }

    /// A zigzag varint (§1.3).
    pub(crate) fn zigzag(&mut self) -> Option<i64> {
        self.varint().map(unzigzag)
    }
}

/// Undoes the zigzag map (§1.3).
pub(crate) fn unzigzag(n: u64) -> i64 {
    (n >> 1).cast_signed() ^ (n & 1).cast_signed().wrapping_neg()
}

/// Reads a bit string from its lowest bit upwards (§1.5).
#[derive(Debug, Clone, Copy)]
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> BitReader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    fn bit(&mut self) -> Option<u32> {
        let byte = *self.bytes.get(self.position >> 3)?;
        let bit = u32::from(byte >> (self.position & 7)) & 1;
        self.position = self.position.wrapping_add(1);
        Some(bit)
    }

    /// `n` bits, at most 32, the lowest first.
    pub(crate) fn bits(&mut self, n: u32) -> Option<u32> {
        let mut value = 0;
        for place in 0..n {
            value |= self.bit()?.checked_shl(place)?;
        }
        Some(value)
    }

    /// A Rice code with parameter `k` (at most 7).
    pub(crate) fn rice(&mut self, k: u32) -> Option<u32> {
        let mut quotient = 0u32;
        while self.bit()? == 1 {
            quotient = quotient.wrapping_add(1);
            if quotient > 1023 {
                return None;
            }
        }
        Some(quotient.checked_shl(k)? | self.bits(k)?)
    }

    /// True when only zero bits of the last started byte are left.
    pub(crate) fn at_end(mut self) -> bool {
        if self.position.div_ceil(8) != self.bytes.len() {
            return false;
        }
        while self.position & 7 != 0 {
            if self.bit() != Some(0) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_canonical_and_bounded() {
        let read = |bytes: &[u8]| Reader::new(bytes).varint();
        assert_eq!(read(&[0]), Some(0));
        assert_eq!(read(&[0x7F]), Some(127));
        assert_eq!(read(&[0x80, 0x01]), Some(128));
        assert_eq!(read(&[0xFF; 8]), None);
        assert_eq!(read(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]), Some((1 << 63) - 1));
        assert_eq!(read(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]), None);
        assert_eq!(read(&[0x80, 0x00]), None, "overlong");
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn zigzag_alternates() {
        for (n, v) in [(0, 0), (1, -1), (2, 1), (3, -2), (u64::MAX, i64::MIN)] {
            assert_eq!(unzigzag(n), v);
        }
    }

    #[test]
    fn rice_codes_read_ones_zero_and_low_bits() {
        // 0b_01_0_11: quotient 2, then k = 2 bits 0b01 -> 2 * 4 + 1
        let mut bits = BitReader::new(&[0b0000_1011]);
        assert_eq!(bits.rice(2), Some(9));
        assert!(bits.at_end());
        assert_eq!(BitReader::new(&[0xFF; 200]).rice(0), None, "run of ones is bounded");
        assert_eq!(BitReader::new(&[0xFF]).rice(0), None, "bytes run out");
    }
}
