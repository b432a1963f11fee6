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

/// Collects a stream's symbols in decoding order and writes the stream.
///
/// rANS is a stack: the decoder reads first what was written last. So the symbols are kept until [`finish`](Self::finish), which goes over
/// them backwards.
#[derive(Debug)]
pub struct StreamWriter {
    lanes: usize,
    precision: u32,
    slots: Vec<Slot>,
    /// Number of lanes that take part in each step; they are lanes 0 up to it.
    steps: Vec<u8>,
    /// Raw words after a step's refills, with the number of the step.
    escapes: Vec<(usize, u16)>,
}

impl StreamWriter {
    /// A stream of `lanes` lanes whose tables all have this precision.
    pub fn new(lanes: usize, precision: u32) -> Self {
        Self { lanes, precision, slots: Vec::new(), steps: Vec::new(), escapes: Vec::new() }
    }

    /// One symbol for each of the first lanes, in the order of lanes.
    pub fn step(&mut self, slots: impl IntoIterator<Item = Slot>) {
        let before = self.slots.len();
        self.slots.extend(slots);
        let active = self.slots.len() - before;
        debug_assert!((1..=self.lanes).contains(&active));
        self.steps.push(active as u8);
    }

    /// A raw word that follows the step that was written last.
    pub fn escape(&mut self, word: u16) {
        self.escapes.push((self.steps.len() - 1, word));
    }

    /// The bytes of the stream: lane states, words, and zero bytes up to a multiple of 4.
    pub fn finish(mut self) -> Vec<u8> {
        let mut states = vec![START; self.lanes];
        let mut words: Vec<u16> = Vec::with_capacity(self.slots.len() / 3);
        let mut end = self.slots.len();
        for (step, &active) in self.steps.iter().enumerate().rev() {
            while let Some((_, word)) = self.escapes.pop_if(|(at, _)| *at == step) {
                words.push(word);
            }
            let first = end - usize::from(active);
            for (state, slot) in states.iter_mut().zip(&self.slots[first..end]).rev() {
                let frequency = u32::from(slot.frequency);
                if u64::from(*state) >= u64::from(frequency) << (32 - self.precision) {
                    words.push(*state as u16);
                    *state >>= 16;
                }
                *state =
                    ((*state / frequency) << self.precision) + *state % frequency + u32::from(slot.start);
            }
            end = first;
        }
        let mut bytes = Vec::with_capacity(4 * self.lanes + 2 * words.len() + 2);
        states.iter().for_each(|state| bytes.extend_from_slice(&state.to_le_bytes()));
        words.iter().rev().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
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

            let mut ours = StreamWriter::new(1, PRECISION as u32);
            symbols.iter().for_each(|&symbol| ours.step([slots[symbol]]));
            let stream = ours.finish();

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
}
