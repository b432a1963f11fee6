//! A light synthesis as containers have it (docs/bitstream.md §9.3): in integers, in units of the step that a tensor brings.

use nwc_decode_core::Network;

use crate::chunks::CHUNK;
use crate::parameters::HostParameters;

/// The most that an integer weight, and an activation, can be.
const MOST: f64 = 127.0;

/// The hidden layer of a synthesis.
struct Hidden<'a> {
    /// `[width, CHUNK]`.
    up: &'a [f32],
    /// `[width]`.
    biases: &'a [f32],
    /// `[CHUNK, width]`.
    down: &'a [f32],
}

/// The stored form of the matrix and maybe the hidden layer of a light synthesis, scaled so that errors of latents are as large in weights. `latents` are some chunks, which tell which precision serves
/// a hidden layer best.
///
/// # Panics
/// If the synthesis is of another form.
pub(crate) fn network(parameters: &HostParameters, latents: &[f32]) -> Vec<u8> {
    let part = |name: &str| Some(&parameters.get(&format!("synthesis.{name}"))?.values[..]);
    let matrix = part("linear.weight").expect("it is light");
    let norm = matrix.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let (scale, places, rounded) = round_matrix(matrix, (CHUNK as f64).sqrt() / norm);
    let mut bytes = vec![places as u8];
    bytes.extend(rounded);
    let hidden = part("up.weight").map(|up| Hidden {
        up,
        biases: part("up.bias").unwrap_or_default(),
        down: part("down.weight").unwrap_or_default(),
    });
    match hidden {
        None => bytes.push(0),
        Some(hidden) => {
            bytes.push(1);
            bytes.extend(hidden.round(scale * f64::from(1u32 << places), latents));
        }
    }
    bytes
}

/// A matrix times `scale`, or a little less, in as many binary places as the format leaves room for: the factor, the places, the entries.
fn round_matrix(matrix: &[f32], mut scale: f64) -> (f64, u32, Vec<u8>) {
    loop {
        for places in (0..16).rev() {
            let unit = scale * f64::from(1u32 << places);
            let entries: Vec<f64> = matrix.iter().map(|&x| (f64::from(x) * unit).round()).collect();
            if entries.iter().any(|x| x.abs() > MOST) {
                continue;
            }
            let entries: Vec<u8> = entries.iter().map(|&x| (x as i8).cast_unsigned()).collect();
            let alone = [&[places as u8], &entries[..], &[0]].concat();
            if Network::new(&alone).is_some() {
                return (scale, places, entries);
            }
        }
        scale *= 0.99;
    }
}

