//! The entropy coder's writing half: rANS with interleaved lanes (docs/bitstream.md §5.3, §6).

/// Where every lane begins to encode, and so where every decoder's lane must end.
const START: u32 = 1 << 16;

/// A symbol's place in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Sum of the frequencies before it.
    pub start: u16,
    /// Its frequency, 1 to 2^precision.
    pub frequency: u16,
}

/// A symbol ready to be encoded: with a reciprocal in place of the division.
#[derive(Debug, Clone, Copy)]
pub struct Symbol {
    /// 2^64 / frequency, rounded up; 2^64 - 1 for a frequency of 1.
    reciprocal: u64,
    /// What is added to a state besides a multiple of its quotient.
    bias: u32,
    frequency: u16,
    /// 2^precision - frequency.
    complement: u16,
}

impl Symbol {
    /// The symbol with this slot of a table of this precision.
    pub fn new(slot: Slot, precision: u32) -> Self {
        let Slot { start, frequency } = slot;
        let complement = ((1u32 << precision) - u32::from(frequency)) as u16;
        // A reciprocal of 1 does not fit 64 bits. The largest that does gives quotients that are too small by 1, which the bias makes good.
        let (reciprocal, bias) = match u64::from(frequency) {
            1 => (u64::MAX, u32::from(start) + u32::from(complement)),
            frequency => (u64::MAX / frequency + 1, u32::from(start)),
        };
        Self { reciprocal, bias, frequency, complement }
    }

    /// Puts the symbol on a state from which a word was taken if it was too large.
    #[inline(always)]
    fn push(&self, state: u32) -> u32 {
        // Exact: the state is below 2^32 and the reciprocal too large by less than frequency / 2^64 <= 2^-48 of its unit.
        let quotient = ((u128::from(state) * u128::from(self.reciprocal)) >> 64) as u32;
        // (quotient << precision) + remainder + start
        state + self.bias + quotient * u32::from(self.complement)
    }
}

/// Collects a stream's symbols in decoding order and writes the stream.
///
/// rANS is a stack: the decoder reads first what was written last. So the symbols are kept until [`finish`](Self::finish), which goes over
/// them backwards.
#[derive(Debug, Default)]
pub struct StreamWriter {
    /// Numbers of symbols in the list that `finish` is given.
    symbols: Vec<u16>,
    /// Number of lanes that take part in runs of steps, and how many steps; they are lanes 0 up to it.
    steps: Vec<(u8, usize)>,
    /// Raw words after a step's refills, with the number of symbols up to that step's end.
    escapes: Vec<(usize, u16)>,
    words: Vec<u16>,
}

