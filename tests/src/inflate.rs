//! Inflates zlib streams (RFC 1950, RFC 1951), so that attachments can be checked where no library is at hand.

/// Bits, the lowest of each byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bits(&mut self, count: usize) -> Option<usize> {
        (0..count).try_fold(0, |value, place| {
            let bit = self.bytes.get(self.at / 8)? >> (self.at % 8) & 1;
            self.at += 1;
            Some(value | usize::from(bit) << place)
        })
    }
}

/// A Huffman code as (length, code, symbol).
struct Code(Vec<(usize, usize, usize)>);

impl Code {
    fn new(lengths: &[usize]) -> Self {
        let (mut codes, mut code) = (Vec::new(), 0);
        for length in 1..=15 {
            for (symbol, _) in lengths.iter().enumerate().filter(|(_, l)| **l == length) {
                codes.push((length, code, symbol));
                code += 1;
            }
            code *= 2;
        }
        Self(codes)
    }

    fn symbol(&self, bits: &mut Bits<'_>) -> Option<usize> {
        let mut code = 0;
        for length in 1..=15 {
            code = 2 * code + bits.bits(1)?;
            if let Some(found) = self.0.iter().find(|known| (known.0, known.1) == (length, code)) {
                return Some(found.2);
            }
        }
        None
    }
}

/// The content of a whole zlib stream; `None` if it is damaged, goes on after its end, or its content is longer than `most`.
pub fn zlib(stream: &[u8], most: usize) -> Option<Vec<u8>> {
    let [method, flags, body @ ..] = stream else { return None };
    let header = usize::from(*method) * 256 + usize::from(*flags);
    if method % 16 != 8 || method / 16 > 7 || header % 31 != 0 || flags & 32 != 0 {
        return None;
    }
    let mut bits = Bits { bytes: body, at: 0 };
    let mut out = Vec::new();
    loop {
        let last = bits.bits(1)? == 1;
        match bits.bits(2)? {
            0 => stored(&mut bits, &mut out)?,
            1 => {
                let lengths: Vec<usize> = (0..288)
                    .map(|symbol| match symbol {
                        144..256 => 9,
                        256..280 => 7,
                        _ => 8,
                    })
                    .collect();
                block(&mut bits, &Code::new(&lengths), &Code::new(&[5; 30]), most, &mut out)?;
            }
            2 => {
                let (literals, distances) = dynamic_codes(&mut bits)?;
                block(&mut bits, &literals, &distances, most, &mut out)?;
            }
            _ => return None,
        }
        if out.len() > most {
            return None;
        }
        if last {
            break;
        }
    }
    let (a, b) = out.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65521;
        (a, (b + a) % 65521)
    });
    (body[bits.at.div_ceil(8)..] == (b << 16 | a).to_be_bytes()).then_some(out)
}

fn stored(bits: &mut Bits<'_>, out: &mut Vec<u8>) -> Option<()> {
    bits.at = bits.at.next_multiple_of(8);
    let (len, complement) = (bits.bits(16)?, bits.bits(16)?);
    if len ^ complement != 0xFFFF {
        return None;
    }
    let first = bits.at / 8;
    out.extend(bits.bytes.get(first..first + len)?);
    bits.at += 8 * len;
    Some(())
}

fn dynamic_codes(bits: &mut Bits<'_>) -> Option<(Code, Code)> {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let (literals, distances) = (bits.bits(5)? + 257, bits.bits(5)? + 1);
    let mut lengths = [0; 19];
    let count = bits.bits(4)? + 4;
    for &place in &ORDER[..count] {
        lengths[place] = bits.bits(3)?;
    }
    let code = Code::new(&lengths);
    let mut lengths = Vec::new();
    while lengths.len() < literals + distances {
        let (length, times) = match code.symbol(bits)? {
            16 => (*lengths.last()?, 3 + bits.bits(2)?),
            17 => (0, 3 + bits.bits(3)?),
            18 => (0, 11 + bits.bits(7)?),
            length => (length, 1),
        };
        lengths.extend(std::iter::repeat_n(length, times));
    }
    (lengths.len() == literals + distances)
        .then(|| (Code::new(&lengths[..literals]), Code::new(&lengths[literals..])))
}

fn block(
    bits: &mut Bits<'_>,
    literals: &Code,
    distances: &Code,
    most: usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    while out.len() <= most {
        let symbol = literals.symbol(bits)?;
        let length = match symbol {
            0..256 => {
                out.push(symbol as u8);
                continue;
            }
            256 => return Some(()),
            257..265 => symbol - 254,
            265..285 => {
                let extra = (symbol - 261) / 4;
                3 + ((4 + (symbol - 261) % 4) << extra) + bits.bits(extra)?
            }
            285 => 258,
            _ => return None,
        };
        let distance = match distances.symbol(bits)? {
            symbol @ 0..4 => symbol + 1,
            symbol @ 4..30 => {
                let extra = symbol / 2 - 1;
                1 + ((2 + symbol % 2) << extra) + bits.bits(extra)?
            }
            _ => return None,
        };
        for _ in 0..length {
            out.push(*out.get(out.len().checked_sub(distance)?)?);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::zlib;

    #[test]
    fn streams_of_other_compressors_inflate() {
        // What zlib makes of "abc" and of 100 times "a".
        let abc = [0x78, 0x9C, 0x4B, 0x4C, 0x4A, 0x06, 0x00, 0x02, 0x4D, 0x01, 0x27];
        assert_eq!(zlib(&abc, 3).as_deref(), Some(b"abc".as_slice()));
        assert_eq!(zlib(&abc, 2), None);
        let run = [0x78, 0x9C, 0x4B, 0x4C, 0xA4, 0x3D, 0x00, 0x00, 0x7A, 0x47, 0x25, 0xE5];
        assert_eq!(zlib(&run, 100), Some(vec![b'a'; 100]));
        assert_eq!(zlib(&run[..11], 100), None);
    }
}