impl Hidden<'_> {
    /// Its fields and the output weights behind them, for outputs of `unit` a weight: with the shift that loses the least.
    fn round(&self, unit: f64, latents: &[f32]) -> Vec<u8> {
        let width = self.biases.len();
        let largest = self.up.iter().fold(0f32, |most, x| most.max(x.abs()));
        let bias = self.biases.iter().fold(0f32, |most, x| most.max(x.abs()));
        // Weights fill a byte, and biases fit 16 bits.
        let fine =
            (MOST / f64::from(largest)).min(f64::from(i16::MAX - 1) / f64::from(bias).max(1e-9)).log2();
        let fine = fine.floor().exp2();
        let byte = |x: f64| (x.round().clamp(-MOST, MOST) as i8).cast_unsigned();
        let candidate = |shift: u8| {
            let coarse = f64::from(1u32 << shift);
            let mut bytes = vec![width as u8, shift];
            // Activations are rounded down: half of what is lost is given before.
            let bias =
                |&x: &f32| (f64::from(x) * fine + coarse / 2.0).round().clamp(-32_768.0, 32_767.0) as i16;
            bytes.extend(self.biases.iter().flat_map(|x| bias(x).to_le_bytes()));
            bytes.extend(self.up.iter().map(|&x| byte(f64::from(x) * fine)));
            bytes.extend(self.down.iter().map(|&x| byte(f64::from(x) * unit * coarse / fine)));
            bytes
        };
        (0..=15)
            .map(candidate)
            .min_by(|a, b| self.lost(a, unit, latents).total_cmp(&self.lost(b, unit, latents)))
            .expect("there are candidates")
    }

    /// The squared error of the outputs of stored fields.
    fn lost(&self, stored: &[u8], unit: f64, latents: &[f32]) -> f64 {
        let width = self.biases.len();
        let shift = stored[1];
        let (biases, weights) = stored[2..].split_at(2 * width);
        let (up, down) = weights.split_at(width * CHUNK);
        let signed = |byte: u8| i32::from(byte.cast_signed());
        let mut lost = 0.0;
        for chunk in latents.chunks_exact(CHUNK) {
            let indices: Vec<i32> = chunk.iter().map(|&y| (y as i32).clamp(-128, 127)).collect();
            let (exact, rounded): (Vec<f64>, Vec<i32>) = (0..width)
                .map(|m| {
                    let row = m * CHUNK..(m + 1) * CHUNK;
                    let sum = |(w, y): (&f32, &f32)| f64::from(w * y);
                    let exact = self.up[row.clone()].iter().zip(chunk).map(sum).sum::<f64>()
                        + f64::from(self.biases[m]);
                    let bias = i32::from(i16::from_le_bytes([biases[2 * m], biases[2 * m + 1]]));
                    let sum: i32 = up[row].iter().zip(&indices).map(|(&w, i)| signed(w) * i).sum();
                    (exact.max(0.0), ((bias + sum) >> shift).clamp(0, 127))
                })
                .unzip();
            for j in 0..CHUNK {
                let row = j * width..(j + 1) * width;
                let wanted: f64 =
                    self.down[row.clone()].iter().zip(&exact).map(|(&w, x)| f64::from(w) * x).sum::<f64>()
                        * unit;
                let made: i32 = down[row].iter().zip(&rounded).map(|(&w, x)| signed(w) * x).sum();
                lost += (wanted - f64::from(made)).powi(2);
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use nwc_decode_core::{MAX_LANES, Synthesis};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::parameters::HostTensor;

    /// A rotation of pairs of rows times a step, and a hidden layer of 20 units.
    fn parameters(step: f32, hidden: bool) -> HostParameters {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut all = HostParameters::new();
        let mut put = |name: &str, shape: &[usize], values: Vec<f32>| {
            all.insert(format!("synthesis.{name}"), HostTensor { shape: shape.to_vec(), values });
        };
        let entry = |at: usize| {
            let (j, k) = (at / CHUNK, at % CHUNK);
            match (j == k, j ^ k == 1) {
                (true, _) => 0.8 * step,
                (_, true) => {
                    if j > k {
                        0.6 * step
                    } else {
                        -0.6 * step
                    }
                }
                _ => 0.0,
            }
        };
        put("linear.weight", &[CHUNK, CHUNK], (0..CHUNK * CHUNK).map(entry).collect());
        if hidden {
            let mut normal = |count: usize, most: f32| -> Vec<f32> {
                (0..count).map(|_| rng.random_range(-most..most)).collect()
            };
            put("up.weight", &[20, CHUNK], normal(20 * CHUNK, 0.4));
            put("up.bias", &[20], normal(20, 1.0));
            put("down.weight", &[CHUNK, 20], normal(20 * CHUNK, 0.1 * step));
        }
        all
    }

    #[test]
    fn integers_do_what_the_trained_synthesis_does() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let latents: Vec<f32> = (0..CHUNK * MAX_LANES).map(|_| rng.random_range(-6i32..=6) as f32).collect();
        for (step, hidden) in [(1.0, false), (0.1, false), (0.1, true), (2.0, true)] {
            let trained = parameters(step, hidden);
            let stored = network(&trained, &latents);
            let synthesis = Synthesis::Learned(Network::new(&stored).expect("it is legal"));
            let mut chunk = [[0; MAX_LANES]; CHUNK];
            for (lane, latents) in latents.chunks_exact(CHUNK).enumerate() {
                latents.iter().enumerate().for_each(|(row, &y)| chunk[row][lane] = y as i32);
            }
            let indices = chunk;
            synthesis.apply(&mut chunk, CHUNK);
            let unit = f64::from(step) * f64::from(1u32 << synthesis.fraction_bits()).recip();
            let get = |name: &str| trained.get(&format!("synthesis.{name}")).map(|tensor| &tensor.values[..]);
            let (mut error, mut energy) = (0.0, 0.0);
            for lane in 0..MAX_LANES {
                let y: Vec<f64> = indices.iter().map(|row| f64::from(row[lane])).collect();
                let sum = |weights: &[f32], x: &[f64]| {
                    weights.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum::<f64>()
                };
                for j in 0..CHUNK {
                    let mut wanted = sum(&get("linear.weight").unwrap()[j * CHUNK..][..CHUNK], &y);
                    if let (Some(up), Some(bias), Some(down)) =
                        (get("up.weight"), get("up.bias"), get("down.weight"))
                    {
                        let active: Vec<f64> = (0..20)
                            .map(|m| (sum(&up[m * CHUNK..][..CHUNK], &y) + f64::from(bias[m])).max(0.0))
                            .collect();
                        wanted += sum(&down[j * 20..][..20], &active);
                    }
                    error += (f64::from(chunk[j][lane]) * unit - wanted).powi(2);
                    energy += wanted.powi(2);
                }
            }
            // A step of the last of 6 places, and of hidden weights in a byte.
            assert!(error / energy < if hidden { 1e-3 } else { 1e-4 }, "{step} {hidden}: {}", error / energy);
        }
    }
}