impl StreamWriter {
    /// Begins a stream; the memory of the one before is used again.
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.steps.clear();
        self.escapes.clear();
    }

    /// One symbol, by its number, for each of the first lanes, in the order of lanes.
    #[inline]
    pub fn step(&mut self, symbols: &[u16]) {
        self.symbols.extend_from_slice(symbols);
        match self.steps.last_mut() {
            Some((active, steps)) if usize::from(*active) == symbols.len() => *steps += 1,
            _ => self.steps.push((symbols.len() as u8, 1)),
        }
    }

    /// A raw word that follows the step that was written last.
    pub fn escape(&mut self, word: u16) {
        self.escapes.push((self.symbols.len(), word));
    }

    /// The bytes of the stream: `lanes` lane states, words, and zero bytes up to a multiple of 4. `table` has the symbols by number, all of
    /// one precision.
    pub fn finish(&mut self, lanes: usize, precision: u32, table: &[Symbol]) -> Vec<u8> {
        let mut states = vec![START; lanes];
        // Words are written from the end of memory that is large enough for all: a word a symbol and the escapes.
        let room = self.symbols.len() + self.escapes.len();
        if self.words.len() < room {
            self.words.resize(room, 0);
        }
        let words = &mut self.words[..room];
        let mut at = room;
        let mut end = self.symbols.len();
        for &(active, steps) in self.steps.iter().rev() {
            let states = &mut states[..usize::from(active)];
            for _ in 0..steps {
                while let Some((_, word)) = self.escapes.pop_if(|(place, _)| *place == end) {
                    at -= 1;
                    words[at] = word;
                }
                let first = end - states.len();
                for (state, &symbol) in states.iter_mut().zip(&self.symbols[first..end]).rev() {
                    let symbol = &table[usize::from(symbol)];
                    // Without a branch: whether a word is taken is a matter of chance.
                    let full = *state >> (32 - precision) >= u32::from(symbol.frequency);
                    words[at - 1] = *state as u16;
                    at -= usize::from(full);
                    *state = symbol.push(if full { *state >> 16 } else { *state });
                }
                end = first;
            }
        }
        let words = &words[at..];
        let mut bytes = Vec::with_capacity((4 * lanes + 2 * words.len()).next_multiple_of(4));
        states.iter().for_each(|state| bytes.extend_from_slice(&state.to_le_bytes()));
        words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use constriction::Pos;
    use constriction::stream::Encode;
    use constriction::stream::model::{
        ContiguousCategoricalEntropyModel, EncoderModel, IterableEntropyModel,
    };
    use constriction::stream::stack::AnsCoder;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// With one lane and no escapes our words are those of `constriction`'s ANS coder, started from our start state.
        #[test]
        fn one_lane_writes_the_words_of_constriction(
            weights in prop::collection::vec(1u32..1000, 2..60),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..500),
        ) {
            const PRECISION: usize = 12;
            let total: u32 = weights.iter().sum();
            let probabilities: Vec<f64> = weights.iter().map(|&w| f64::from(w) / f64::from(total)).collect();
            let model = ContiguousCategoricalEntropyModel::<u16, Vec<u16>, PRECISION>
                ::from_floating_point_probabilities_fast(&probabilities, None).unwrap();
            let slots: Vec<Slot> = model.symbol_table()
                .map(|(_, start, frequency)| Slot { start, frequency: frequency.get() }).collect();
            let symbols: Vec<usize> = picks.iter().map(|pick| pick.index(slots.len())).collect();

            let table: Vec<Symbol> = slots.iter().map(|&slot| Symbol::new(slot, PRECISION as u32)).collect();
            let mut ours = StreamWriter::default();
            symbols.iter().for_each(|&symbol| ours.step(&[symbol as u16]));
            let stream = ours.finish(1, PRECISION as u32, &table);

            // A stack that holds the words 0, 1 stands for the state 2^16.
            let mut theirs = AnsCoder::<u16, u32>::from_compressed(vec![0, 1]).unwrap();
            for &symbol in symbols.iter().rev() {
                prop_assert!(model.left_cumulative_and_probability(symbol).is_some());
                theirs.encode_symbol(symbol, &model).unwrap();
            }
            prop_assert!(theirs.pos().1 >= START);
            let words = theirs.into_compressed().unwrap();

            let (state, rest) = stream.split_at(4);
            let mut expected: Vec<u8> = Vec::new();
            for word in words.iter().rev() { expected.extend_from_slice(&word.to_le_bytes()); }
            // They write the state's high half first, we write it as one little-endian number.
            let state_words = [state[2], state[3], state[0], state[1]];
            let mut got = state_words.to_vec();
            got.extend_from_slice(rest);
            expected.resize(expected.len().next_multiple_of(4), 0);
            prop_assert_eq!(got, expected);
        }
    }
    #[test]
    fn reciprocals_divide_exactly() {
        for precision in [10, 14] {
            let largest = 1u32 << precision;
            for frequency in [1, 2, 3, 5, 7, 641, largest / 2 + 1, largest - 1, largest] {
                let slot = Slot { start: (largest - frequency) as u16, frequency: frequency as u16 };
                let symbol = Symbol::new(slot, precision);
                // A state is below frequency * 2^(32 - precision) when a symbol is put on it.
                let below = u64::from(frequency) << (32 - precision);
                let states = [1, 2, 3, 4, 5].map(|divisor| below / divisor);
                for state in states.into_iter().flat_map(|state| state - 5..state) {
                    let state = state as u32;
                    let expected =
                        ((state / frequency) << precision) + state % frequency + u32::from(slot.start);
                    assert_eq!(symbol.push(state), expected, "{state} with {frequency} of 2^{precision}");
                }
            }
        }
    }
}
