//! Chunks, what learned codecs work on: as many neighbouring output rows of one input column, of normalised weights (arXiv 2510.11234).

/// Weights of a chunk.
pub const CHUNK: usize = 16;

/// By what weights are divided before they are cut up. Deviations are about zero, since nothing is subtracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalisation {
    /// By nothing.
    None,
    /// By the matrix's deviation.
    Matrix,
    /// Each output row by its own: the paper's choice.
    Rows,
    /// Each input column by its own.
    Columns,
    /// Rows first, then columns by what is left.
    Both,
}

impl Normalisation {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::None, Self::Matrix, Self::Rows, Self::Columns, Self::Both];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Matrix => "matrix",
            Self::Rows => "rows",
            Self::Columns => "columns",
            Self::Both => "both",
        }
    }
}

/// A matrix [out, in] in chunks.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunks {
    out: usize,
    input: usize,
    rows: Vec<f32>,
    columns: Vec<f32>,
    weights: Vec<[f32; CHUNK]>,
}

impl Chunks {
    /// Normalises a matrix, row-major, and cuts it up. Rows that the last chunks lack are zeros.
    ///
    /// # Panics
    /// If `weights` are not whole rows of `input` weights.
    pub fn new(weights: &[f32], input: usize, normalisation: Normalisation) -> Self {
        assert!(
            input > 0 && weights.len().is_multiple_of(input),
            "{} weights in rows of {input}",
            weights.len()
        );
        let out = weights.len() / input;
        let by_rows = matches!(normalisation, Normalisation::Rows | Normalisation::Both);
        let rows: Vec<f32> = if normalisation == Normalisation::Matrix {
            vec![deviation(weights.iter().copied()); out]
        } else if by_rows {
            weights.chunks_exact(input).map(|row| deviation(row.iter().copied())).collect()
        } else {
            vec![1.0; out]
        };
        let columns: Vec<f32> = if matches!(normalisation, Normalisation::Columns | Normalisation::Both) {
            let column = |c: usize| {
                deviation(weights[c..].iter().step_by(input).zip(&rows).map(|(weight, row)| weight / row))
            };
            (0..input).map(column).collect()
        } else {
            vec![1.0; input]
        };
        let blocks = out.div_ceil(CHUNK);
        let mut chunks = vec![[0.0; CHUNK]; blocks * input];
        for (r, row) in weights.chunks_exact(input).enumerate() {
            for (c, weight) in row.iter().enumerate() {
                chunks[r / CHUNK * input + c][r % CHUNK] = weight / rows[r] / columns[c];
            }
        }
        Self { out, input, rows, columns, weights: chunks }
    }

    /// The chunks: those of the first rows first, by columns.
    pub fn weights(&self) -> &[[f32; CHUNK]] {
        &self.weights
    }

    /// The input column of a chunk.
    pub fn column_of(&self, chunk: usize) -> usize {
        chunk % self.input
    }

    /// The matrix again, row-major, but for the rounding of a division and a multiplication by each scale.
    pub fn restore(&self) -> Vec<f32> {
        let weight = |r: usize, c: usize| {
            self.weights[r / CHUNK * self.input + c][r % CHUNK] * self.columns[c] * self.rows[r]
        };
        (0..self.out).flat_map(|r| (0..self.input).map(move |c| (r, c))).map(|(r, c)| weight(r, c)).collect()
    }
}

/// The deviation about zero, or 1 for what is all zeros.
fn deviation(weights: impl Iterator<Item = f32>) -> f32 {
    let (square, count) = weights.fold((0.0, 0u32), |(sum, n), w| (sum + f64::from(w).powi(2), n + 1));
    let deviation = (square / f64::from(count.max(1))).sqrt() as f32;
    if deviation > 0.0 && deviation.is_finite() { deviation } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_chunk_is_rows_of_one_column() {
        // Weight 100 r + c: 20 rows make two chunks a column.
        let weights: Vec<f32> = (0..20 * 3).map(|i| (100 * (i / 3) + i % 3) as f32).collect();
        let chunks = Chunks::new(&weights, 3, Normalisation::None);
        assert_eq!(chunks.weights().len(), 6);
        let expected: [f32; CHUNK] = std::array::from_fn(|r| (100 * r + 1) as f32);
        assert_eq!((chunks.weights()[1], chunks.column_of(4)), (expected, 1));
        let last: [f32; CHUNK] = std::array::from_fn(|r| if r < 4 { (1602 + 100 * r) as f32 } else { 0.0 });
        assert!(chunks.weights()[5].iter().zip(last).all(|(a, b)| (a - b).abs() < 0.5));
        assert_eq!(chunks.restore(), weights);
    }

    proptest! {
        #[test]
        fn normalised_rows_and_columns_have_unit_deviation_and_come_back(
            out in 1usize..40, input in 1usize..40, seed in 0u64..1000,
        ) {
            let weights = crate::synthetic::Source::LognormalRows.matrix(out, input, seed);
            for normalisation in Normalisation::ALL {
                let chunks = Chunks::new(&weights, input, normalisation);
                for (a, b) in weights.iter().zip(chunks.restore()) {
                    prop_assert!((a - b).abs() <= 4.0 * f32::EPSILON * a.abs(), "{normalisation:?}: {a} became {b}");
                }
                let energy = |chunk: &[f32; CHUNK]| chunk.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
                let total: f64 = chunks.weights().iter().map(energy).sum();
                let unit = (out * input) as f64;
                if normalisation != Normalisation::None {
                    prop_assert!((total / unit - 1.0).abs() < 1e-5, "{normalisation:?}: {total} of {unit}");
                }
            }
        }
    }
}
