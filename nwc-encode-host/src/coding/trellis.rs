//! Trellises for trellis-coded quantisation.
//!
//! The grid of indices is cut into four subsets, i mod 4. A state allows two of them, those of its parity (its *union*), so the index is
//! coded as one of half of the integers, and which of the two subsets it falls into picks the next state. Good trellises come from Ungerboeck's
//! systematic feedback convolutional codes of rate 1/2, given by two parity-check polynomials.

/// A trellis with a power of two of states, at least 8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trellis {
    /// Entry 2s + b is the state after state s and bit b (docs/bitstream.md §4.1).
    next: Vec<u8>,
}

/// Parity-check polynomials (h0, h1) by number of states, as Ungerboeck tabulates them for amplitude modulation.
const POLYNOMIALS: [(usize, u32, u32); 6] = [
    (8, 0o13, 0o04),
    (16, 0o23, 0o04),
    (32, 0o45, 0o10),
    (64, 0o103, 0o024),
    (128, 0o235, 0o126),
    (256, 0o515, 0o362),
];

/// What leads from state to state. The observer form of the encoder: the state's lowest bit is the parity (z0) that the next index must have,
/// the index's second bit (z1) is free, and the state shifts down while both feed into it where their polynomials have a one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taps {
    /// Bits that flip in the next state if the parity is odd.
    pub parity: u8,
    /// Bits that flip if the free bit is set.
    pub free: u8,
}

impl Taps {
    /// Those of the trellis with this number of states; `None` if there is none.
    pub const fn of(states: usize) -> Option<Self> {
        let mut place = 0;
        while place < POLYNOMIALS.len() {
            let (n, h0, h1) = POLYNOMIALS[place];
            if n == states {
                return Some(Self { parity: (h0 >> 1) as u8, free: (h1 >> 1) as u8 });
            }
            place += 1;
        }
        None
    }
}

impl Trellis {
    /// The trellis with this number of states; `None` if there is none.
    pub fn with_states(states: usize) -> Option<Self> {
        let Taps { parity, free } = Taps::of(states)?;
        let step = |state: usize, bit: u8| (state >> 1) as u8 ^ ((state & 1) as u8 * parity) ^ (bit * free);
        let next = (0..states).flat_map(|state| [0, 1].map(|bit| step(state, bit))).collect();
        Some(Self { next })
    }

    /// Number of states.
    pub fn states(&self) -> usize {
        self.next.len() / 2
    }

    /// The table of next states.
    pub fn next(&self) -> &[u8] {
        &self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Squared Euclidean distance of the closest pair of paths that part and meet again, in steps of the grid.
    fn free_distance(trellis: &Trellis) -> u32 {
        // Between subsets D_a and D_b the distance is that of a and b mod 4.
        let distance = |a: usize, b: usize| [0, 1, 4, 1][(a + 4 - b) % 4];
        let states = trellis.states();
        let next = |s: usize, bit: usize| usize::from(trellis.next()[2 * s + bit]);
        let mut best = vec![u32::MAX; states * states];
        for s in 0..states {
            best[next(s, 0) * states + next(s, 1)] =
                best[next(s, 0) * states + next(s, 1)].min(distance(s % 2, s % 2 + 2));
        }
        // Parallel branches: two indices of one subset are four steps apart.
        let mut found = 16;
        for _ in 0..4 * states {
            let mut then = vec![u32::MAX; states * states];
            for a in 0..states {
                for b in 0..states {
                    let so_far = best[a * states + b];
                    if so_far == u32::MAX {
                        continue;
                    }
                    if a == b {
                        found = found.min(so_far);
                        continue;
                    }
                    for (x, y) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                        let to = next(a, x) * states + next(b, y);
                        then[to] = then[to].min(so_far + distance(a % 2 + 2 * x, b % 2 + 2 * y));
                    }
                }
            }
            best = then;
        }
        found
    }

    #[test]
    fn trellises_have_the_free_distance_that_ungerboeck_states() {
        for (states, distance) in [(8, 10), (16, 11), (32, 13), (64, 14)] {
            assert_eq!(free_distance(&Trellis::with_states(states).unwrap()), distance, "{states} states");
        }
        assert_eq!(Trellis::with_states(7), None);
    }

    #[test]
    fn every_state_has_two_ways_in_and_each_state_two_ways_out() {
        for (states, ..) in POLYNOMIALS {
            let trellis = Trellis::with_states(states).unwrap();
            assert_eq!(trellis.states(), states);
            let into =
                |state: usize| trellis.next().iter().filter(|&&next| usize::from(next) == state).count();
            assert!((0..states).all(|state| into(state) == 2));
            assert!(trellis.next().chunks(2).all(|pair| pair[0] != pair[1]));
        }
    }
}
