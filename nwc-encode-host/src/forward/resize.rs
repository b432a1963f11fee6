//! Resizing of images exactly as Pillow does it, with which models are trained: the filter is as wide as the reduction, weights are
//! fixed-point numbers, rows first, and rounded to bytes before columns.

use std::borrow::Cow;
use std::ops::Range;

/// Three bytes a pixel, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels of a row.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
    /// Red, green and blue of each pixel.
    pub pixels: Vec<u8>,
}

/// How pixels are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Bilinear,
    Bicubic,
}

/// Fraction bits of weights.
const PRECISION: u32 = 32 - 8 - 2;
const CHANNELS: usize = 3;

impl Filter {
    /// How far it reaches.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Self::Bicubic => 0.0,
        }
    }

    /// For each output, the inputs that it takes, and their weights.
    fn windows(self, from: usize, to: usize) -> Vec<(Range<usize>, Vec<i32>)> {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = self.support() * stretch;
        let window = |at: usize| {
            let center = (at as f64 + 0.5) * scale;
            // Truncated after adding a half, as Pillow rounds.
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(from);
            let weights: Vec<f64> =
                (first..last).map(|i| self.weight((i as f64 - center + 0.5) / stretch)).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: &f64| (weight / sum * f64::from(1 << PRECISION)).round() as i32;
            (first..last, weights.iter().map(fixed).collect())
        };
        (0..to).map(window).collect()
    }
}

impl Picture {
    /// In another size.
    ///
    /// # Panics
    /// If either size has no pixels.
    #[must_use]
    pub(super) fn resized(&self, width: usize, height: usize, filter: Filter) -> Self {
        assert!(self.width * self.height * width * height > 0, "a picture without pixels");
        let mut picture = Cow::Borrowed(self);
        if width != self.width {
            picture = Cow::Owned(picture.along_rows(width, filter));
        }
        if height != self.height {
            picture = Cow::Owned(picture.along_columns(height, filter));
        }
        picture.into_owned()
    }

    fn along_rows(&self, width: usize, filter: Filter) -> Self {
        let windows = filter.windows(self.width, width);
        let mut pixels = Vec::with_capacity(width * self.height * CHANNELS);
        for row in self.pixels.chunks_exact(self.width * CHANNELS) {
            for (window, weights) in &windows {
                let at = |channel: usize| window.clone().map(move |x| row[x * CHANNELS + channel]);
                pixels.extend((0..CHANNELS).map(|channel| weighed(at(channel), weights)));
            }
        }
        Self { width, height: self.height, pixels }
    }

    fn along_columns(&self, height: usize, filter: Filter) -> Self {
        let stride = self.width * CHANNELS;
        let mut pixels = Vec::with_capacity(stride * height);
        for (window, weights) in filter.windows(self.height, height) {
            let at = |x: usize| window.clone().map(move |y| self.pixels[y * stride + x]);
            pixels.extend((0..stride).map(|x| weighed(at(x), &weights)));
        }
        Self { width: self.width, height, pixels }
    }

    /// The middle of it, with black around it where it is smaller.
    #[must_use]
    pub(super) fn cropped(&self, width: usize, height: usize) -> Self {
        // Pixels before the middle: of an odd difference there is one less where it is cut, one more where black is added.
        let offset = |from: usize, to: usize| {
            if from >= to { ((from - to) / 2) as isize } else { -((to - from).div_ceil(2) as isize) }
        };
        let (left, top) = (offset(self.width, width), offset(self.height, height));
        let mut pixels = vec![0; width * height * CHANNELS];
        for (at, pixel) in pixels.as_chunks_mut::<CHANNELS>().0.iter_mut().enumerate() {
            let x = (at % width).checked_add_signed(left).filter(|&x| x < self.width);
            let y = (at / width).checked_add_signed(top).filter(|&y| y < self.height);
            if let (Some(x), Some(y)) = (x, y) {
                pixel.copy_from_slice(&self.pixels[(y * self.width + x) * CHANNELS..][..CHANNELS]);
            }
        }
        Self { width, height, pixels }
    }
}

fn weighed(values: impl Iterator<Item = u8>, weights: &[i32]) -> u8 {
    let sum: i32 = values.zip(weights).map(|(value, weight)| i32::from(value) * weight).sum();
    ((sum + (1 << (PRECISION - 1))) >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Model;

    #[test]
    fn sizes_are_pillows() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/resize.safetensors");
        let made = Model::open(&path).unwrap();
        let read = |name: &str| {
            let index = made.find(name).unwrap();
            let shape = &made.tensors()[index].shape;
            Picture { width: shape[1], height: shape[0], pixels: made.bytes(index).to_vec() }
        };
        let picture = read("image");
        for (name, filter) in [("bilinear", Filter::Bilinear), ("bicubic", Filter::Bicubic)] {
            for (width, height) in [(17, 12), (14, 9), (50, 40)] {
                let name = format!("{name}.{width}x{height}");
                assert_eq!(picture.resized(width, height, filter), read(&name), "{name}");
            }
        }
    }

    #[test]
    fn the_middle_is_kept() {
        let picture = Picture { width: 3, height: 1, pixels: vec![1, 1, 1, 2, 2, 2, 3, 3, 3] };
        assert_eq!(picture.cropped(1, 1).pixels, [2, 2, 2]);
        assert_eq!(picture.cropped(2, 1).pixels, [1, 1, 1, 2, 2, 2]);
        assert_eq!(picture.cropped(3, 3).pixels[9..18], picture.pixels);
        assert_eq!(picture.cropped(4, 1).pixels[3..], picture.pixels);
    }
}
